"""Interrupted trainings: they go on to the same outputs, bit for bit, and take no checkpoint that is not theirs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_preferences import make_artifacts, run_arguments

from components.preference_optimization.stage import run
from components.shared import hf_training
from components.shared.artifacts import read_artifact
from components.shared.hf_checkpoints import CHECKPOINTS_VARIABLE

OUTPUTS = {
    "output_policy": "policy",
    "output_checkpoints": "policy_checkpoints",
    "output_history": "training_history",
}
LONG = {"max_steps": 11, "save_every_steps": 2, "evaluate_every_steps": 3}
"""Four steps are an epoch of the prompts, three of the pairs: an interruption falls into a later one."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_artifacts(tmp_path_factory.mktemp("inputs"))


def _digests(arguments: dict[str, Any]) -> dict[str, str]:
    return {output: read_artifact(arguments[output], kind).digest for output, kind in OUTPUTS.items()}


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _crash() -> None:
    raise KeyboardInterrupt


def _interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], None]) -> None:
    """Calls `interrupt` once, when training reports `step`."""
    pending = [step]

    def report(label: str, done: int, total: int, **_: Any) -> None:
        if pending and done == pending[0]:
            pending.clear()
            interrupt()

    monkeypatch.setattr(hf_training, "report", report)


@pytest.mark.parametrize(
    ("method", "parameterisation", "interrupt"),
    [
        ("dpo", "full", _terminate),
        ("dpo", "lora", _crash),
        ("kto", "full", _crash),
        ("grpo", "full", _crash),
        ("grpo", "lora", _terminate),
        ("rloo", "full", _terminate),
        ("online_dpo", "full", _crash),
    ],
)
def test_an_interrupted_training_goes_on_to_the_same_outputs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inputs: dict[str, str],
    method: str,
    parameterisation: str,
    interrupt: Callable[[], None],
) -> None:
    settings = LONG | {"parameterisation": parameterisation}
    whole = run_arguments(tmp_path / "whole", method, inputs=inputs, **settings)
    run(**whole)
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(tmp_path / "checkpoints"))
    resumed = run_arguments(tmp_path / "resumed", method, inputs=inputs, **settings)
    _interrupt_at(7, monkeypatch, interrupt)

    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        run(**resumed)

    if interrupt is _terminate:
        assert isinstance(caught.value, SystemExit)
        assert caught.value.code == 143
    assert not (tmp_path / "resumed").exists()
    [folder] = (tmp_path / "checkpoints").iterdir()
    newest = 7 if interrupt is _terminate else 6
    assert (folder / f"checkpoint-{newest}" / "complete.json").is_file()

    steps: list[int] = []
    monkeypatch.setattr(hf_training, "report", lambda label, done, total, **_: steps.append(done))
    run(**resumed)
    assert steps[0] == newest + 1
    assert _digests(resumed) == _digests(whole)
    assert not folder.exists()


def test_a_half_written_checkpoint_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: dict[str, str]
) -> None:
    whole = run_arguments(tmp_path / "whole", "dpo", inputs=inputs, **LONG)
    run(**whole)
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(tmp_path / "checkpoints"))
    resumed = run_arguments(tmp_path / "resumed", "dpo", inputs=inputs, **LONG)
    _interrupt_at(7, monkeypatch, _crash)
    with pytest.raises(KeyboardInterrupt):
        run(**resumed)
    [folder] = (tmp_path / "checkpoints").iterdir()
    (folder / "checkpoint-6" / "complete.json").unlink()

    steps: list[int] = []
    monkeypatch.setattr(hf_training, "report", lambda label, done, total, **_: steps.append(done))
    run(**resumed)

    assert steps[0] == 5
    assert _digests(resumed) == _digests(whole)


def test_other_settings_start_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: dict[str, str]) -> None:
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(tmp_path / "checkpoints"))
    _interrupt_at(7, monkeypatch, _crash)
    with pytest.raises(KeyboardInterrupt):
        run(**run_arguments(tmp_path, "dpo", inputs=inputs, **LONG))

    steps: list[int] = []
    monkeypatch.setattr(hf_training, "report", lambda label, done, total, **_: steps.append(done))
    run(**run_arguments(tmp_path, "dpo", inputs=inputs, beta=0.2, **LONG))

    assert steps[0] == 1


@pytest.mark.slow
def test_a_stage_that_is_killed_resumes_to_the_same_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: dict[str, str]
) -> None:
    settings = LONG | {"max_steps": 24, "evaluate_every_steps": 7}
    whole = run_arguments(tmp_path / "whole", "grpo", inputs=inputs, **settings)
    run(**whole)
    checkpoints = tmp_path / "checkpoints"
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(checkpoints))
    killed = run_arguments(tmp_path / "killed", "grpo", inputs=inputs, **settings)
    script = (
        "import json, sys; from components.preference_optimization.stage import run; run(**json.loads(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, json.dumps(killed)])
    while not list(checkpoints.glob("*/checkpoint-*/complete.json")):
        assert process.poll() is None, "the stage ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    assert process.wait(timeout=300) == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()

    run(**killed)

    assert _digests(killed) == _digests(whole)
