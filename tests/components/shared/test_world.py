"""How long processes wait for one another: hours for the one that writes, the ordinary time in a training step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import patience_cases
import pytest

from components.shared.errors import InputError
from components.shared.files import read_json
from components.shared.world import World

_TIMEOUT = "PLUMBLINE_COLLECTIVE_TIMEOUT_SECONDS"


@pytest.mark.slow
def test_the_one_that_writes_is_waited_for_and_one_that_is_missing_in_a_step_is_not(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), _TIMEOUT: "3"}
    command = [*launcher, patience_cases.__file__, str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (tmp_path / "told.json").exists(), ended.stderr[-3000:]
    told = read_json(tmp_path / "told.json")
    assert told["said"] == [0, 0]
    assert "imed out" in told["fault"]
    assert 2.9 < told["waited"] < patience_cases._GIVEN_UP_SECONDS


@pytest.mark.parametrize("given", ["soon", "0", "-5", "1.5"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_TIMEOUT, given)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=f"{_TIMEOUT}: is {given!r}"):
        World.join()
