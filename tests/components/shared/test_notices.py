"""The outbox: a notice is there with its event or not at all, and is sent until somebody has it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from webhook_receiver import receive

from components.shared.errors import InputError
from components.shared.ledger_table import open_engine
from components.shared.notices import Notice, Outbox, write_notice

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _make_notice(**overrides: str) -> Notice:
    values = {"id": "n1", "kind": "promoted", "text": "demo version 3 is live.", **overrides}
    return Notice(**values, details={"model_name": "demo"})


@pytest.fixture
def outbox(any_database_url: str) -> Outbox:
    return Outbox(open_engine(any_database_url))


def test_the_body_is_what_slack_reads_with_the_id_beside_it(outbox: Outbox) -> None:
    outbox.add(_make_notice())
    with receive(200) as (url, received):
        assert outbox.send(url, now=NOW) == 1
    assert received == [
        {"text": "demo version 3 is live.", "id": "n1", "kind": "promoted", "model_name": "demo"},
    ]


def test_what_is_delivered_is_not_sent_again(outbox: Outbox) -> None:
    outbox.add(_make_notice())
    with receive(200) as (url, received):
        outbox.send(url, now=NOW)
        assert outbox.send(url, now=NOW + timedelta(days=1)) == 0
    assert len(received) == 1
    assert outbox.undelivered() == []


@pytest.mark.parametrize("answer", [500, 403, 0])
def test_a_receiver_that_fails_first_gets_the_same_id_again(outbox: Outbox, answer: int) -> None:
    outbox.add(_make_notice())
    with receive(answer, 200) as (url, received):
        assert outbox.send(url, now=NOW) == 0
        (waiting,) = outbox.undelivered()
        assert (waiting.attempts, bool(waiting.problem)) == (1, True)
        assert outbox.send(url, now=NOW + timedelta(seconds=1)) == 0, "it waits before it tries again"
        assert outbox.send(url, now=NOW + timedelta(seconds=6)) == 1
    assert [body["id"] for body in received] == ["n1", "n1"]


def test_the_pause_doubles_to_an_hour_at_most(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.shared.notices.time", SimpleNamespace(monotonic=lambda: 0.0))
    outbox.add(_make_notice())
    now, pauses = NOW, []
    with receive(500) as (url, _):
        for _ in range(14):
            outbox.send(url, now=now)
            (waiting,) = outbox.undelivered()
            pauses.append((waiting.due_at - now).total_seconds())
            now = waiting.due_at
    assert pauses[:4] == [5, 10, 20, 40]
    assert pauses[-1] == 3600


def _fail_until_given_up(outbox: Outbox, url: str) -> int:
    now, tries = NOW, 0
    while not (waiting := outbox.undelivered()[0]).given_up:
        tries += 1
        assert tries < 200
        now = max(now, waiting.due_at)
        outbox.send(url, now=now)
    assert outbox.send(url, now=now + timedelta(days=400)) == 0
    return tries


@pytest.mark.parametrize(("answer", "tries"), [(403, 11), (410, 11), (302, 11), (503, 100), (429, 100), (408, 100)])
def test_what_is_refused_or_fails_for_days_is_given_up_and_stays(outbox: Outbox, answer: int, tries: int) -> None:
    outbox.add(_make_notice())
    with receive(answer) as (url, received):
        assert _fail_until_given_up(outbox, url) == tries
    assert len(received) == tries
    (waiting,) = outbox.undelivered()
    assert (waiting.given_up, waiting.problem) == (True, f"the receiver answered {answer}")


def test_what_was_given_up_is_sent_when_somebody_asks_for_it(outbox: Outbox) -> None:
    outbox.add(_make_notice())
    outbox.add(_make_notice(id="n2"))
    with receive(403) as (url, _):
        while not all(notice.given_up for notice in outbox.undelivered()):
            outbox.send(url, now=max(notice.due_at for notice in outbox.undelivered() if not notice.given_up))
    with pytest.raises(InputError, match=r"Given up: n1, n2\."):
        outbox.send_again("n3")
    assert outbox.send_again("n2") == ["n2"]
    with receive(403, 200) as (url, received):
        assert outbox.send(url, now=NOW) == 0, "it is tried as if it were new"
        assert outbox.send(url, now=NOW + timedelta(seconds=6)) == 1
        assert outbox.send_again() == ["n1"]
        assert outbox.send_again() == []
        assert outbox.send(url, now=NOW) == 1
    assert [body["id"] for body in received] == ["n2", "n2", "n1"]


def test_a_login_page_that_a_redirect_leads_to_is_no_receipt(outbox: Outbox) -> None:
    outbox.add(_make_notice())
    with receive(200) as (login_page, reached), receive(302, location=login_page) as (url, _):
        assert outbox.send(url, now=NOW) == 0
    assert reached == []


def test_a_slow_receiver_does_not_let_the_claims_of_later_notices_run_out(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        outbox.add(_make_notice(id=f"n{number}"))
    passed = [0.0]
    monkeypatch.setattr("components.shared.notices.time", SimpleNamespace(monotonic=lambda: passed[0]))
    posted: list[str] = []

    def slow(body: Mapping[str, str], url: str) -> tuple[None, bool]:
        posted.append(body["id"])
        passed[0] += 45.0
        if len(posted) == 3:
            outbox.send(url, now=NOW + timedelta(seconds=passed[0]))
        return None, False

    monkeypatch.setattr("components.shared.notices.post", slow)
    outbox.send("http://receiver", now=NOW)
    assert sorted(posted) == ["n0", "n1", "n2"], "another sender sends nothing that this one is at"


def test_a_sender_that_died_on_the_way_is_succeeded(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox.add(_make_notice())

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with receive(200) as (url, received):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("components.shared.notices.post", die)
            outbox.send(url, now=NOW)
        assert outbox.send(url, now=NOW + timedelta(seconds=30)) == 0, "it may still be at it"
        assert outbox.send(url, now=NOW + timedelta(seconds=61)) == 1
    assert len(received) == 1


def test_of_many_senders_at_once_one_sends(outbox: Outbox) -> None:
    outbox.add(_make_notice())
    with receive(200) as (url, received):
        threads = [threading.Thread(target=outbox.send, args=(url,), kwargs={"now": NOW}) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(received) == 1


def test_a_notice_of_a_transaction_that_fails_was_never_there(outbox: Outbox, any_database_url: str) -> None:
    engine = open_engine(any_database_url)
    with pytest.raises(RuntimeError), engine.connect().execution_options(write=True) as connection, connection.begin():
        write_notice(connection, _make_notice())
        raise RuntimeError("the event did not happen")
    assert outbox.undelivered() == []


def test_the_same_notice_twice_is_one(outbox: Outbox) -> None:
    assert outbox.add(_make_notice())
    assert not outbox.add(_make_notice(text="other words"))
    assert [waiting.body["text"] for waiting in outbox.undelivered()] == ["demo version 3 is live."]


def test_an_address_that_is_no_address_loses_nothing(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    outbox.add(_make_notice())
    assert outbox.send("ftp://secret@host/x", now=NOW) == 0
    assert "secret" not in caplog.text
    assert len(outbox.undelivered()) == 1


@pytest.mark.parametrize("statement", ["UPDATE notices SET kind = 'x'", "DELETE FROM notices"])
def test_nothing_is_changed_in_place(outbox: Outbox, any_database_url: str, statement: str) -> None:
    outbox.add(_make_notice())
    with create_engine(any_database_url).connect() as connection, pytest.raises(DBAPIError, match="append-only"):
        connection.execute(text(statement))
