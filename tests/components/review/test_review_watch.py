"""The watch over evidence: each batch's end starts one release run, whatever is killed and however many watch."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from review_world import SECRET, Client, make_item, make_judgement, make_settings, open_batch, serve_on_loopback

from components.human_eval.database import EvidenceDatabase, open_database
from components.human_eval.desk import RatingDesk
from components.review.app import create_app
from components.review.watch import Watch
from components.shared.errors import PlumblineError
from components.shared.notices import WEBHOOK_VARIABLE
from components.shared.release_orders import ReleaseOrder, ReleaseOrders, make_order

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from webhook_receiver import receive

_HERE = Path(__file__).parent


class _Starts:
    """Remembers what was started."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.attempts: list[int] = []
        self._problem = problem

    def __call__(self, order: ReleaseOrder, attempt: int) -> None:
        self.attempts.append(attempt)
        if self._problem:
            raise self._problem


def _order(database: EvidenceDatabase, batch_id: str) -> ReleaseOrder:
    """A candidate of which the gate has said that it waits for the batch."""
    order = make_order(
        batch_id=batch_id,
        model="demo",
        version="3",
        mode="candidate",
        run="run-1",
        policy="demo",
        seed=0,
        settings={},
        artifacts={},
    )
    ReleaseOrders(database.engine).record(order)
    return order


def _watch(database: EvidenceDatabase, start: Callable[..., None]) -> Watch:
    return Watch(RatingDesk(database), start=start)


def _vote(database: EvidenceDatabase, *items: int, prefers: str = "first") -> None:
    database.add_judgements([make_judgement(f"item-{number}", prefers=prefers) for number in items])


def test_a_batch_that_has_all_its_votes_starts_one_run(database: EvidenceDatabase) -> None:
    order = _order(database, open_batch(database, n_pairs=2))
    starts = _Starts()
    watch = _watch(database, starts)
    assert watch.look().started == []
    _vote(database, 0, 1)  # and whoever took the last vote was killed before it closed the batch
    look = watch.look()
    assert (look.closed, [one["attempt"] for one in look.started]) == ([order.batch_id], [1])
    assert _watch(database, starts).look().started == []
    assert starts.attempts == [1]


def test_at_the_deadline_the_batch_closes_with_what_it_has_and_the_run_starts(database: EvidenceDatabase) -> None:
    batch_id = open_batch(database, n_pairs=4, deadline_hours=24)
    _order(database, batch_id)
    _vote(database, 0)
    starts = _Starts()
    watch = _watch(database, starts)
    assert watch.look(now=datetime.now(UTC) + timedelta(hours=23)).closed == []
    look = watch.look(now=datetime.now(UTC) + timedelta(hours=25))
    assert (look.closed, len(look.started)) == ([batch_id], 1)
    closure = database.closure(batch_id)
    assert closure is not None
    assert (closure.actor, closure.reason) == ("deadline", "The deadline came: 1 of 4 votes.")
    (notice,) = watch.outbox.undelivered()
    assert notice.kind == "evidence_overdue"
    assert "of demo version 3" in notice.body["text"]


def test_a_batch_whose_votes_are_all_in_when_the_deadline_comes_is_complete_and_not_overdue(
    database: EvidenceDatabase,
) -> None:
    batch_id = open_batch(database, n_pairs=2, deadline_hours=0.01, undo_minutes=60.0)
    _order(database, batch_id)
    just_now = datetime.now(UTC).isoformat(timespec="microseconds")
    database.add_judgements([make_judgement(f"item-{number}", created_at=just_now) for number in range(2)])
    watch = _watch(database, _Starts())
    assert watch.look(now=datetime.now(UTC) + timedelta(seconds=10)).closed == [], "the last answer may be undone"
    assert watch.look(now=datetime.now(UTC) + timedelta(minutes=1)).closed == [batch_id]
    (notice,) = watch.outbox.undelivered()
    assert notice.kind == "evidence_complete"


def test_the_stopping_rule_closes_a_batch_that_is_decided_and_only_where_it_is_asked_for(
    database: EvidenceDatabase,
) -> None:
    items = [make_item(number) for number in range(60)]
    batch_id = open_batch(database, items=items, stop_early_from_prompts=20)
    watch = _watch(database, _Starts())
    _vote(database, *range(19))
    assert watch.look().closed == [], "decided, but on fewer prompts than it must have"
    _vote(database, 19)
    assert watch.look().closed == [batch_id]
    closure = database.closure(batch_id)
    assert closure is not None
    assert closure.actor == "stopping rule"


def test_votes_that_do_not_decide_leave_the_batch_open(database: EvidenceDatabase) -> None:
    open_batch(database, items=[make_item(number) for number in range(60)], stop_early_from_prompts=10)
    _vote(database, *range(0, 40, 2))
    _vote(database, *range(1, 40, 2), prefers="second")
    assert _watch(database, _Starts()).look().closed == []


def test_a_batch_that_a_manager_closes_starts_its_run_too(database: EvidenceDatabase) -> None:
    batch_id = open_batch(database)
    _order(database, batch_id)
    database.close(batch_id, actor="mia", reason="Enough.")
    starts = _Starts()
    _watch(database, starts).look()
    assert starts.attempts == [1]


class _Cluster(_Starts):
    """Starts runs, and says which of them it still knows to be going on."""

    def __init__(self) -> None:
        super().__init__()
        self.running: set[str] | None = set()

    def is_running(self, holder: str) -> bool:
        if self.running is None:
            raise PlumblineError("the API does not answer.")
        return holder in self.running


def test_a_run_that_the_cluster_lets_wait_for_hours_is_not_started_twice(database: EvidenceDatabase) -> None:
    order, cluster, now = _order(database, open_batch(database, n_pairs=1)), _Cluster(), datetime.now(UTC)
    _vote(database, 0)
    watch, orders = _watch(database, cluster), ReleaseOrders(database.engine)
    watch.look(now=now)
    orders.begin(order.order_id, 1, "kfp-run", now=now)
    cluster.running = {"kfp-run"}
    for hours in (3, 6, 9):
        assert watch.look(now=now + timedelta(hours=hours)).started == []
    cluster.running = None
    assert watch.look(now=now + timedelta(hours=12)).started == []
    cluster.running = set()
    assert [one["attempt"] for one in watch.look(now=now + timedelta(hours=12)).started] == [2]


def test_an_order_that_comes_after_its_batch_has_closed_is_not_forgotten(database: EvidenceDatabase) -> None:
    batch_id, starts = open_batch(database, n_pairs=1), _Starts()
    _vote(database, 0)
    assert _watch(database, starts).look().closed == [batch_id]
    _order(database, batch_id)
    _watch(database, starts).look()
    assert starts.attempts == [1]


def test_a_batch_nobody_waits_for_starts_nothing(database: EvidenceDatabase) -> None:
    open_batch(database, n_pairs=1)
    _vote(database, 0)
    starts = _Starts()
    assert len(_watch(database, starts).look().closed) == 1
    assert starts.attempts == []


def test_a_run_that_cannot_be_started_is_tried_again(database: EvidenceDatabase) -> None:
    order = _order(database, open_batch(database, n_pairs=1))
    _vote(database, 0)
    failing, now = _Starts(PlumblineError("the cluster does not answer.")), datetime.now(UTC)
    assert _watch(database, failing).look(now=now).started == []
    assert ReleaseOrders(database.engine).state(order.order_id).status == "failed"
    assert _watch(database, failing).look(now=now + timedelta(seconds=30)).started == []
    working = _Starts()
    _watch(database, working).look(now=now + timedelta(seconds=90))
    assert (failing.attempts, working.attempts) == ([1], [2])


_KILLED = """
import os, signal, sys
from components.human_eval.database import open_database
from components.human_eval.desk import RatingDesk
from components.review import watch
from components.shared.release_orders import ReleaseOrders

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "before it takes the start":
    ReleaseOrders.start = die
watch.Watch(RatingDesk(open_database(sys.argv[1])), start=die).look()
"""


@pytest.mark.parametrize(
    ("killed", "attempt", "after"),
    [("before it takes the start", 1, timedelta()), ("before it has started it", 2, timedelta(minutes=11))],
)
def test_a_service_killed_between_closing_and_starting_loses_no_run(
    any_database_url: str, killed: str, attempt: int, after: timedelta
) -> None:
    database = open_database(any_database_url)
    order = _order(database, open_batch(database, n_pairs=1))
    _vote(database, 0)
    died = subprocess.run([sys.executable, "-c", _KILLED, any_database_url, killed], check=False, timeout=120)
    assert died.returncode == -signal.SIGKILL
    assert database.closure(order.batch_id) is not None, "it had closed the batch"
    starts = _Starts()
    _watch(database, starts).look(now=datetime.now(UTC) + after)
    assert starts.attempts == [attempt]


_RACING = """
import sys, time
from components.human_eval.database import open_database
from components.human_eval.desk import RatingDesk
from components.review.watch import Watch

def start(order, attempt):
    print("started", attempt, flush=True)

watch = Watch(RatingDesk(open_database(sys.argv[1])), start=start)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    watch.look()
"""


def test_of_services_that_watch_at_once_one_starts_the_run(any_database_url: str) -> None:
    database = open_database(any_database_url)
    _order(database, open_batch(database, n_pairs=1))
    _vote(database, 0)
    services = [
        subprocess.Popen(
            [sys.executable, "-c", _RACING, any_database_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for service in services:
        assert service.stdout is not None
        assert service.stdout.readline() == "ready\n"
    said = [service.communicate("go\n", timeout=120)[0] for service in services]
    assert [service.returncode for service in services] == [0, 0, 0]
    assert sorted(said) == ["", "", "started 1\n"]


def test_the_service_looks_by_itself_and_tells_people(
    database: EvidenceDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = open_batch(database, n_pairs=2)
    _order(database, batch_id)
    starts = _Starts()
    with receive(503, 200) as (url, received):
        monkeypatch.setenv(WEBHOOK_VARIABLE, url)
        monkeypatch.setattr("components.shared.notices._FIRST_PAUSE", timedelta(seconds=0.2))
        app = create_app(make_settings(watch_seconds=0.1), secret=SECRET, database=database, start=starts)
        with serve_on_loopback(app) as address, httpx.Client(base_url=address, timeout=30) as http:
            http.headers["kubeflow-userid"] = "ann"
            http.headers["X-Form-Token"] = http.get("/api/v1/me").json()["form_token"]
            while (task := http.post(f"/api/v1/batches/{batch_id}/next").json().get("task")) is not None:
                http.post(f"/api/v1/tasks/{task['task_id']}/answer", json={"choice": "a", "revision": 0})
            _wait_for(lambda: starts.attempts and len(received) >= 2)
            figures = {
                sample.name: sample.value
                for family in text_string_to_metric_families(http.get("/metrics").text)
                for sample in family.samples
            }
    assert starts.attempts == [1]
    assert [body["kind"] for body in received] == ["evidence_complete"] * 2
    assert len({body["id"] for body in received}) == 1
    assert figures["plumbline_review_notices_undelivered"] == 0
    assert figures["plumbline_review_last_watch_timestamp_seconds"] == pytest.approx(time.time(), abs=60)


def test_a_look_that_fails_does_not_end_the_watch(
    database: EvidenceDatabase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _order(database, open_batch(database, n_pairs=1))
    _vote(database, 0)
    real, starts, failures = ReleaseOrders.unfinished, _Starts(), [1]

    def fail_once(self: ReleaseOrders) -> list[ReleaseOrder]:
        if failures:
            failures.pop()
            raise OSError("the database went away")
        return real(self)

    monkeypatch.setattr(ReleaseOrders, "unfinished", fail_once)
    app = create_app(make_settings(watch_seconds=0.05), secret=SECRET, database=database, start=starts)
    with serve_on_loopback(app):
        _wait_for(lambda: starts.attempts)
    assert "the database went away" in caplog.text


def test_a_service_that_is_told_not_to_watch_does_not(database: EvidenceDatabase) -> None:
    _order(database, open_batch(database, n_pairs=1))
    _vote(database, 0)
    starts = _Starts()
    app = create_app(make_settings(watch_seconds=0), secret=SECRET, database=database, start=starts)
    with serve_on_loopback(app):
        time.sleep(0.3)
    assert starts.attempts == []
    assert Client(app, "ann").get("/healthz").status_code == 200


def _wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)
