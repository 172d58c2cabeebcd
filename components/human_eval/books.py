"""Keeps the books of batches up to date: each row of the evidence tables is read once, every decision is taken alone.

    with books.alone_with(batch_id) as (connection, book): ...

Inside, no other process decides about this batch (a Postgres advisory lock; on SQLite the write lock), so that the rows
written since are all there is to know. Several processes may serve one batch; what one writes the others read before
they decide. The cost of a request does not grow with the batch's past.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Integer,
    Select,
    String,
    bindparam,
    cast,
    false,
    func,
    literal,
    null,
    select,
    union_all,
)
from sqlalchemy.sql import literal_column

from components.human_eval.book import BatchBook, Noted
from components.human_eval.database import EvidenceDatabase
from components.human_eval.schema import (
    ClosureRow,
    InterventionRow,
    ItemRow,
    JudgementRow,
    LeaseRow,
    PracticeRow,
    SkipRow,
)
from components.human_eval.turns import Turn

__all__ = ["Books", "as_text"]

_BATCHES_KEPT = 32
"""Batches that are kept in memory once read."""

_SOURCES: dict[str, Any] = {
    "judgement": JudgementRow,
    "lease": LeaseRow,
    "skip": SkipRow,
    "practice": PracticeRow,
    "closure": ClosureRow,
    "intervention": InterventionRow,
}
_COLUMNS: dict[str, dict[str, Any]] = {
    "judgement": {
        "key": JudgementRow.judgement_id,
        "at": JudgementRow.created_at,
        "kind": JudgementRow.kind,
        "number": JudgementRow.revision,
        "choice": JudgementRow.choice,
        "swapped": JudgementRow.swapped,
        "mark": JudgementRow.adjudication,
    },
    "lease": {
        "key": LeaseRow.task_id,
        "at": LeaseRow.granted_at,
        "kind": LeaseRow.kind,
        "number": LeaseRow.number,
        "until": LeaseRow.expires_at,
    },
    "skip": {"key": SkipRow.task_id, "at": SkipRow.created_at, "kind": SkipRow.kind},
    "practice": {"key": PracticeRow.task_id, "at": PracticeRow.created_at, "choice": PracticeRow.choice},
    "closure": {"key": ClosureRow.batch_id, "at": ClosureRow.created_at, "batch_id": ClosureRow.batch_id},
    "intervention": {
        "key": InterventionRow.intervention_id,
        "at": InterventionRow.created_at,
        "kind": InterventionRow.kind,
        "number": InterventionRow.votes,
        "batch_id": InterventionRow.batch_id,
    },
}
_ABSENT: dict[str, Any] = {
    "kind": cast(null(), String),
    "number": literal(0, Integer),
    "choice": cast(null(), String),
    "swapped": cast(false(), Boolean),
    "until": cast(null(), String),
    "mark": cast(null(), String),
    "batch_id": cast(null(), String),
}


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

    @contextmanager
    def alone_with(self, batch_id: str) -> Iterator[tuple[Connection, BatchBook]]:
        """One write transaction with the batch for itself, and the book as it stands.

        Raises:
            InputError: No such batch.
            PlumblineError: The database refused.
        """
        shelved = self._shelved(batch_id)
        with shelved.lock:
            try:
                with self.database.transaction(write=True, alone_with=batch_id) as connection:
                    shelved.follow(connection)
                    yield connection, shelved.book
            except BaseException:
                if shelved.ahead:  # it has noted rows that were not kept
                    shelved.start_anew()
                raise
            shelved.ahead = False

    def follow(self, connection: Connection, batch_id: str) -> BatchBook:
        """Notes what this transaction itself has written."""
        shelved = self._shelved(batch_id)
        shelved.ahead = True
        shelved.follow(connection)
        return shelved.book

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
                self._shelf[batch_id] = _Shelved(batch_id, BatchBook(batch), lambda: BatchBook(batch))
            return self._shelf[batch_id]


class _Shelved:
    """A book, and up to which row of each table it has been read."""

    def __init__(self, batch_id: str, book: BatchBook, blank: Callable[[], BatchBook]) -> None:
        self.book = book
        self.lock = threading.RLock()
        self.ahead = False
        self._batch_id = batch_id
        self._blank = blank
        self._read: dict[str, int] | None = None

    def start_anew(self) -> None:
        """Forgets what was noted; it is read again when it is needed."""
        self.book, self.ahead, self._read = self._blank(), False, None

    def follow(self, connection: Connection) -> None:
        """Notes what was written since; only while nobody else writes to this batch."""
        try:
            self._follow(connection)
        except BaseException:  # how far it came is not known, and what it skipped would never be read again
            self.start_anew()
            raise

    def _follow(self, connection: Connection) -> None:
        dialect = connection.dialect.name
        if self._read is None:
            self._read = _ends(connection, dialect)
            rows = connection.execute(_all_rows(dialect, self._batch_id))
        else:
            rows = connection.execute(_rows_since(dialect), {f"after_{name}": end for name, end in self._read.items()})
        noted = []
        for row in rows:
            *values, source, sequence, batch_id = tuple(row)
            self._read[source] = max(self._read[source], sequence)
            item_id = values[2]
            if (batch_id is None and item_id in self.book.items) or batch_id == self._batch_id:
                noted.append(Noted(source, *values))
        self.book.note(noted)


def as_text(moment: datetime) -> str:
    """UTC, ISO 8601 with microseconds: text that sorts by time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _number_of(name: str, dialect: str) -> Any:
    """What numbers a table's rows in the order of writing; SQLite does so in every table that is never deleted from."""
    return literal_column(
        f"{_SOURCES[name].__tablename__}.{'sequence' if dialect == 'postgresql' else 'rowid'}", BigInteger
    )


def _rows(name: str, dialect: str) -> Select:
    """Rows of one table, in the order of `Noted`'s fields after `source`."""
    model, known = _SOURCES[name], {**_ABSENT, **_COLUMNS[name]}
    item_id = getattr(model, "item_id", cast(null(), String))
    rater = getattr(model, "rater", cast(null(), String))
    values = [known["key"], known["at"], item_id, rater]
    values += [known[column] for column in ("kind", "number", "choice", "swapped", "until", "mark")]
    return select(*values, literal(name, String).label("source"), _number_of(name, dialect), known["batch_id"])


_since: dict[str, Any] = {}


def _rows_since(dialect: str) -> Any:
    """The rows after those read; one statement, made once, so that its compiled form is found again."""
    if dialect not in _since:
        _since[dialect] = union_all(
            *(
                _rows(name, dialect).where(_number_of(name, dialect) > bindparam(f"after_{name}", type_=BigInteger))
                for name in _SOURCES
            )
        )
    return _since[dialect]


def _all_rows(dialect: str, batch_id: str) -> Any:
    parts = []
    for name, model in _SOURCES.items():
        rows = _rows(name, dialect)
        if hasattr(model, "batch_id"):
            parts.append(rows.where(model.batch_id == batch_id))
        else:
            parts.append(rows.join(ItemRow, ItemRow.item_id == model.item_id).where(ItemRow.batch_id == batch_id))
    return union_all(*parts)


def _ends(connection: Connection, dialect: str) -> dict[str, int]:
    """The number of each table's last row."""
    ends = [
        select(func.coalesce(func.max(_number_of(name, dialect)), 0)).select_from(model).scalar_subquery()
        for name, model in _SOURCES.items()
    ]
    return dict(zip(_SOURCES, connection.execute(select(*ends)).one(), strict=True))
