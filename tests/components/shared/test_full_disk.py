"""A full disk is told in plain words, whichever library ran into it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from components.shared.errors import InputError, PlumblineError
from components.shared.files import write_text
from components.shared.full_disk import full_disk
from components.shared.tracking import stage_run


def _write() -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def _insert() -> None:
    with sqlite3.connect(":memory:") as database:
        database.execute("create table t (a)")
        database.execute("pragma max_page_count = 3")
        database.executemany("insert into t values (?)", [("x" * 1000,)] * 100)


def _save_safetensors() -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def _save_torch() -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


def _wrap() -> None:
    try:
        _write()
    except OSError as error:
        raise RuntimeError("checkpoint not written") from error


@pytest.mark.parametrize("write", [_write, _insert, _save_safetensors, _save_torch, _wrap])
def test_a_stage_whose_disk_is_full_says_so_and_what_to_do(write: Callable[[], None]) -> None:
    with pytest.raises(PlumblineError, match="the disk is full") as caught, stage_run("sft"):
        write()
    assert "TMPDIR" in str(caught.value)
    assert caught.value.__cause__ is not None, "the log keeps the library's own words"


def test_the_file_is_named(tmp_path: Path) -> None:
    error = OSError(28, "No space left on device", str(tmp_path / "weights"))
    told = full_disk(error)
    assert told is not None
    assert str(told).startswith(f"{tmp_path / 'weights'}: the disk is full.")
    quota = full_disk(OSError(122, "Disk quota exceeded"))
    assert quota is not None
    assert "quota" in str(quota)


@pytest.mark.parametrize(
    "error", [ValueError("x"), PermissionError(13, "no"), InputError("the disk is full."), SystemExit(1)]
)
def test_any_other_error_stays_what_it_is(error: BaseException) -> None:
    assert full_disk(error) is None
    with pytest.raises(type(error)) as caught, stage_run("sft"):
        raise error
    assert caught.value is error


def test_a_progress_file_on_the_full_disk_does_not_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_PROGRESS", "/dev/full")
    with pytest.raises(PlumblineError, match="the disk is full"), stage_run("sft"):
        _write()


def test_a_write_aside_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: _write())
    with pytest.raises(PlumblineError, match="the disk is full"), stage_run("sft"):
        write_text(tmp_path / "summary.json", "{}")
    assert list(tmp_path.iterdir()) == []
