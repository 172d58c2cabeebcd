"""Checkpoints and resume: bit for bit, whole or absent, refused when they belong to another training."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_ppo import load_latest, make_trainer, run_arguments

from components.ppo import stage as ppo_stage
from components.ppo.checkpoint import CheckpointStore, TrainingState, random_states, restore_random_states
from components.ppo.errors import CheckpointMismatchError
from components.ppo.stage import run
from components.shared.artifacts import read_artifact
from components.shared.files import read_jsonl

IDENTITY = {
    "inputs": {"policy": "aa", "dataset": "bb"},
    "settings": {"steps": 4, "kl": {"target_nats": 6.0}},
    "seed": 0,
}


def _make_state(step: int = 1) -> TrainingState:
    return TrainingState(
        step=step,
        weights={"policy": {"w": torch.full((2, 2), float(step))}, "value": {"v": torch.ones(1)}},
        optimizers={"policy": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}},
        random=random_states(),
        progress={"kl_coef": 0.1, "history": [{"step": 1}]},
    )


# --- the store -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, IDENTITY)
    store.save(_make_state(3))

    state = load_latest(store)

    assert state is not None
    assert state.step == 3
    assert torch.equal(state.weights["policy"]["w"], torch.full((2, 2), 3.0))
    assert state.optimizers["policy"]["param_groups"] == [{"lr": 0.1}]
    assert state.progress == {"kl_coef": 0.1, "history": [{"step": 1}]}


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_latest(CheckpointStore(tmp_path / "new", IDENTITY)) is None


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, IDENTITY)

    for step in (1, 2, 10):
        store.save(_make_state(step))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000010"]


def test_a_half_written_checkpoint_is_removed_and_the_one_before_it_taken(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, IDENTITY).save(_make_state(1))
    half = tmp_path / ".step-000002.abc"
    half.mkdir()
    (half / "policy.safetensors").write_bytes(b"half")

    store = CheckpointStore(tmp_path, IDENTITY)

    assert not half.exists()
    state = load_latest(store)
    assert state is not None
    assert state.step == 1


@pytest.mark.parametrize("file", ["policy.safetensors", "state.pt", "progress.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, file: str) -> None:
    store = CheckpointStore(tmp_path, IDENTITY)
    store.save(_make_state(1))
    store.save(_make_state(2))
    (tmp_path / "step-000002" / file).write_bytes(b"{")

    state = load_latest(store)

    assert state is not None
    assert state.step == 1


def test_a_checkpoint_of_other_settings_or_inputs_is_refused_with_the_differing_fields(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, IDENTITY).save(_make_state())
    other = json.loads(json.dumps(IDENTITY))
    other["settings"]["kl"]["target_nats"] = 3.0
    other["inputs"]["policy"] = "cc"

    with pytest.raises(CheckpointMismatchError, match=r"inputs\.policy: 'aa' there, 'cc' here; settings\.kl\.target"):
        load_latest(CheckpointStore(tmp_path, other))


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    store = CheckpointStore(tmp_path / "store", IDENTITY)
    checkpoint = store.save(_make_state())
    torch.save({"optimizers": Payload(), "random": {}}, checkpoint / "state.pt")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"].pop("state.pt")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(pickle.UnpicklingError):
        load_latest(store)
    assert not (tmp_path / "ran").exists()


def test_random_states_are_restored() -> None:
    states = random_states()
    drawn = (random.random(), float(np.random.rand()), float(torch.rand(1)))

    restore_random_states(states)

    assert (random.random(), float(np.random.rand()), float(torch.rand(1))) == drawn


# --- the trainer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameterisation", ["full", "lora"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_resumed_training_ends_bit_for_bit_where_the_uninterrupted_one_does(
    tmp_path: Path, parameterisation: str, stop_after: int
) -> None:
    options = {"parameterisation": parameterisation, "kl": {"ceiling_nats": 1e6}, "reward": {"normalise": "running"}}
    whole = make_trainer(**options)
    whole.train()
    first = make_trainer(**options)
    first.train(store=CheckpointStore(tmp_path, IDENTITY), stop_requested=lambda: first.updates == stop_after)
    assert not first.done

    resumed = make_trainer(**options)
    state = load_latest(CheckpointStore(tmp_path, IDENTITY))
    assert state is not None
    resumed.load_state(state)
    assert resumed.updates == stop_after
    resumed.train()

    assert _without_times(resumed.history) == _without_times(whole.history)
    for group in ("policy_parameters", "value_parameters"):
        ours, theirs = getattr(resumed.models, group)(), getattr(whole.models, group)()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# --- the stage, killed -----------------------------------------------------------------------------------------------


def test_a_checkpoint_of_other_code_is_not_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    arguments = run_arguments(tmp_path, steps=3)
    started: list[int] = []

    def stop_at_second(stage: str, step: int, *_: Any, **fields: Any) -> None:
        started.append(step)
        if step == 2:
            raise KeyboardInterrupt

    for code in ("one", "one", "another"):
        monkeypatch.setattr(ppo_stage, "code_version", lambda stage, code=code: f"{stage} {code}")
        monkeypatch.setattr(ppo_stage, "report", stop_at_second)
        with pytest.raises(KeyboardInterrupt):
            run(**arguments)

    assert started == [1, 2, 2, 1, 2]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


LONG = {"steps": 40, "episodes_per_step": 4, "ppo_epochs": 1, "save_every_steps": 2, "evaluate_every_steps": 15}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments of a stage that ran without interruption."""
    arguments = run_arguments(tmp_path_factory.mktemp("whole"), **LONG)
    run(**arguments)
    return arguments


@pytest.mark.parametrize(
    ("how", "after"),
    [
        (signal.SIGKILL, 3),
        (signal.SIGKILL, 13),
        (signal.SIGKILL, 28),
        (signal.SIGTERM, 6),
        (signal.SIGTERM, 21),
    ],
)
def test_a_killed_stage_resumes_to_the_same_outputs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    whole: dict[str, Any],
    how: signal.Signals,
    after: int,
) -> None:
    """Killed at some moment past a checkpoint: goes on from the newest one, and ends bit for bit the same."""
    checkpoints = tmp_path / "checkpoints"
    monkeypatch.setenv("PLUMBLINE_CHECKPOINTS", str(checkpoints))
    arguments = run_arguments(tmp_path, **LONG)

    status = _run_until_killed(arguments, checkpoints, how, after=after)

    assert status == (143 if how == signal.SIGTERM else -signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    saved = max(int(path.name[5:]) for path in checkpoints.glob("*/resume/step-*"))
    assert after <= saved < LONG["steps"]
    caplog.set_level(logging.INFO)
    run(**arguments)
    assert f"resuming after step {saved} of {LONG['steps']}" in caplog.text
    assert not list(checkpoints.glob("*/resume"))
    for output, kind in (("output_policy", "policy"), ("output_checkpoints", "policy_checkpoints")):
        assert read_artifact(arguments[output], kind).digest == read_artifact(whole[output], kind).digest
    rows = [
        _without_times(list(read_jsonl(Path(each["output_history"]) / "history.jsonl"))) for each in (arguments, whole)
    ]
    assert rows[0] == rows[1]


def _run_until_killed(arguments: dict[str, Any], checkpoints: Path, how: signal.Signals, *, after: int) -> int:
    """Starts the stage in a process of its own and kills it, some moment after it has saved step `after` or later."""
    script = "import json, sys; from components.ppo.stage import run; run(**json.loads(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", script, json.dumps(arguments)])
    while all(int(path.name[5:]) < after for path in checkpoints.glob("*/resume/step-*")):
        assert process.poll() is None, "the stage ended before it could be killed"
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.05))
    process.send_signal(how)
    return process.wait(timeout=300)


def _without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if key not in ("seconds", "tokens_per_second")} for row in history]
