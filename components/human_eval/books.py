"""Keeps the books of batches up to date: each row of the evidence tables is read once, every decision is taken alone.

    result = books.decide(batch_id, work)        work(decision) looks at decision.book and adds rows

While it is decided, no other process decides about this batch (a Postgres advisory lock; on SQLite the write lock), so
that the rows written since are all there is to know. Several processes may serve one batch; what one writes the others
read before they decide. The cost of a request does not grow with the batch's past, and requests that would wait for
each other share a transaction.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Executable, select
from sqlalchemy.exc import DBAPIError

from components.human_eval.book import BatchBook, Noted
from components.human_eval.book_rows import add_row, all_rows, last_numbers, rows_since
from components.human_eval.database import Closure, EvidenceDatabase
from components.human_eval.group_commit import GroupCommit, Request
from components.human_eval.schema import EvidenceBase, ItemRow, LeaseRow
from components.human_eval.turns import Turn
from components.shared.errors import PlumblineError

__all__ = ["Books", "Decision", "StaleBookError", "as_text"]

Result = TypeVar("Result")

_BATCHES_KEPT = 32
"""Batches that are kept in memory once read."""


class StaleBookError(PlumblineError):
    """The database holds what the book did not know of; the book is read again from the start."""


class Books:
    """The books of one process.

    Args:
        database: The evidence database.
        now: The clock; UTC.
    """

    def __init__(self, database: EvidenceDatabase, *, now: Callable[[], datetime] | None = None) -> None:
        self.database = database
        self.now = now or (lambda: datetime.now(UTC))
        self._shelf: dict[str, _Shelved] = {}
        self._lock = threading.Lock()

    def book(self, batch_id: str) -> BatchBook:
        """A book as it was last seen: for what does not change (items, plan).

        Raises:
            InputError: No such batch.
        """
        return self._shelved(batch_id).book

    def decide(self, batch_id: str, work: Callable[[Decision], Result]) -> Result:
        """Decides something about a batch that nobody else decides about meanwhile; it is kept when this returns.

        Args:
            batch_id: The batch.
            work: Looks at the book as it stands, and adds rows. It may be called again after a transaction that came
                to nothing. If it raises, nothing is left of what it added.

        Returns:
            What `work` returned.

        Raises:
            InputError: No such batch.
            PlumblineError: The database refused, or what `work` raised.
        """
        return cast(Result, self._shelved(batch_id).group_commit.do(work))

    def find(self, task_id: str, rater: str) -> tuple[str, Turn] | None:
        """Batch and turn of a task that was handed to a rater; None if none was."""
        for batch_id, shelved in list(self._shelf.items()):
            lease = shelved.book.leases.get(task_id)
            if lease is not None:
                return (batch_id, lease.turn) if lease.rater == rater else None
        query = (
            select(LeaseRow.item_id, LeaseRow.kind, ItemRow.batch_id)
            .join(ItemRow, ItemRow.item_id == LeaseRow.item_id)
            .where(LeaseRow.task_id == task_id, LeaseRow.rater == rater)
            .limit(1)
        )
        with self.database.transaction() as connection:
            row = connection.execute(query).first()
        return (row.batch_id, Turn(row.item_id, row.kind)) if row else None

    def stamp(self) -> str:
        """Now, as text that sorts by time."""
        return as_text(self.now())

    def _shelved(self, batch_id: str) -> _Shelved:
        with self._lock:
            found = self._shelf.pop(batch_id, None)
            if found is not None:
                self._shelf[batch_id] = found  # the last used is the last to go
                return found
        batch = self.database.batch(batch_id)
        with self._lock:
            if batch_id not in self._shelf:
                while len(self._shelf) >= _BATCHES_KEPT:
                    self._shelf.pop(next(iter(self._shelf)))
                self._shelf[batch_id] = _Shelved(self.database, batch_id, lambda: BatchBook(batch))
            return self._shelf[batch_id]


class Decision:
    """A transaction that has a batch for itself.

    Attributes:
        connection: Of the transaction, to read by.
        changes: How many changes were made in it.
    """

    def __init__(self, shelved: _Shelved, connection: Connection) -> None:
        self.connection = connection
        self.changes = 0
        self._shelved = shelved

    @property
    def book(self) -> BatchBook:
        """The batch as it stands, with what was added in this transaction."""
        return self._shelved.book

    def add(self, model: type[EvidenceBase], row: dict[str, Any]) -> None:
        """Adds a row of evidence, and notes it.

        Raises:
            StaleBookError: It is there already.
        """
        self.changes += 1
        self._shelved.add(self.connection, model, row)

    def close(self, closure: Closure) -> None:
        """Closes the batch, and writes the notice of it."""
        self.changes += 1
        self._shelved.close(self.connection, closure)

    def change(self, statement: Executable) -> None:
        """Changes what is no evidence: a draft."""
        self.changes += 1
        self.connection.execute(statement)


class _Shelved:
    """A book, and up to which row of each table it has been read. Its methods run in one thread at a time."""

    def __init__(self, database: EvidenceDatabase, batch_id: str, blank: Callable[[], BatchBook]) -> None:
        self.book = blank()
        self.group_commit: GroupCommit[Decision] = GroupCommit(self._decide)
        self._database = database
        self._batch_id = batch_id
        self._blank = blank
        self._ahead = False
        self._read: dict[str, int] | None = None

    def add(self, connection: Connection, model: type[EvidenceBase], row: dict[str, Any]) -> None:
        """Adds and notes a row.

        Raises:
            StaleBookError: It is there already, of which the book ought to have known.
        """
        assert self._read is not None  # it follows before anything is decided
        self._ahead = True
        added = add_row(connection, model, row)
        if added is None:
            raise StaleBookError("the batch changed meanwhile.", where=f"batch {self._batch_id}", hint="Try again.")
        noted, number = added
        self._read[noted.source] = max(self._read[noted.source], number)
        self.book.note([noted])

    def close(self, connection: Connection, closure: Closure) -> None:
        """Closes the batch."""
        self._ahead = True
        self._database.add_closure(connection, closure)
        self._follow(connection)

    def _decide(self, group: Sequence[Request[Decision]]) -> None:
        """One transaction for all; if it fails, one for each, so that nobody pays for another's fault."""
        try:
            self._decide_together(group)
        except Exception as error:  # noqa: BLE001 (it is raised in the thread whose request it is)
            if len(group) == 1 or _is_unknown_outcome(error):
                for request in group:
                    request.settle(error)
                return
            for request in group:
                self._decide([request])

    def _decide_together(self, group: Sequence[Request[Decision]]) -> None:
        try:
            with self._database.transaction(write=True, alone_with=self._batch_id) as connection:
                self._follow(connection)
                decision = Decision(self, connection)
                for request in group:
                    changes = decision.changes
                    try:
                        request.attempt(decision)
                    except PlumblineError:
                        if decision.changes > changes:
                            raise  # what it changed must go, and with it the transaction
            self._ahead = False
        except BaseException:
            if self._ahead:  # it has noted rows that were not kept
                self._start_anew()
            raise
        for request in group:
            request.settle()

    def _start_anew(self) -> None:
        """Forgets what was noted; it is read again when it is needed."""
        self.book, self._ahead, self._read = self._blank(), False, None

    def _follow(self, connection: Connection) -> None:
        """Notes what was written since."""
        try:
            self._read_on(connection)
        except BaseException:  # how far it came is not known, and what it skipped would never be read again
            self._start_anew()
            raise

    def _read_on(self, connection: Connection) -> None:
        dialect = connection.dialect.name
        if self._read is None:
            self._read = last_numbers(connection, dialect)
            rows = connection.execute(all_rows(dialect, self._batch_id))
        else:
            rows = connection.execute(rows_since(dialect), {f"after_{name}": end for name, end in self._read.items()})
        noted = []
        for row in rows:
            *values, source, sequence, batch_id = tuple(row)
            self._read[source] = max(self._read[source], sequence)
            item_id = values[2]
            if (batch_id is None and item_id in self.book.items) or batch_id == self._batch_id:
                noted.append(Noted(source, *values))
        self.book.note(noted)


def _is_unknown_outcome(error: Exception) -> bool:
    """Whether the connection broke: what was sent may have been done, and is not to be done again behind the caller."""
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and cause.connection_invalidated


def as_text(moment: datetime) -> str:
    """UTC, ISO 8601 with microseconds: text that sorts by time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
