"""One-time links and ended sessions, in the database: they outlive the process, and every process knows them."""

from __future__ import annotations

import hashlib
import secrets
import time
from datetime import UTC, datetime, timedelta

from sqlalchemy import select, update

from components.human_eval.books import as_text
from components.human_eval.database import EvidenceDatabase, utc_now
from components.human_eval.schema import EndedSessionRow, LinkRow

__all__ = ["SignIns"]

_SECONDS_KNOWN = 5.0
"""A sign-out reaches the other processes of the service within this time."""


class SignIns:
    """Who may sign in, and who has signed out.

    Args:
        database: The evidence database.
        hours: How long a link, and a session, is good for.
    """

    def __init__(self, database: EvidenceDatabase, *, hours: float) -> None:
        self._database = database
        self._span = timedelta(hours=hours)
        self._ended: frozenset[str] = frozenset()
        self._read_at = float("-inf")

    def issue(self, login: str) -> str:
        """A token with which `login` signs in once."""
        token = secrets.token_urlsafe(32)
        row = {"token_hash": _hash(token), "login": login, "issued_at": utc_now(), "used_at": None}
        with self._database.transaction(write=True) as connection:
            self._database.add(connection, LinkRow, [row])
        return token

    def use(self, token: str) -> str | None:
        """Whose token it is, and uses it up; None if it is unknown, used or too old."""
        mine = update(LinkRow).where(
            LinkRow.token_hash == _hash(token), LinkRow.used_at.is_(None), LinkRow.issued_at > self._oldest()
        )
        with self._database.transaction(write=True) as connection:
            return connection.execute(mine.values(used_at=utc_now()).returning(LinkRow.login)).scalar()

    def end(self, session: str) -> None:
        """Ends a session."""
        with self._database.transaction(write=True) as connection:
            self._database.add(connection, EndedSessionRow, [{"session": session, "ended_at": utc_now()}])
        self._ended |= {session}

    def is_ended(self, session: str) -> bool:
        """Whether a session was ended; another process's sign-out is seen within seconds."""
        if time.monotonic() - self._read_at > _SECONDS_KNOWN:
            self._read_at = time.monotonic()
            query = select(EndedSessionRow.session).where(EndedSessionRow.ended_at > self._oldest())
            with self._database.transaction() as connection:
                self._ended = frozenset(connection.execute(query).scalars())
        return session in self._ended

    def _oldest(self) -> str:
        return as_text(datetime.now(UTC) - self._span)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
