"""Several processes: what they do together is what one does alone, and signals and errors come through."""

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
import torch
from safetensors.torch import load_file
from tiny_ppo import run_arguments

from components.ppo.stage import run
from components.shared.errors import PlumblineError
from components.shared.files import read_jsonl

pytestmark = pytest.mark.slow


def _rows(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    return list(read_jsonl(Path(arguments["output_history"]) / "history.jsonl"))


@pytest.mark.parametrize(
    "settings",
    [
        {"parameterisation": "full"},
        {"parameterisation": "lora", "minibatches": 2, "samples_per_prompt": 2},
        {"parameterisation": "lora", "value_model": "shared_trunk", "microbatch": 8},
    ],
    ids=["full", "lora", "shared trunk, less work than processes"],
)
def test_two_processes_reproduce_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Same global batch: histories and weights agree to rounding; only the first process writes."""
    alone = run_arguments(tmp_path / "alone", **settings)
    together = run_arguments(tmp_path / "together", processes=2, **settings)

    run(**alone)
    result = run(**together)

    assert result["step"] == 4
    for one, other in zip(_rows(alone), _rows(together), strict=True):
        for column in ("reward_mean", "kl", "kl_coef", "entropy", "policy_loss", "value_loss", "grad_norm"):
            assert other[column] == pytest.approx(one[column], abs=1e-4, rel=1e-3), (one["step"], column)
        assert other["response_tokens"] == one["response_tokens"]
    weights = [load_file(Path(each["output_policy"]) / "model.safetensors") for each in (alone, together)]
    for name, tensor in weights[0].items():
        assert torch.allclose(weights[1][name], tensor, atol=1e-3), name


def test_an_error_in_the_processes_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(PlumblineError, match="limit of 64 tokens"):
        run(**run_arguments(tmp_path, processes=2, max_response_tokens=100))


def test_sigterm_lets_all_processes_save_and_the_run_goes_on_from_there(tmp_path: Path) -> None:
    settings = {"steps": 30, "ppo_epochs": 1, "save_every_steps": 1, "processes": 2}
    arguments = run_arguments(tmp_path, **settings)
    environment = os.environ | {"PLUMBLINE_CHECKPOINTS": str(tmp_path / "checkpoints"), "OMP_NUM_THREADS": "1"}
    script = "import json, sys; from components.ppo.stage import run; run(**json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", script, json.dumps(arguments)]
    process = subprocess.Popen(command, env=environment)
    while not list((tmp_path / "checkpoints").glob("*/resume/step-00000[3-9]")):
        assert process.poll() is None, "the stage ended before it could be stopped"
        time.sleep(0.02)

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=120) == 143
    assert not (tmp_path / "out").exists()
    saved = max(int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("*/resume/step-*"))
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert f"resuming after step {saved} of 30" in finished.stderr
    assert len(_rows(arguments)) == 30
