"""The release ledger's table: its columns, how to open its database, and which states mean "live".

The gate (`components.release_gate.ledger`) writes it; other stages only read which version is champion
(`components.shared.champion`).
"""

from __future__ import annotations

import os
import time
from functools import cache, partial
from pathlib import Path

from sqlalchemy import Column, Connection, Engine, Integer, MetaData, String, Table, Text, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DisconnectionError

from components.shared.errors import InputError

__all__ = ["DATABASE_VARIABLE", "LEDGER", "LIVE_STATES", "METADATA", "database_url", "open_engine", "sqlite_file"]

DATABASE_VARIABLE = "PLUMBLINE_DATABASE_URL"

LIVE_STATES = frozenset({"SOAKING", "CHAMPION"})
"""A version in one of these holds the champion alias: a soaking model already serves."""

METADATA = MetaData()

LEDGER = Table(
    "release_ledger",
    METADATA,
    Column("model", String(255), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("version", String(64), nullable=False),
    Column("event", String(32), nullable=False),
    Column("from_state", String(32), nullable=False),
    Column("to_state", String(32), nullable=False),
    Column("actor", String(255), nullable=False),
    Column("reason", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("details", Text, nullable=False),
    Column("time", String(40), nullable=False),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)
"""One row an event. The primary key (model, sequence) is the compare-and-set: of two writers at one place in the
sequence, one gets an integrity error. `evidence` and `details` are canonical JSON: a hash covers their bytes."""

_BUSY_SECONDS = 30
_IDLE_SECONDS = 5.0
_POOL_SIZE, _POOL_OVERFLOW = 8, 8
"""Connections that one process keeps, and that it may open besides when all are in use."""


def database_url() -> str:
    """The evidence and ledger database.

    Raises:
        InputError: PLUMBLINE_DATABASE_URL is not set.
    """
    url = os.environ.get(DATABASE_VARIABLE, "")
    if not url:
        raise InputError(
            "the evidence and ledger database is not set.",
            where=DATABASE_VARIABLE,
            hint="Set it to an SQLAlchemy URL, such as sqlite:////var/lib/plumbline/plumbline.db.",
        )
    return url


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite URL; None for a server or an in-memory database."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(parsed.database)


@cache
def open_engine(url: str) -> Engine:
    """An engine with one connection pool a process.

    On SQLite: write-ahead log, a busy timeout, and a transaction that takes the write lock at once when the
    connection has the execution option `write=True` (a deferred one fails half-way when another writer was faster).
    On a server: a connection that lay idle is tried before it is used, for the server may have been restarted.
    """
    address = make_url(url)
    if address.drivername == "postgresql":  # the driver that Plumbline brings, not SQLAlchemy's default
        address = address.set(drivername="postgresql+pg8000")
    # What is read behind a lock must be newer than the lock, whatever isolation the server is set to.
    isolation = {} if address.get_backend_name() == "sqlite" else {"isolation_level": "READ COMMITTED"}
    engine = create_engine(address, pool_size=_POOL_SIZE, max_overflow=_POOL_OVERFLOW, **isolation)
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", partial(_try_if_idle, engine))
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _note_use(_connection, record) -> None:
    record.info["used"] = time.monotonic()


def _try_if_idle(engine: Engine, connection, record, _proxy) -> None:
    if time.monotonic() - record.info.get("used", time.monotonic()) < _IDLE_SECONDS:
        return
    try:
        alive = engine.dialect.do_ping(connection)
    except engine.dialect.loaded_dbapi.Error:
        alive = False
    if not alive:
        raise DisconnectionError("the server has closed this connection")  # the pool then takes another one


def _prepare_sqlite(connection, _record) -> None:
    connection.isolation_level = None  # SQLAlchemy's `begin` event emits BEGIN; the driver must not
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
