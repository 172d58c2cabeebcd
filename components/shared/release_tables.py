"""Tables beside the ledger: notices to people, and the release runs that a batch's end starts. They only ever grow.

    notices 1-n notice_attempts          what people are to be told, and each try to tell them
    release_orders 1-n release_runs      what waits for evidence, and each step of the run that its evidence starts
    review_keys                          the key of the review service, and each one that took its place

They lie in the database of evidence and ledger, so that a notice is written in the transaction of its event. Triggers
refuse updates and deletions. Of two writers who add the same number to one row's history, one gets an integrity error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Column, Connection, Engine, Integer, MetaData, String, Table, Text, inspect, text
from sqlalchemy.dialects import postgresql, sqlite

__all__ = [
    "NOTICES",
    "NOTICE_ATTEMPTS",
    "RELEASE_ORDERS",
    "RELEASE_RUNS",
    "REVIEW_KEYS",
    "add_if_new",
    "create_release_tables",
]

METADATA = MetaData()

NOTICES = Table(
    "notices",
    METADATA,
    Column("notice_id", String(64), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", String(40), nullable=False),
)
"""What people are to be told: `body` is the JSON that the webhook gets."""

NOTICE_ATTEMPTS = Table(
    "notice_attempts",
    METADATA,
    Column("notice_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("outcome", String(16), nullable=False),
    Column("problem", Text, nullable=True),
    Column("at", String(40), nullable=False),
)
"""The history of a notice's delivery: `sending`, then `delivered`, `failed` or `refused`, then `sending` again; `again`
where somebody asked for what was given up."""

RELEASE_ORDERS = Table(
    "release_orders",
    METADATA,
    Column("order_id", String(64), primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("batch_id", String(64), nullable=False, index=True),
    Column("model", String(255), nullable=False),
    Column("version", String(64), nullable=False),
    Column("mode", String(16), nullable=False),
    Column("content", Text, nullable=False),
    Column("created_at", String(40), nullable=False),
)
"""Which version waits for which batch, and where its artifacts lie; a later revision says where they lie now."""

RELEASE_RUNS = Table(
    "release_runs",
    METADATA,
    Column("order_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("event", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("holder", String(255), nullable=False),
    Column("at", String(40), nullable=False),
    Column("expires_at", String(40), nullable=True),
    Column("details", Text, nullable=False),
)
"""The history of an order: `started`, `begun`, perhaps `renewed`, then `ended` or `failed`; see `release_orders`."""

REVIEW_KEYS = Table(
    "review_keys",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("public_key", String(64), nullable=False),
    Column("registered_by", String(255), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", String(40), nullable=False),
)
"""Public keys of the review service, the newest last; see `review_key`."""

_TABLES = (NOTICES, NOTICE_ATTEMPTS, RELEASE_ORDERS, RELEASE_RUNS, REVIEW_KEYS)
_INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_CREATION_LOCK = 0x706C756D63
"""Any constant: processes that create the tables in one Postgres database wait for each other on it."""


def create_release_tables(engine: Engine) -> None:
    """Creates those that are missing, once; safe when several processes do it at the same time."""
    if not _missing(engine):
        return
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})"))
        if missing := _missing(connection):  # all of them, or those that came with a later version
            METADATA.create_all(connection, tables=missing, checkfirst=True)
            _guard(connection, missing)


def add_if_new(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Adds a row unless its key is there already; returns whether it was added."""
    keys = list(table.primary_key.columns)
    insert = _INSERTS[connection.dialect.name](table).values(**row)
    added = connection.execute(insert.on_conflict_do_nothing(index_elements=keys).returning(*keys)).first()
    return added is not None


def _missing(bind: Engine | Connection) -> list[Table]:
    found = set(inspect(bind).get_table_names())
    return [table for table in _TABLES if table.name not in found]


def _guard(connection: Connection, tables: list[Table]) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION release_append_only() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
            )
        )
    for table in tables:
        if connection.dialect.name == "postgresql":
            connection.execute(
                text(
                    f"CREATE TRIGGER {table.name}_append_only BEFORE UPDATE OR DELETE ON {table.name} "
                    "FOR EACH ROW EXECUTE FUNCTION release_append_only()"
                )
            )
            continue
        for action in ("UPDATE", "DELETE"):
            connection.execute(
                text(
                    f"CREATE TRIGGER {table.name}_no_{action.lower()} BEFORE {action} ON {table.name} "
                    f"BEGIN SELECT RAISE(ABORT, '{table.name} is append-only'); END"
                )
            )
