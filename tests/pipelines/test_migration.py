"""`plumbline migrate`: waits for the database, migrates once, and says what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from postgres_server import find_postgres, run_postgres
from sqlalchemy import create_engine, inspect

from components.shared.errors import InputError
from components.shared.ledger_table import LEDGER
from pipelines.cli import cli
from pipelines.migration import migrate


@pytest.fixture
def sqlite_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/plumbline.db"
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", url)
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", str(tmp_path / "anchor"))
    return url


def test_an_empty_database_gets_its_tables_and_a_second_time_changes_nothing(sqlite_url: str) -> None:
    first, second = migrate(), migrate()
    assert first.before is None
    assert second.before == first.after == second.after
    assert {LEDGER.name, "evidence_batches"} <= set(inspect(create_engine(sqlite_url)).get_table_names())


def test_the_command_says_what_it_did(sqlite_url: str, tmp_path: Path) -> None:
    told = CliRunner().invoke(cli, ["migrate", "--json", "--workspace", str(tmp_path / "runs")])
    assert told.exit_code == 0
    assert json.loads(told.output)["before"] is None
    told = CliRunner().invoke(cli, ["migrate", "--workspace", str(tmp_path / "runs")])
    assert "already" in told.output


@pytest.mark.slow
def test_migrations_at_once_wait_for_each_other_on_postgres(postgres_url: str, tmp_path: Path) -> None:
    environment = os.environ | {"PLUMBLINE_DATABASE_URL": _new_database(postgres_url)}
    command = [sys.executable, "-m", "pipelines.cli", "migrate", "--json", "--workspace", str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({one["after"] for one in told}) == 1
    assert any(one["before"] is None for one in told)


@pytest.mark.slow
def test_a_database_that_starts_later_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = find_postgres()
    if programs is None:
        if os.environ.get("PLUMBLINE_REQUIRE_POSTGRES"):
            pytest.fail("Postgres is not installed")
        pytest.skip("Postgres is not installed")
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", str(tmp_path / "anchor"))
    link = tmp_path / "socket"
    url = f"postgresql+pg8000://tests@/postgres?unix_sock={link}/.s.PGSQL.5432"
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", url)
    with pytest.raises(InputError, match="does not let us in"):
        migrate(wait_seconds=0.1)
    results: list[object] = []
    waiting = threading.Thread(target=lambda: results.append(migrate(wait_seconds=60.0)))
    waiting.start()
    time.sleep(1.0)
    (tmp_path / "server").mkdir()
    with run_postgres(programs, tmp_path / "server") as there:
        link.symlink_to(Path(there.partition("unix_sock=")[2]).parent)
        waiting.join(timeout=60.0)
        assert len(results) == 1


def test_without_a_database_or_with_one_that_refuses_it_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PLUMBLINE_DATABASE_URL", raising=False)
    with pytest.raises(InputError, match="not set"):
        migrate()
    (tmp_path / "file").write_text("no database, but long enough to be taken for one at first sight")
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", f"sqlite:///{tmp_path}/file")
    began = time.monotonic()
    with pytest.raises(InputError, match="does not let us in"):
        migrate(wait_seconds=30.0)
    assert time.monotonic() - began < 5.0


def _new_database(url: str) -> str:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE migrated")
    engine.dispose()
    return url.replace("/postgres?", "/migrated?")
