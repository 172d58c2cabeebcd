"""Requests that wait are carried out together; each has its own result, and none pays for another's fault."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from tiny_panels import make_batch, make_item

from components.human_eval.books import Books, Decision, StaleBookError
from components.human_eval.database import open_database
from components.human_eval.group_commit import GroupCommit, Request
from components.human_eval.schema import SkipRow
from components.shared.errors import InputError
from components.shared.ledger_table import open_engine

_SECONDS = 30.0


class _Gate:
    """Work that goes on when it is told to: meanwhile others come and wait."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, _: object) -> str:
        self.entered.set()
        assert self.opened.wait(_SECONDS)
        return "first"


def _wait_until(condition: Callable[[], bool]) -> None:
    ready = threading.Event()
    for _ in range(int(_SECONDS * 100)):
        if condition():
            return
        ready.wait(0.01)
    raise AssertionError("it did not come to that")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=16) as pool:
        yield pool


def test_what_comes_meanwhile_is_done_together(pool: ThreadPoolExecutor) -> None:
    groups: list[int] = []

    def carry_out(group: Sequence[Request[None]]) -> None:
        groups.append(len(group))
        for request in group:
            request.attempt(None)
            request.settle()

    commit, gate = GroupCommit(carry_out), _Gate()
    first = pool.submit(commit.do, gate)
    assert gate.entered.wait(_SECONDS)
    others = [pool.submit(commit.do, lambda _, n=n: n) for n in range(5)]
    _wait_until(lambda: len(commit._waiting) == 5)
    gate.opened.set()
    assert [first.result(_SECONDS), *(other.result(_SECONDS) for other in others)] == ["first", 0, 1, 2, 3, 4]
    assert groups == [1, 5]


def test_many_threads_all_get_their_own_answer(pool: ThreadPoolExecutor) -> None:
    alone, inside = [], threading.Lock()

    def carry_out(group: Sequence[Request[None]]) -> None:
        assert inside.acquire(blocking=False), "two threads at once"
        alone.append(len(group))
        for request in group:
            request.attempt(None)
            request.settle()
        inside.release()

    commit = GroupCommit(carry_out)
    answers = list(pool.map(lambda number: commit.do(lambda _: number), range(2000), timeout=_SECONDS))
    assert answers == list(range(2000))
    assert sum(alone) == 2000


def test_a_group_that_fails_as_a_whole_tells_everybody(pool: ThreadPoolExecutor) -> None:
    def carry_out(group: Sequence[Request[None]]) -> None:
        raise KeyError("no such thing")

    commit = GroupCommit(carry_out)
    for attempt in [pool.submit(commit.do, lambda _: 1) for _ in range(8)]:
        with pytest.raises(KeyError, match="no such thing"):
            attempt.result(_SECONDS)


def test_a_thread_that_is_interrupted_while_it_waits_keeps_nobody_waiting(pool: ThreadPoolExecutor) -> None:
    def carry_out(group: Sequence[Request[None]]) -> None:
        for request in group:
            request.attempt(None)
            request.settle()

    class _InterruptedError(BaseException):
        pass

    commit, gate, told = GroupCommit(carry_out), _Gate(), threading.Event()
    first = pool.submit(commit.do, gate)
    assert gate.entered.wait(_SECONDS)
    waiting = Request.wait

    def interrupted(self: Request[None]) -> None:
        """As a signal handler that raises when the thread has just been told that it leads."""
        waiting(self)
        told.set()
        raise _InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Request, "wait", interrupted)
        second = pool.submit(commit.do, lambda _: 2)
        _wait_until(lambda: len(commit._waiting) == 1)
        gate.opened.set()
        assert told.wait(_SECONDS)
    with pytest.raises(_InterruptedError):
        second.result(_SECONDS)
    assert first.result(_SECONDS) == "first"
    assert pool.submit(commit.do, lambda _: 3).result(_SECONDS) == 3


def test_what_was_kept_before_a_group_broke_off_is_not_told_as_failed(pool: ThreadPoolExecutor) -> None:
    def carry_out(group: Sequence[Request[None]]) -> None:
        group[0].attempt(None)
        group[0].settle()
        if len(group) > 1:
            raise SystemExit(3)

    commit, gate = GroupCommit(carry_out), _Gate()
    first = pool.submit(commit.do, gate)
    assert gate.entered.wait(_SECONDS)
    others = []
    for number in range(2):
        others.append(pool.submit(commit.do, lambda _, number=number: number))
        _wait_until(lambda: len(commit._waiting) == len(others))
    gate.opened.set()
    assert (first.result(_SECONDS), others[0].result(_SECONDS)) == ("first", 0)
    assert isinstance(others[1].exception(_SECONDS), SystemExit)


def test_work_within_work_is_refused_instead_of_waiting_for_itself() -> None:
    def carry_out(group: Sequence[Request[None]]) -> None:
        for request in group:
            request.attempt(None)
            request.settle()

    commit = GroupCommit(carry_out)
    with pytest.raises(RuntimeError, match="cannot wait"):
        commit.do(lambda _: commit.do(lambda _: 1))


@pytest.fixture
def books(empty_database_url: str) -> Iterator[Books]:
    database = open_database(empty_database_url)
    database.open_batch(make_batch([make_item(number) for number in range(9)]))
    yield Books(database)
    open_engine(empty_database_url).dispose()


def _skip(number: int, *, then: Exception | None = None) -> Callable[[Decision], int]:
    def work(decision: Decision) -> int:
        row = {"task_id": f"task-{number}", "item_id": f"item-{number}", "rater": "ann", "kind": "vote"}
        decision.add(SkipRow, row | {"reason": None, "created_at": f"2026-01-01T00:00:00.{number:06d}+00:00"})
        if then is not None:
            raise then
        return len(decision.book.skippers(f"item-{number}"))

    return work


def _together(books: Books, pool: ThreadPoolExecutor, work: Sequence[Callable[[Decision], Any]]) -> list[Any]:
    """Has several things decided in one group; returns results and errors."""
    gate = _Gate()
    first = pool.submit(books.decide, "batch", gate)
    assert gate.entered.wait(_SECONDS)
    commit = books._shelf["batch"].group_commit
    attempts = []
    for one in work:
        attempts.append(pool.submit(books.decide, "batch", one))
        _wait_until(lambda: len(commit._waiting) == len(attempts))
    gate.opened.set()
    first.result(_SECONDS)
    return [attempt.exception(_SECONDS) or attempt.result() for attempt in attempts]


def _skipped(books: Books) -> list[str]:
    """What the database has, as a process that comes new to it sees it; the old one's book must say the same."""
    seen = [
        reader.decide("batch", lambda decision: [item for item in decision.book.items if decision.book.skippers(item)])
        for reader in (Books(books.database), books)
    ]
    assert seen[0] == seen[1]
    return seen[0]


def test_what_one_added_and_then_refused_is_gone_and_the_others_stay(books: Books, pool: ThreadPoolExecutor) -> None:
    refused = InputError("not so.")
    assert _together(books, pool, [_skip(1), _skip(2, then=refused), _skip(3)]) == [1, refused, 1]
    assert _skipped(books) == ["item-1", "item-3"]


def test_a_row_that_the_database_refuses_is_nobody_elses_fault(books: Books, pool: ThreadPoolExecutor) -> None:
    first, bad, last = _together(books, pool, [_skip(1), _skip(77), _skip(3)])  # there is no item 77
    assert (first, last) == (1, 1)
    assert "refused" in str(bad)
    assert _skipped(books) == ["item-1", "item-3"]


def test_a_commit_that_fails_is_tried_again_for_each(books: Books, pool: ThreadPoolExecutor) -> None:
    engine, failures = books.database.engine, [0, 1]
    books.book("batch")  # read, which commits too

    def fail_once(_: Any) -> None:
        if failures and failures.pop(0):  # the first group's commit is the gate's
            raise OperationalError("COMMIT", {}, Exception("the connection broke"))

    event.listen(engine, "commit", fail_once)
    try:
        assert _together(books, pool, [_skip(1), _skip(2)]) == [1, 1]
    finally:
        event.remove(engine, "commit", fail_once)
    assert not failures
    assert _skipped(books) == ["item-1", "item-2"]


def test_nothing_is_read_again_that_was_added_here(books: Books, pool: ThreadPoolExecutor) -> None:
    """A row that is noted twice would count twice."""
    for number in range(3):
        books.decide("batch", _skip(number))
    other = Books(books.database)
    other.decide("batch", _skip(5))
    counts = books.decide("batch", lambda decision: sum(decision.book.skips["ann"].values()))
    assert counts == 4


def test_a_book_that_is_behind_the_database_says_so_and_is_read_again(books: Books) -> None:
    """It cannot happen by the rules; if it does, nobody is told that something was stored which was not."""
    books.decide("batch", _skip(1))
    books._shelf["batch"].book.skips["ann"].clear()
    with pytest.raises(StaleBookError):
        books.decide("batch", _skip(1))
    assert books.decide("batch", lambda decision: len(decision.book.skips["ann"])) == 1
