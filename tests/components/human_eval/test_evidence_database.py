"""The evidence database: grows only, adds once, and may be opened by many at once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text
from tiny_panels import make_batch, make_item, make_judgement

from components.human_eval import schema
from components.human_eval.batch import Batch
from components.human_eval.database import EvidenceDatabase, judgement_id, open_database
from components.human_eval.schema import (
    DRAFTS,
    SIGN_IN,
    TABLES,
    VERSION_TABLE,
    EvidenceBase,
    ImportRow,
    InterventionRow,
    LeaseRow,
    PracticeRow,
    SkipRow,
)
from components.shared.errors import InputError, PlumblineError
from components.shared.ledger_table import LEDGER, METADATA, open_engine
from components.shared.release_tables import METADATA as RELEASE_METADATA


def _open(folder: Path) -> EvidenceDatabase:
    return open_database(_url(folder))


def _url(folder: Path) -> str:
    return f"sqlite:///{folder}/evidence.db"


def _opened_batch(folder: Path, *, n_items: int = 2) -> tuple[EvidenceDatabase, Batch]:
    database, batch = _open(folder), make_batch([make_item(number) for number in range(n_items)])
    database.open_batch(batch)
    return database, batch


def _fill(database: EvidenceDatabase) -> None:
    """At least one row in every append-only table; the closure is another batch's."""
    database.open_batch(make_batch([make_item(0)]))
    database.add_judgements([make_judgement("item-0")])
    task = {"task_id": "task", "item_id": "item-0", "rater": "rater-1"}
    with database.transaction(write=True) as connection:
        lease = {"lease_id": "lease", "kind": "vote", "number": 0, "granted_at": "now", "expires_at": "soon"}
        database.add(connection, LeaseRow, [task | lease])
        database.add(connection, SkipRow, [task | {"kind": "vote", "reason": None, "created_at": "now"}])
        practice = {"swapped": False, "choice": "a", "correct": True, "created_at": "now"}
        database.add(connection, PracticeRow, [task | practice])
        intervention = {"kind": "return_skip", "rater": None, "votes": 0, "actor": "manager", "reason": "why"}
        about = {"intervention_id": "act", "batch_id": "batch", "item_id": "item-0", "created_at": "now"}
        database.add(connection, InterventionRow, [about | intervention])
        imported = {"import_id": "import", "batch_id": "batch", "actor": "manager", "written_by": "root@host"}
        file = {"source": "labels.json", "digest": "d", "labels": 1, "created_at": "now"}
        database.add(connection, ImportRow, [imported | file])
    database.open_batch(replace(make_batch([]), batch_id="closed-batch"))
    database.close("closed-batch", actor="manager", reason="enough")


def test_adding_twice_adds_once(tmp_path: Path) -> None:
    database, batch = _opened_batch(tmp_path)
    votes = [make_judgement("item-0"), make_judgement("item-1")]
    database.open_batch(batch)
    assert database.add_judgements(votes) == {vote.judgement_id for vote in votes}
    assert database.add_judgements([*votes, make_judgement("item-0", "rater-2")]) == {
        judgement_id("item-0", "rater-2", "vote")
    }
    assert len(database.judgements("batch")) == 3


def test_a_second_vote_of_the_same_rater_on_the_same_item_is_not_counted(tmp_path: Path) -> None:
    database, _ = _opened_batch(tmp_path)
    first = make_judgement("item-0", prefers="first")
    database.add_judgements([first])
    assert database.add_judgements([make_judgement("item-0", prefers="second")]) == set()
    assert database.judgements("batch") == [first]


def test_a_correction_is_a_new_row_and_both_stay(tmp_path: Path) -> None:
    database, _ = _opened_batch(tmp_path)
    first = make_judgement("item-0", prefers="first")
    corrected = make_judgement("item-0", prefers="second", revision=1, supersedes=first.judgement_id)
    database.add_judgements([first])
    database.add_judgements([corrected])
    assert len(database.judgements("batch")) == 2


def test_what_was_corrected_cannot_be_corrected_again(tmp_path: Path) -> None:
    database, _ = _opened_batch(tmp_path)
    first = make_judgement("item-0")
    database.add_judgements([first, make_judgement("item-0", revision=1, supersedes=first.judgement_id)])
    with pytest.raises(PlumblineError, match="refused"):
        database.add_judgements([make_judgement("item-0", revision=2, supersedes=first.judgement_id)])


@pytest.mark.parametrize(
    "change",
    [
        {"item_id": "item-99"},
        {"choice": "left"},
        {"rater_kind": "robot"},
        {"supersedes": "nobody", "revision": 1},
        {"revision": 1},
    ],
)
def test_judgements_that_make_no_sense_are_refused_and_none_of_them_is_kept(tmp_path: Path, change: dict) -> None:
    database, _ = _opened_batch(tmp_path)
    with pytest.raises(PlumblineError, match="PLUMBLINE_DATABASE_URL: the evidence database refused"):
        database.add_judgements([make_judgement("item-0"), replace(make_judgement("item-1"), **change)])
    assert database.judgements("batch") == []


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("action", ["UPDATE {} SET created_at = 'never'", "DELETE FROM {}"])
def test_rows_can_be_neither_changed_nor_deleted(tmp_path: Path, table: str, action: str) -> None:
    _fill(_open(tmp_path))
    action = action.replace(
        "created_at", {"evidence_items": "slice", "evidence_leases": "granted_at"}.get(table, "created_at")
    )
    with create_engine(_url(tmp_path)).connect() as connection, pytest.raises(Exception, match="append-only"):
        connection.execute(text(action.format(table)))


@pytest.mark.parametrize("table", ["evidence_judgements", "evidence_leases", "evidence_skips", "evidence_practice"])
def test_a_closed_batch_accepts_nothing_whoever_writes(tmp_path: Path, table: str) -> None:
    database = _open(tmp_path)
    _fill(database)
    database.close("batch", actor="manager", reason="enough")
    with create_engine(_url(tmp_path)).connect() as connection:
        row = dict(connection.execute(text(f"SELECT * FROM {table}")).mappings().one())
        key = next(iter(row))
        columns = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        with pytest.raises(Exception, match="the batch is closed"):
            connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({values})"), {**row, key: "another"})


def test_a_batch_is_closed_once_by_a_named_person_for_a_reason(tmp_path: Path) -> None:
    database, _ = _opened_batch(tmp_path)
    assert database.closure("batch") is None
    with pytest.raises(InputError, match="by somebody, for a reason"):
        database.close("batch", actor="manager", reason=" ")
    first = database.close("batch", actor="manager", reason="enough")
    assert database.close("batch", actor="another", reason="too late") == first == database.closure("batch")
    with pytest.raises(PlumblineError):
        database.close("no-such-batch", actor="manager", reason="enough")


def test_a_batch_is_read_back_as_it_was_stored(tmp_path: Path) -> None:
    database, batch = _opened_batch(tmp_path, n_items=3)
    assert database.batch("batch") == batch
    assert database.batch_ids() == ["batch"]
    with pytest.raises(InputError, match="no batch 'other'"):
        database.batch("other")


def test_evidence_of_the_first_version_is_kept_and_can_be_added_to(tmp_path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    engine = open_engine(_url(tmp_path))
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        config = Config()
        config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text("INSERT INTO evidence_batches VALUES ('batch', 'e', 'd', '{}', '{}', 0, 'then')"))
        item = "'item-0', 'batch', 'candidate_vs_reference', 'pair', 0, 'p', 's', '\"q\"'"
        answer = '{"role": "candidate", "response": "c", "n_tokens": 1, "finished": true}'
        connection.exec_driver_sql(f"INSERT INTO evidence_items VALUES ({item}, '{answer}', '{answer}')")
        vote = "'j', 'item-0', 'r', 'human', 'vote', 0, NULL, 0, 'a', '[]', '[]', NULL, 'then'"
        connection.exec_driver_sql(f"INSERT INTO evidence_judgements VALUES ({vote})")
    database = _open(tmp_path)
    assert [found.rubric for found in database.judgements("batch")] == [None]
    database.add_judgements([make_judgement("item-0", rubric={"helpful": "a"})])
    assert {"helpful": "a"} in [found.rubric for found in database.judgements("batch")]


def _is_evidence(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "table" or name in EvidenceBase.metadata.tables


def test_the_migrations_make_the_tables_of_the_models(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    _open(tmp_path)
    with create_engine(_url(tmp_path)).connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"version_table": VERSION_TABLE, "compare_type": True, "include_name": _is_evidence},
        )
        assert compare_metadata(context, EvidenceBase.metadata) == []


def test_the_ledger_may_live_in_the_same_database(tmp_path: Path) -> None:
    engine = create_engine(_url(tmp_path))
    METADATA.create_all(engine)
    _open(tmp_path)
    assert {LEDGER.name, VERSION_TABLE, DRAFTS, *SIGN_IN, *TABLES, *RELEASE_METADATA.tables} == set(
        inspect(engine).get_table_names()
    )


def test_many_processes_may_open_a_new_database_and_add_the_same_votes_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from tiny_panels import make_batch, make_item, make_judgement\n"
        "from components.human_eval.database import open_database\n"
        "database = open_database(sys.argv[1])\n"
        "database.open_batch(make_batch([make_item(n) for n in range(200)]))\n"
        "print(len(database.add_judgements([make_judgement(f'item-{n}') for n in range(200)])))\n"
    )
    arguments = [sys.executable, "-c", code, _url(tmp_path), str(Path(__file__).parent)]
    processes = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, results
    assert sorted(int(out) for out, _ in results) == [0, 0, 200]
    assert len(_open(tmp_path).judgements("batch")) == 200


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    _open(tmp_path)
    with create_engine(_url(tmp_path)).begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(InputError, match="another version"):
        _open(tmp_path)


def test_an_unsupported_or_unreachable_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a database, but long enough to be taken for one at first sight")
    with pytest.raises(InputError, match="cannot open the evidence database"):
        open_database(f"sqlite:///{tmp_path}/file")
    with pytest.raises(InputError, match="cannot open the evidence database"):
        open_database(f"sqlite:///{tmp_path}/file/below/evidence.db")
