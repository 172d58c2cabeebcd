"""Notices to people: written in the transaction of the event, sent until the webhook has them, at least once.

    write_notice(connection, notice)      with the event: both are there, or neither
    Outbox(engine).send(url)              what is due; what fails waits for twice as long, an hour at most
    Outbox(engine).send_again()           what was given up is due again

A receiver that refuses five times over (any 4xx but 408 and 429, a redirect), or fails for four days, will not come
round by itself: the notice is given up. It stays, is shown wherever somebody looks, and waits for `send_again`.

A notice's id derives from its event and is the same in every delivery, so that the receiver can drop repeats. The body
is what Slack and its likes understand: `text`; the rest is for programs.
"""

from __future__ import annotations

import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, Engine, select

from components.shared.errors import InputError
from components.shared.ledger_table import database_url, open_engine
from components.shared.release_tables import NOTICE_ATTEMPTS, NOTICES, add_if_new, create_release_tables

__all__ = ["WEBHOOK_VARIABLE", "Notice", "Outbox", "Undelivered", "is_http", "open_outbox", "post", "write_notice"]

WEBHOOK_VARIABLE = "PLUMBLINE_WEBHOOK_URL"

_TIMEOUT_SECONDS = 10.0
_FIRST_PAUSE = timedelta(seconds=5)
_LONGEST_PAUSE = timedelta(hours=1)
_CLAIM = timedelta(seconds=60)
"""How long a sender that began is believed to be still at it."""
_MOST_TRIES = 100
"""Ten that come ever slower and ninety hours of one an hour: longer than a long weekend."""
_MOST_REFUSALS = 5
_REFUSED_FOR = timedelta(hours=1)
"""What answers 404 while it is being deployed, or 401 until its token is renewed, takes the next."""

_SENDING, _DELIVERED, _FAILED, _REFUSED, _AGAIN = "sending", "delivered", "failed", "refused", "again"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notice:
    """What people are told.

    Attributes:
        id: Derived from the event, so that the same event is never two notices.
        kind: `approval_needed`, `promoted`, `rolled_back`, `gate_error`, `live_alarm`, `evidence_complete`,
            `evidence_overdue`, `release_run_failed`, `review_key_replaced`, `run_ended`.
        text: In words.
        details: Further fields of the body.
    """

    id: str
    kind: str
    text: str
    details: Mapping[str, str | None] = field(default_factory=dict)

    def as_json(self) -> dict[str, str | None]:
        """The webhook's body."""
        return {**self.details, "text": self.text, "id": self.id, "kind": self.kind}


@dataclass(frozen=True)
class Undelivered:
    """A notice that nobody has confirmed yet.

    Attributes:
        id: Of the notice.
        kind: Of the notice.
        body: What the webhook gets.
        created_at: When its event happened (UTC, ISO 8601).
        attempts: How often it was tried.
        problem: What went wrong last; None before the first try.
        due_at: Before this, it is not tried again.
        number: Of its next row.
        given_up: It is not tried again unless somebody asks for it.
    """

    id: str
    kind: str
    body: dict[str, Any]
    created_at: str
    attempts: int
    problem: str | None
    due_at: datetime
    number: int
    given_up: bool = False


def write_notice(connection: Connection, notice: Notice) -> bool:
    """Puts a notice into the outbox within the transaction of its event; returns False if it is there already."""
    row = {
        "notice_id": notice.id,
        "kind": notice.kind,
        "body": json.dumps(notice.as_json(), ensure_ascii=False),
        "created_at": _text(datetime.now(UTC)),
    }
    return add_if_new(connection, NOTICES, row)


def open_outbox() -> Outbox:
    """The outbox of PLUMBLINE_DATABASE_URL."""
    return Outbox(open_engine(database_url()))


class Outbox:
    """What people are still to be told.

    Args:
        engine: The database of evidence and ledger.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        create_release_tables(engine)

    def add(self, notice: Notice) -> bool:
        """Puts a notice of no other event in; returns False if it is there already."""
        with self._engine.connect().execution_options(write=True) as connection, connection.begin():
            return write_notice(connection, notice)

    def undelivered(self) -> list[Undelivered]:
        """What has not been delivered, oldest first."""
        delivered = select(NOTICE_ATTEMPTS.c.notice_id).where(NOTICE_ATTEMPTS.c.outcome == _DELIVERED)
        query = select(NOTICES).where(NOTICES.c.notice_id.not_in(delivered))
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(NOTICES.c.created_at, NOTICES.c.notice_id)).mappings().all()
            tried: dict[str, list[Any]] = defaultdict(list)
            mine = NOTICE_ATTEMPTS.c.notice_id.in_([row["notice_id"] for row in rows])
            history = select(NOTICE_ATTEMPTS).where(mine).order_by(NOTICE_ATTEMPTS.c.number)
            for attempt in connection.execute(history):
                tried[attempt.notice_id].append(attempt)
        return [_undelivered(row, tried[row["notice_id"]]) for row in rows]

    def send(self, url: str, *, now: datetime | None = None) -> int:
        """Sends what is due, each once; what fails stays for the next call.

        Args:
            url: The webhook; an `http` or `https` address. It may hold a secret and is never logged.
            now: The time at which it begins; UTC.

        Returns:
            How many were delivered.
        """
        if not is_http(url):
            _logger.error("No notice was sent: %s is not an http or https address.", WEBHOOK_VARIABLE)
            return 0
        began, started = now or datetime.now(UTC), time.monotonic()

        def clock() -> datetime:  # a receiver that is slow must not age the claims of those that come after
            return began + timedelta(seconds=time.monotonic() - started)

        due = [notice for notice in self.undelivered() if notice.due_at <= began and not notice.given_up]
        return sum(self._send(notice, url, clock) for notice in due)

    def send_again(self, notice_id: str | None = None) -> list[str]:
        """Makes what was given up due again, as if it had never been tried.

        Args:
            notice_id: One of them; None: all.

        Returns:
            The notices' ids.

        Raises:
            InputError: There is no such notice, or it was not given up.
        """
        waiting = {notice.id: notice for notice in self.undelivered() if notice.given_up}
        if notice_id is not None and notice_id not in waiting:
            known = ", ".join(waiting) or "none"
            raise InputError("is no notice that was given up.", where=notice_id, hint=f"Given up: {known}.")
        chosen = [waiting[notice_id]] if notice_id else list(waiting.values())
        now = datetime.now(UTC)
        return [notice.id for notice in chosen if self._note(notice, notice.number, _AGAIN, None, now)]

    def _send(self, notice: Undelivered, url: str, clock: Callable[[], datetime]) -> bool:
        """One try. It is claimed first: of several senders one tries, unless it dies on the way."""
        if not self._note(notice, notice.number, _SENDING, None, clock()):
            return False
        problem, final = post(notice.body, url)
        outcome = _DELIVERED if problem is None else _REFUSED if final else _FAILED
        self._note(notice, notice.number + 1, outcome, problem, clock())
        if problem:
            _logger.warning("Notice %s was not delivered (try %d): %s", notice.id, notice.attempts + 1, problem)
        return problem is None

    def _note(self, notice: Undelivered, number: int, outcome: str, problem: str | None, now: datetime) -> bool:
        row = {"notice_id": notice.id, "number": number, "outcome": outcome, "problem": problem, "at": _text(now)}
        with self._engine.connect().execution_options(write=True) as connection, connection.begin():
            return add_if_new(connection, NOTICE_ATTEMPTS, row)


def post(body: Mapping[str, Any], url: str) -> tuple[str | None, bool]:
    """One delivery: what went wrong (None: nothing), and whether trying again is pointless."""
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": str(body["id"]), "User-Agent": "plumbline"},
        method="POST",
    )
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_SECONDS):
            return None, False
    except urllib.error.HTTPError as error:
        with error:
            return f"the receiver answered {error.code}", error.code < 500 and error.code not in (408, 429)
    except urllib.error.URLError as error:
        return f"the receiver cannot be reached: {error.reason}", False
    except (OSError, http.client.HTTPException) as error:
        return f"the receiver broke the connection: {type(error).__name__}", False
    except ValueError:
        return "the address is malformed", True


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: urllib would follow it with an empty GET, and take a login page for a receipt."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def is_http(url: str) -> bool:
    """Whether an address is one that a notice can be sent to."""
    try:
        return urlsplit(url).scheme in ("http", "https")
    except ValueError:  # a malformed host
        return False


def _undelivered(row: Any, tried: list[Any]) -> Undelivered:
    asked_for = max((place + 1 for place, attempt in enumerate(tried) if attempt.outcome == _AGAIN), default=0)
    mine = tried[asked_for:]
    begun = sum(attempt.outcome == _SENDING for attempt in mine)
    refused = [datetime.fromisoformat(attempt.at) for attempt in mine if attempt.outcome == _REFUSED]
    refused_for_good = len(refused) >= _MOST_REFUSALS and refused[-1] - refused[0] >= _REFUSED_FOR
    due_at = datetime.min.replace(tzinfo=UTC)
    if mine:
        pause = min(_FIRST_PAUSE * 2 ** min(begun - 1, 20), _LONGEST_PAUSE)
        due_at = datetime.fromisoformat(mine[-1].at) + (_CLAIM if mine[-1].outcome == _SENDING else pause)
    return Undelivered(
        id=row["notice_id"],
        kind=row["kind"],
        body=json.loads(row["body"]),
        created_at=row["created_at"],
        attempts=begun,
        problem=next((attempt.problem for attempt in reversed(tried) if attempt.problem), None),
        due_at=due_at,
        number=tried[-1].number + 1 if tried else 0,
        given_up=begun >= _MOST_TRIES or refused_for_good,
    )


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
