"""Sharded weights: two processes that each hold half of every layer do what one does that holds everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sharded_cases
import torch
from safetensors.torch import load_file
from tiny_ppo import make_settings, run_arguments

from components.ppo.stage import run
from components.shared.files import read_jsonl

_COLUMNS = ("reward_mean", "kl", "kl_coef", "entropy", "policy_loss", "value_loss", "grad_norm")


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """Names of the cases that two processes came through, and what they said."""
    folder = tmp_path_factory.mktemp("sharded")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*launcher, sharded_cases.__file__, str(folder)], env=environment, capture_output=True, text=True, timeout=600
    )
    file = folder / "passed.json"
    return json.loads(file.read_text()) if file.exists() else [], done.stderr[-6000:]


def _rows(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    return list(read_jsonl(Path(arguments["output_history"]) / "history.jsonl"))


def _weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(Path(folder).rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def _require_same(alone: dict[str, Any], together: dict[str, Any]) -> None:
    """Histories, the candidate and the policies along the way agree to rounding."""
    for one, other in zip(_rows(alone), _rows(together), strict=True):
        for column in _COLUMNS:
            assert other[column] == pytest.approx(one[column], abs=1e-4, rel=1e-3), (one["step"], column)
        assert other["response_tokens"] == one["response_tokens"]
    for output in ("output_policy", "output_checkpoints"):
        expected, found = _weights(alone[output]), _weights(together[output])
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.allclose(found[name], tensor, atol=1e-3), (output, name)


def test_sharding_needs_several_processes() -> None:
    with pytest.raises(ValueError, match="processes is 1"):
        make_settings(sharding="zero3")


@pytest.mark.slow
@pytest.mark.parametrize("case", [case.__name__ for case in sharded_cases.CASES])
def test_in_two_processes(passed: tuple[list[str], str], case: str) -> None:
    names, log = passed
    assert case in names, log


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
@pytest.mark.parametrize(
    "settings",
    [
        {"parameterisation": "full"},
        {"parameterisation": "lora", "minibatches": 2, "samples_per_prompt": 2},
        {"parameterisation": "lora", "value_model": "shared_trunk", "microbatch": 8, "critic_warmup_steps": 1},
    ],
    ids=["full", "lora", "shared trunk, less work than processes"],
)
def test_two_sharded_processes_reproduce_one(tmp_path: Path, sharding: str, settings: dict[str, Any]) -> None:
    alone = run_arguments(tmp_path / "alone", **settings)
    together = run_arguments(tmp_path / "together", processes=2, sharding=sharding, **settings)

    run(**alone)
    run(**together)

    _require_same(alone, together)


@pytest.mark.slow
def test_sigterm_lets_sharded_processes_save_and_the_run_goes_on_from_there(tmp_path: Path) -> None:
    settings = {"steps": 12, "ppo_epochs": 1, "parameterisation": "lora"}
    alone = run_arguments(tmp_path / "alone", **settings)
    together = run_arguments(tmp_path / "together", processes=2, sharding="zero3", **settings)
    environment = os.environ | {"PLUMBLINE_CHECKPOINTS": str(tmp_path / "checkpoints"), "OMP_NUM_THREADS": "1"}
    script = "import json, sys; from components.ppo.stage import run; run(**json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", script, json.dumps(together)]
    process = subprocess.Popen(command, env=environment)
    while not list((tmp_path / "checkpoints").glob("*/resume/step-00000[3-9]")):
        assert process.poll() is None, "the stage ended before it could be stopped"
        time.sleep(0.02)

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=120) == 143
    saved = max(int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("*/resume/step-*"))
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert f"resuming after step {saved} of 12" in finished.stderr
    run(**alone)
    _require_same(alone, together)
