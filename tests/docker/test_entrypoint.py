"""The first process of a container, outside of one: what it says of a command that does not start, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ENTRYPOINT = Path(__file__).resolve().parents[2] / "docker" / "entrypoint.py"


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(_ENTRYPOINT), *command], capture_output=True, text=True, timeout=30, check=False
    )


def _make_file(path: Path, content: str, mode: int) -> str:
    path.write_text(content)
    path.chmod(mode)
    return str(path)


def test_a_command_that_is_missing_is_told_in_one_line_and_ends_with_127() -> None:
    ended = _run("plumline", "review")
    assert (ended.returncode, ended.stdout) == (127, "")
    assert ended.stderr == "entrypoint: there is no command 'plumline' in this image, or its interpreter is missing.\n"


def test_no_command_at_all_is_told_and_ends_with_127() -> None:
    ended = _run()
    assert (ended.returncode, ended.stderr) == (127, "entrypoint: no command is given.\n")


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [("#!/bin/sh\n", 0o644, "Permission denied"), ("no program", 0o755, "Exec format error")],
    ids=["no right to execute", "no program"],
)
def test_what_cannot_be_executed_is_told_in_one_line_and_ends_with_126(
    tmp_path: Path, content: str, mode: int, why: str
) -> None:
    program = _make_file(tmp_path / "program", content, mode)
    ended = _run(program)
    assert (ended.returncode, ended.stderr) == (126, f"entrypoint: {program!r} cannot be executed: {why}.\n")


def test_a_folder_is_no_command(tmp_path: Path) -> None:
    assert _run(str(tmp_path)).returncode == 126


def test_a_script_whose_interpreter_is_missing_ends_with_127(tmp_path: Path) -> None:
    program = _make_file(tmp_path / "script", "#!/nowhere/python\n", 0o755)
    assert _run(program).returncode == 127


def test_the_status_of_a_command_that_starts_is_its_own() -> None:
    assert _run("sh", "-c", "exit 3").returncode == 3
    assert _run("sh", "-c", "kill -9 $$").returncode == 137
