from __future__ import annotations

from pathlib import Path

import pytest

from components.shared.errors import PlumblineError
from components.shared.hf_checkpoints import CHECKPOINTS_VARIABLE, latest_checkpoint, seal_checkpoint, training_folder


def make_checkpoint(folder: Path, step: int, *, sealed: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(bytes([step % 256]) * 10)
    (checkpoint / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    if sealed:
        seal_checkpoint(checkpoint)
    return checkpoint


def test_the_newest_whole_checkpoint_is_found_by_number_and_not_by_name(tmp_path):
    make_checkpoint(tmp_path, 9)
    newest = make_checkpoint(tmp_path, 10)
    assert latest_checkpoint(tmp_path) == newest


def test_a_checkpoint_without_a_seal_does_not_count_and_is_removed(tmp_path):
    whole = make_checkpoint(tmp_path, 5)
    unfinished = make_checkpoint(tmp_path, 10, sealed=False)
    assert latest_checkpoint(tmp_path) == whole
    assert not unfinished.exists()


@pytest.mark.parametrize("damage", ["alter", "delete", "garble the seal"])
def test_a_damaged_checkpoint_does_not_count(tmp_path, damage):
    whole = make_checkpoint(tmp_path, 5)
    damaged = make_checkpoint(tmp_path, 10)
    if damage == "alter":
        (damaged / "model.safetensors").write_bytes(b"other")
    elif damage == "delete":
        (damaged / "trainer_state.json").unlink()
    else:
        (damaged / "complete.json").write_text("{")
    assert latest_checkpoint(tmp_path) == whole


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None


def test_the_folder_is_the_same_for_the_same_run_and_another_for_another(tmp_path, monkeypatch):
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(tmp_path))
    paths = []
    for seed in (0, 0, 1):
        with pytest.raises(RuntimeError), training_folder({"seed": seed}) as folder:
            assert folder.durable
            paths.append(folder.path)
            raise RuntimeError
    assert paths[0] == paths[1] != paths[2]


def test_the_folder_outlives_a_failure_and_goes_with_success(tmp_path, monkeypatch):
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(tmp_path))
    with pytest.raises(RuntimeError), training_folder({"seed": 0}) as folder:
        make_checkpoint(folder.path, 5)
        raise RuntimeError
    with training_folder({"seed": 0}) as folder:
        assert latest_checkpoint(folder.path) is not None
    assert not folder.path.exists()


def test_two_processes_do_not_train_the_same_run_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(tmp_path))
    with training_folder({"seed": 0}), pytest.raises(PlumblineError, match="another process"):
        training_folder({"seed": 0}).__enter__()


def test_without_a_place_for_checkpoints_the_folder_is_temporary(monkeypatch):
    monkeypatch.delenv(CHECKPOINTS_VARIABLE, raising=False)
    with training_folder({"seed": 0}) as folder:
        assert folder.path.is_dir()
        assert not folder.durable
    assert not folder.path.exists()
