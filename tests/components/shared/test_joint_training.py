"""Stages on Hugging Face's Trainer in several processes: what they learn together is what one learns alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.extend(str(Path(__file__).resolve().parents[1] / stage) for stage in ("sft", "reward_model"))

import joint_cases
import joint_world as given

from components.shared import hf_training
from components.shared.hf_checkpoints import CHECKPOINTS_VARIABLE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """Names of the cases that two processes came through, and what they said."""
    folder = tmp_path_factory.mktemp("joint")
    given.make_inputs(folder)
    for name in given.SFT:
        given.run_sft(folder, "alone", name)
    for name in given.REWARD_MODEL:
        given.run_reward_model(folder, "alone", name)
    _begin(folder)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*launcher, joint_cases.__file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    file = folder / "passed.json"
    measured = folder / "measured.json"
    told = measured.read_text() if measured.exists() else ""
    return json.loads(file.read_text()) if file.exists() else [], told + done.stderr[-6000:]


def _begin(folder: Path) -> None:
    """A training of one process that ends in its middle."""

    def crash(label: str, done: int, total: int, **_: float) -> None:
        if done == given.INTERRUPTED_AT + 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CHECKPOINTS_VARIABLE, str(folder / "begun"))
        patch.setattr(hf_training, "report", crash)
        with pytest.raises(KeyboardInterrupt):
            given.run_sft(folder, "begun-alone", given.INTERRUPTED)


@pytest.mark.parametrize("case", [case.__name__ for case in joint_cases.CASES])
def test_two_processes(passed: tuple[list[str], str], case: str) -> None:
    names, told = passed
    assert case in names, told
