"""The command line: help, exit statuses, errors in plain words, JSON for programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from components.shared.files import write_json
from pipelines.cli import cli


def _plumbline(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_has_help_that_says_what_it_does(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert cli.commands[command].help


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--settings", "absent.yaml"], "no such settings file"),
        (["run", "--settings", "broken.yaml"], "ppo.stps: unknown setting"),
        (["status", "--workspace", "absent"], "no such workspace"),
        (["demo", "--scenario", "forced"], "there is no blocked version to force"),
        (["rollback", "nobody", "--reason", "test"], "does not know model"),
        (["soak", "--model", "nobody"], "has no live version"),
    ],
)
def test_wrong_use_ends_with_one_line_that_says_what_to_do(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "broken.yaml").write_text("name: x\nppo: {stps: 3}\n")
    result = _plumbline(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["rollback", "m", "--reason", "x"],
        ["status"],
        ["history", "m"],
        ["verify", "m"],
        ["audit", "m"],
        ["repair", "m"],
    ],
)
@pytest.mark.parametrize("database", ["away", "damaged"])
def test_a_database_that_refuses_is_named_in_one_line(
    tmp_path: Path, arguments: list[str], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "runs"
    (workspace / "state").mkdir(parents=True)
    (workspace / "state" / "evidence.db").write_bytes(b"no database " * 1000)
    if database == "away":
        monkeypatch.setenv("PLUMBLINE_DATABASE_URL", "postgresql+pg8000://u:secret@127.0.0.1:1/x")

    result = _plumbline(*arguments, cwd=tmp_path)

    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: PLUMBLINE_DATABASE_URL: ")
    assert "Traceback" not in result.stderr
    assert "secret" not in result.stderr


@pytest.mark.parametrize("arguments", [["compile", "--settings", "demo", "-o"], ["demo", "--workspace"]])
def test_a_path_below_a_file_is_named_in_one_line(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "file").write_text("")
    result = _plumbline(*arguments, "file/below", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in result.stderr


def test_status_lists_runs_as_json(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine-20260101-000000"
    run.mkdir(parents=True)
    settings = {"name": "mine", "model_name": "mine", "base_model": "m"}
    settings["data"] = {"sft": "s", "prompts": "p", "preferences": "q"}  # type: ignore[assignment]
    (run / "settings.yaml").write_text(yaml.safe_dump(settings))
    write_json(run / "summary.json", {"status": "SUCCEEDED", "verdict": "HOLD", "seconds": {"total": 7.0}})
    result = _plumbline("status", "--json", cwd=tmp_path)
    assert result.returncode == 0
    found = json.loads(result.stdout)
    assert found["runs"][0]["verdict"] == "HOLD"
    assert found["models"] == [{"model": "mine", "champion": None}]


def test_a_model_that_the_ledger_does_not_know_is_not_taken_for_one_with_an_intact_ledger(tmp_path: Path) -> None:
    for command in ("verify", "history"):
        asked = _plumbline(command, "nobody", "--json", cwd=tmp_path)
        assert asked.returncode == 2
        assert "does not know model 'nobody'" in asked.stderr
