"""Release orders: started at least once, run exactly once, whatever dies on the way."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from components.shared.errors import InputError
from components.shared.ledger_table import open_engine
from components.shared.notices import Outbox
from components.shared.release_orders import (
    MAX_ATTEMPTS,
    OrderTakenError,
    ReleaseOrder,
    ReleaseOrders,
    _order_row,
    make_order,
)
from components.shared.release_tables import add_if_new

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=2)


def _make_order(**overrides: Any) -> ReleaseOrder:
    values: dict[str, Any] = {
        "batch_id": "b1",
        "model": "demo",
        "version": "3",
        "mode": "candidate",
        "run": "run-1",
        "policy": "production",
        "seed": 0,
        "settings": {"panel": "people"},
        "artifacts": {"evaluation": {"uri": "/somewhere", "digest": "d"}},
    }
    return make_order(**{**values, **overrides})


@pytest.fixture
def orders(any_database_url: str) -> ReleaseOrders:
    return ReleaseOrders(open_engine(any_database_url))


@pytest.fixture
def order(orders: ReleaseOrders) -> str:
    found = _make_order()
    orders.record(found)
    return found.order_id


def test_an_order_comes_back_as_it_was_given(orders: ReleaseOrders) -> None:
    orders.record(_make_order())
    orders.record(_make_order())
    assert orders.all() == [_make_order()]
    assert orders.find("demo") == orders.find("demo", "3") == _make_order()


def test_artifacts_that_moved_are_found_where_they_are_now(orders: ReleaseOrders) -> None:
    orders.record(_make_order())
    moved = _make_order(artifacts={"evaluation": {"uri": "s3://bucket/elsewhere", "digest": "d"}})
    orders.record(moved)
    assert orders.all() == [moved]


def test_a_model_of_which_nothing_waits_is_named(orders: ReleaseOrders, order: str) -> None:
    with pytest.raises(InputError, match="Versions of this model that wait or waited: 3"):
        orders.find("demo", "9")


def test_of_many_that_start_one_gets_the_attempt(orders: ReleaseOrders, order: str) -> None:
    got: list[int | None] = []

    def start(number: int) -> None:
        got.append(orders.start(order, f"service {number}", now=NOW))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got, key=str) == [1] + [None] * 7


def test_a_run_that_ended_is_never_started_again(orders: ReleaseOrders, order: str) -> None:
    orders.start(order, "service", now=NOW)
    orders.begin(order, 1, "run", now=NOW)
    assert orders.end(order, 1, "run", failed=False, now=NOW)
    assert orders.start(order, "service", now=NOW + timedelta(days=400)) is None
    assert orders.unfinished() == []


def test_a_start_that_came_to_nothing_is_made_again(orders: ReleaseOrders, order: str) -> None:
    assert orders.start(order, "killed before it started anything", now=NOW) == 1
    assert orders.start(order, "other", now=NOW + timedelta(minutes=9)) is None
    assert orders.start(order, "other", now=NOW + timedelta(minutes=11)) == 2


def test_a_run_that_was_lost_is_started_again(orders: ReleaseOrders, order: str) -> None:
    orders.start(order, "service", now=NOW)
    orders.begin(order, 1, "killed half-way", now=NOW)
    assert orders.start(order, "service", now=NOW + timedelta(minutes=119)) is None
    assert orders.start(order, "service", now=NOW + timedelta(minutes=121)) == 2


def test_a_run_that_is_seen_alive_is_not_started_again_however_long_it_takes(orders: ReleaseOrders, order: str) -> None:
    orders.start(order, "service", now=NOW)
    orders.begin(order, 1, "slow", now=NOW)
    for hours in range(1, 9):
        now = NOW + timedelta(hours=hours)
        assert orders.renew(order, 1, now=now)
        assert orders.start(order, "service", now=now + timedelta(minutes=119)) is None
    assert orders.state(order).holder == "slow"
    assert orders.end(order, 1, "slow", failed=False, now=now + timedelta(hours=1))


def test_only_the_attempt_that_runs_is_renewed(orders: ReleaseOrders, order: str) -> None:
    assert not orders.renew(order, 0, now=NOW)
    orders.start(order, "service", now=NOW)
    assert not orders.renew(order, 1, now=NOW)
    orders.begin(order, 1, "run", now=NOW)
    assert not orders.renew(order, 2, now=NOW)
    orders.start(order, "service", now=NOW + timedelta(minutes=121))
    assert not orders.renew(order, 1, now=NOW + timedelta(minutes=122)), "it was lost, and another one is on its way"


def test_an_order_whose_row_another_writer_was_faster_to_add_is_recorded_all_the_same(
    orders: ReleaseOrders, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = (_make_order(artifacts={"evaluation": {"uri": uri, "digest": "d"}}) for uri in ("/mine", "/theirs"))
    calls: list[int] = []

    def overtaken(connection: Any, table: Any, row: Any) -> bool:
        calls.append(row["revision"])
        if len(calls) == 1:  # what a writer does that commits between our reading and our insert
            values = {**row, "content": _order_row(theirs, 0)["content"]}
            return add_if_new(connection, table, values) and False
        return add_if_new(connection, table, row)

    monkeypatch.setattr("components.shared.release_orders.add_if_new", overtaken)
    orders.record(mine)
    assert calls == [0, 1]
    assert orders.all() == [mine]


def test_a_start_that_comes_late_or_twice_runs_nothing(orders: ReleaseOrders, order: str) -> None:
    orders.start(order, "service", now=NOW)
    orders.start(order, "service", now=NOW + timedelta(minutes=11))
    with pytest.raises(OrderTakenError, match="attempt 2 is started"):
        orders.begin(order, 1, "the slow one", now=LATER)
    orders.begin(order, 2, "the second", now=LATER)
    with pytest.raises(OrderTakenError, match="attempt 2 is running"):
        orders.begin(order, 2, "its double", now=LATER)
    orders.begin(order, 2, "the second", now=LATER)  # a step that is retried says so again


def test_whoever_does_not_hold_an_order_cannot_end_it(orders: ReleaseOrders, order: str) -> None:
    orders.start(order, "service", now=NOW)
    orders.begin(order, 1, "the run", now=NOW)
    assert not orders.end(order, 1, "its double", failed=True, now=NOW)
    assert orders.state(order).status == "running"


def test_a_failed_run_is_tried_again_after_pauses_that_double_and_then_people_are_told(
    orders: ReleaseOrders, order: str, any_database_url: str
) -> None:
    now, pauses = NOW, []
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert orders.start(order, "service", now=now) == attempt
        orders.begin(order, attempt, "run", now=now)
        orders.end(order, attempt, "run", failed=True, now=now)
        expires = orders.state(order).expires_at
        assert expires is not None
        due = datetime.fromisoformat(expires)
        assert orders.start(order, "service", now=due - timedelta(seconds=1)) is None
        pauses.append((due - now).total_seconds() / 60)
        now = due
    assert pauses == [1, 2, 4, 8, 16]
    assert orders.start(order, "service", now=now) is None
    assert orders.give_up(orders.get(order), now=now)
    assert not orders.give_up(orders.get(order), now=now), "once is enough"
    outbox = Outbox(open_engine(any_database_url))
    assert [notice.kind for notice in outbox.undelivered()] == ["release_run_failed"]


def test_a_start_that_fails_at_once_need_not_wait_for_its_time_to_be_up(orders: ReleaseOrders, order: str) -> None:
    orders.start(order, "service", now=NOW)
    orders.fail_start(order, 1, "service", "no such command", now=NOW)
    assert orders.start(order, "service", now=NOW + timedelta(minutes=1)) == 2


def test_a_person_may_take_what_was_started_or_has_ended_but_not_what_runs(orders: ReleaseOrders, order: str) -> None:
    orders.start(order, "service", now=NOW)
    assert orders.take(order, "mia", now=NOW) == 2
    with pytest.raises(OrderTakenError):
        orders.begin(order, 1, "the service's run", now=NOW)
    orders.begin(order, 2, "mia's run", now=NOW)
    with pytest.raises(OrderTakenError, match="mia's run"):
        orders.take(order, "max", now=NOW)
    assert orders.take(order, "max, who knows that it was killed", force=True, now=NOW) == 3
    assert not orders.end(order, 2, "mia's run", failed=False, now=NOW)
    orders.begin(order, 3, "max's run", now=NOW)
    orders.end(order, 3, "max's run", failed=False, now=NOW)
    assert orders.take(order, "max", now=NOW) == 4
    assert orders.start(order, "service", now=LATER) is None
