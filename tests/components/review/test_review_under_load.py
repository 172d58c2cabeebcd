"""A small load on the real processes: locust's raters, `plumbline review`, Postgres; killed and started again mid-way.

`make load-review` is the large one, with times; here nothing is timed.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from benchmarks.review.stand import count_votes, open_stand, run_raters


@pytest.fixture
def database_of_its_own(postgres_url: str) -> str:
    name = f"load_{uuid.uuid4().hex}"
    with create_engine(postgres_url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return postgres_url.replace("/postgres?", f"/{name}?")


@pytest.mark.slow
def test_no_vote_is_lost_or_doubled_though_the_service_is_killed(database_of_its_own: str, tmp_path: Path) -> None:
    with open_stand(tmp_path, database_of_its_own, raters=6, pairs=200) as stand:
        found = run_raters(stand, tmp_path, requests_per_second=24, seconds=20, kill_after=(6.0,))
        counted = count_votes(stand, tmp_path / "journal.jsonl")
        assert stand.service.restarts == 1
    assert counted.acknowledged > 5, "so slow that nothing was tried"
    assert (counted.lost, counted.doubled, counted.unasked, counted.refused, counted.overfull) == (0, 0, 0, 0, 0)
    assert counted.stored == counted.acknowledged + counted.unanswered
    assert found["without_answer"] > 0, "the kill was not felt by anybody"


@pytest.mark.slow
def test_the_count_finds_a_lost_a_doubled_and_a_foreign_vote(database_of_its_own: str, tmp_path: Path) -> None:
    """The check itself can fail: it is given a journal and a database that disagree."""
    with open_stand(tmp_path, database_of_its_own, raters=2, pairs=60) as stand:
        run_raters(stand, tmp_path, requests_per_second=12, seconds=8)
        journal = tmp_path / "journal.jsonl"
        lines = journal.read_text().splitlines()
        acknowledged = [line for line in lines if '"acknowledged"' in line and '"feedback": null' in line]
        assert count_votes(stand, journal).sound
        journal.write_text("\n".join([*lines, acknowledged[0].replace('"task_id": "', '"task_id": "x', 1)]) + "\n")
        assert count_votes(stand, journal).lost == 1
        gone = acknowledged[0].partition('"task_id": "')[2][:32]
        journal.write_text("\n".join(line for line in lines if gone not in line) + "\n")
        assert count_votes(stand, journal).unasked == 1
