"""What `test_joint_training` runs in two processes: `python -m torch.distributed.run ... joint_cases.py FOLDER`.

`FOLDER` holds what one process made of the same inputs, and an interrupted training of one process. Case by case the
first process notes in `FOLDER/passed.json` what the processes came through, and figures in `FOLDER/measured.json`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import joint_world as given
import pytest
import torch

from components.shared import hf_training
from components.shared.errors import InputError, PlumblineError
from components.shared.files import read_json, read_jsonl, write_json
from components.shared.hf_checkpoints import CHECKPOINTS_VARIABLE
from components.shared.world import World


def _require_like(folder: Path, name: str, *, within: float) -> None:
    """What two processes learned is what one learned, to rounding; and so is what was logged on the way."""
    difference = given.difference(folder / "alone" / name, folder / "together" / name)
    measured = folder / "measured.json"
    write_json(measured, (read_json(measured) if measured.exists() else {}) | {name: difference})
    assert difference < within, difference
    rows = [
        list(read_jsonl(next((folder / who / name).glob("*history.jsonl" if "sft" in name else "training.jsonl"))))
        for who in ("alone", "together")
    ]
    for one, other in zip(*rows, strict=True):
        for column in one.keys() - {"num_tokens", "eval_num_tokens"}:
            assert other[column] == pytest.approx(one[column], abs=1e-4, rel=1e-3), (one["step"], column)


def sft_learns_what_one_process_learns(world: World, folder: Path) -> None:
    for name in given.SFT:
        given.run_sft(folder, "together", name)
        if world.is_main:
            _require_like(folder, name, within=1e-5)


def the_reward_model_learns_what_one_process_learns(world: World, folder: Path) -> None:
    for name in given.REWARD_MODEL:
        given.run_reward_model(folder, "together", name)
        if world.is_main:
            _require_like(folder, name, within=1e-5)


def a_training_that_one_process_began_goes_on_here(world: World, folder: Path) -> None:
    steps: list[int] = []
    with (
        mock.patch.dict(os.environ, {CHECKPOINTS_VARIABLE: str(folder / "begun")}),
        mock.patch.object(hf_training, "report", lambda label, done, total, **_: steps.append(done)),
    ):
        given.run_sft(folder, "went-on", given.INTERRUPTED)
    if world.is_main:
        assert steps[0] == given.INTERRUPTED_AT + 1
        assert given.difference(folder / "alone" / given.INTERRUPTED, folder / "went-on" / given.INTERRUPTED) < 1e-5


def one_process_is_told_to_stop_and_all_stop_after_the_same_step(world: World, folder: Path) -> None:
    """The checkpoint is whole, and from it both go on to the weights of an undisturbed training, bit for bit."""
    told = world.gathered(os.getpid())[1]

    def report(label: str, done: int, total: int, **_: Any) -> None:
        if done == 7:
            os.kill(told, signal.SIGTERM)

    checkpoints = folder / "stopped"
    with mock.patch.dict(os.environ, {CHECKPOINTS_VARIABLE: str(checkpoints)}):
        with mock.patch.object(hf_training, "report", report), pytest.raises(SystemExit) as ended:
            given.run_sft(folder, "stopped", "sft-full")
        assert ended.value.code == 143
        assert not (folder / "stopped" / "sft-full").exists()
        saved = [path.name for path in checkpoints.glob("*/checkpoint-*") if (path / "complete.json").is_file()]
        assert [int(name.rpartition("-")[2]) in (7, 8) for name in sorted(saved)][-1:] == [True], saved
        world.wait()
        given.run_sft(folder, "resumed", "sft-full")
    if world.is_main:
        assert given.difference(folder / "together" / "sft-full", folder / "resumed" / "sft-full") == 0.0
        assert list(checkpoints.iterdir()) == []


def random_states_of_all_processes_are_in_the_checkpoint(world: World, folder: Path) -> None:
    """With dropout each draws its own, and a resumed training draws on: the same weights, bit for bit."""
    given.run_sft(folder, "together", given.DROPOUT)

    def crash(label: str, done: int, total: int, **_: Any) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with mock.patch.dict(os.environ, {CHECKPOINTS_VARIABLE: str(folder / "crashed")}):
        if world.is_main:
            patched = mock.patch.object(hf_training, "report", crash)
        else:
            patched = mock.patch.object(hf_training._StageCallback, "on_step_end", _crash_at_ten)
        with patched, pytest.raises(KeyboardInterrupt):
            given.run_sft(folder, "resumed", given.DROPOUT)
        world.wait()
        given.run_sft(folder, "resumed", given.DROPOUT)
    if world.is_main:
        assert given.difference(folder / "together" / given.DROPOUT, folder / "resumed" / given.DROPOUT) == 0.0


_on_step_end = hf_training._StageCallback.on_step_end


def _crash_at_ten(self: Any, args: Any, state: Any, control: Any, **_: Any) -> Any:
    if state.global_step == 10:
        raise KeyboardInterrupt
    return _on_step_end(self, args, state, control)


def what_fails_in_one_process_is_raised_in_all(world: World, folder: Path) -> None:
    def fail() -> int:
        if world.is_main:
            raise InputError("is missing.", where="a file", hint="Look for it.")
        return 1

    with pytest.raises(InputError, match=r"a file: is missing\. Look for it\."):
        world.together(fail)
    with pytest.raises((ZeroDivisionError, PlumblineError), match="by zero"):
        world.together(lambda: 1 // (1 - world.rank))
    assert world.together(lambda: world.rank) == world.rank
    assert world.from_main(world.rank) == 0


def a_disk_that_is_full_where_the_first_writes_ends_all(world: World, folder: Path) -> None:
    from components.sft import stage

    full = mock.patch.object(stage, "save_policy", side_effect=OSError(28, "No space left on device"))
    with full, pytest.raises(PlumblineError, match="the disk is full"):
        given.run_sft(folder, "full-disk", "sft-full")
    assert not (folder / "full-disk" / "sft-full").exists()


def a_batch_that_cannot_be_dealt_evenly_is_refused(world: World, folder: Path) -> None:
    with pytest.raises(InputError, match=r"a batch of 3 cannot be dealt evenly among 2 processes"):
        given.run_sft(folder, "uneven", "sft-full", batch_size=3)


CASES: list[Callable[[World, Path], None]] = [
    what_fails_in_one_process_is_raised_in_all,
    sft_learns_what_one_process_learns,
    the_reward_model_learns_what_one_process_learns,
    a_training_that_one_process_began_goes_on_here,
    one_process_is_told_to_stop_and_all_stop_after_the_same_step,
    random_states_of_all_processes_are_in_the_checkpoint,
    a_disk_that_is_full_where_the_first_writes_ends_all,
    a_batch_that_cannot_be_dealt_evenly_is_refused,
]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    world = World.join()
    leave, World.leave = World.leave, lambda self: None  # each run of a stage would end the group
    passed: list[str] = []
    for case in CASES:
        case(world, folder)
        world.wait()
        passed.append(case.__name__)
        if world.is_main:
            write_json(folder / "passed.json", passed)
    leave(world)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
