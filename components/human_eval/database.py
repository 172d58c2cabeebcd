"""The evidence database: opened and migrated, batches and judgements added, judgements read.

Adding is idempotent: a row whose id is there already is left alone, so a step that was killed and runs again, or two
that run at once, never count a vote twice. What belongs together is one transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, Engine, RowMapping, func, inspect, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from components.human_eval.batch import Answer, Batch, Item
from components.human_eval.schema import BatchRow, ClosureRow, EvidenceBase, ItemRow, JudgementRow
from components.human_eval.settings import PEOPLE, HumanEvalSettings
from components.shared.errors import InputError, PlumblineError
from components.shared.files import digest_of
from components.shared.ledger_table import DATABASE_VARIABLE, database_url, open_engine, sqlite_file
from components.shared.notices import Notice, write_notice
from components.shared.records import PromptRecord
from components.shared.release_tables import RELEASE_ORDERS, create_release_tables
from components.shared.settings import parse_settings

__all__ = [
    "Closure",
    "EvidenceDatabase",
    "Judgement",
    "insert_of",
    "item_of",
    "judgement_id",
    "open_database",
    "utc_now",
]

_MIGRATIONS = Path(__file__).resolve().parent / "migrations"
_MIGRATION_LOCK = 0x706C756D62
"""Any constant: processes that migrate one Postgres database wait for each other on it."""

_INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_ID_LENGTH = 32
_ROWS_AT_ONCE = 2000


@dataclass(frozen=True)
class Judgement:
    """What one rater said about one item; see `JudgementRow`."""

    judgement_id: str
    item_id: str
    rater: str
    rater_kind: Literal["human", "ai", "simulated"]
    kind: Literal["vote", "gold", "repeat"]
    swapped: bool
    choice: Literal["a", "b", "tie", "both_bad"]
    flags_a: list[str]
    flags_b: list[str]
    created_at: str
    rationale: str | None = None
    revision: int = 0
    supersedes: str | None = None
    rubric: dict[str, str] | None = None
    adjudication: str | None = None
    import_id: str | None = None


@dataclass(frozen=True)
class Closure:
    """The end of a batch."""

    batch_id: str
    actor: str
    reason: str
    created_at: str


class EvidenceDatabase:
    """Batches and judgements in one database. Nothing is ever changed in place.

    Args:
        engine: SQLite or Postgres, migrated; `open_database` makes it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def engine(self) -> Engine:
        """Of the database; what lies beside the evidence in it uses it too."""
        return self._engine

    def open_batch(self, batch: Batch) -> None:
        """Stores a batch and its items; a batch that is there already stays as it is."""
        opened = utc_now()
        row = {
            "batch_id": batch.batch_id,
            "evaluation_digest": batch.evaluation_digest,
            "dataset_digest": batch.dataset_digest,
            "models": batch.models,
            "settings": batch.settings.model_dump(mode="json"),
            "seed": batch.seed,
            "created_at": opened,
            "deadline": _deadline(opened, batch.settings),
        }
        with self.transaction(write=True) as connection:
            self.add(connection, BatchRow, [row])
            self.add(connection, ItemRow, [_item_row(batch.batch_id, item) for item in batch.items])

    def add_judgements(self, judgements: Sequence[Judgement]) -> set[str]:
        """Stores judgements, all or none.

        Returns:
            Ids of those that this call stored; the others were there already and stay as they are.

        Raises:
            PlumblineError: The database refused: unknown item, a correction of what was corrected already, or failure.
        """
        with self.transaction(write=True) as connection:
            return self.add(connection, JudgementRow, [asdict(judgement) for judgement in judgements])

    def judgements(self, batch_id: str) -> list[Judgement]:
        """All judgements on a batch as given, superseded ones too, oldest first."""
        table = JudgementRow.__table__
        query = (
            select(table)
            .join(ItemRow.__table__, table.c.item_id == ItemRow.__table__.c.item_id)
            .where(ItemRow.__table__.c.batch_id == batch_id)
            .order_by(table.c.created_at, table.c.judgement_id)
        )
        with self.transaction() as connection:
            return [Judgement(**row) for row in connection.execute(query).mappings()]

    def judgement(self, connection: Connection, key: str) -> Judgement | None:
        """One judgement by its id, within a transaction."""
        table = JudgementRow.__table__
        row = connection.execute(select(table).where(table.c.judgement_id == key)).mappings().first()
        return Judgement(**row) if row else None

    def batch(self, batch_id: str) -> Batch:
        """A batch as it was stored.

        Raises:
            InputError: There is none of this id.
        """
        table = ItemRow.__table__
        with self.transaction() as connection:
            found = (
                connection.execute(select(BatchRow.__table__).where(BatchRow.batch_id == batch_id)).mappings().first()
            )
            rows = connection.execute(
                select(table).where(table.c.batch_id == batch_id).order_by(table.c.comparison, table.c.position)
            ).mappings()
            items = tuple(item_of(row) for row in rows)
        if found is None:
            raise InputError(
                f"no batch {batch_id!r}.", where="evidence database", hint="Run the human_eval step first."
            )
        settings = parse_settings(found["settings"], HumanEvalSettings, where=f"batch {batch_id}")
        digests = found["evaluation_digest"], found["dataset_digest"]
        return Batch(batch_id, *digests, found["models"], settings, found["seed"], items)

    def deadline(self, batch_id: str) -> datetime:
        """When people's time for a batch is up; fixed when it was opened.

        Raises:
            InputError: There is no such batch.
        """
        columns = select(BatchRow.deadline, BatchRow.created_at, BatchRow.settings)
        with self.transaction() as connection:
            row = connection.execute(columns.where(BatchRow.batch_id == batch_id)).first()
        if row is None:
            raise InputError(f"no batch {batch_id!r}.", where="evidence database")
        settings = parse_settings(row.settings, HumanEvalSettings, where=f"batch {batch_id}")
        return datetime.fromisoformat(row.deadline or _deadline(row.created_at, settings))

    def batch_ids(self) -> list[str]:
        """Every batch, oldest first."""
        with self.transaction() as connection:
            return list(connection.execute(select(BatchRow.batch_id).order_by(BatchRow.created_at)).scalars())

    def unclosed(self) -> list[str]:
        """Batches that are not closed, oldest first."""
        closed = select(ClosureRow.batch_id)
        query = select(BatchRow.batch_id).where(BatchRow.batch_id.not_in(closed)).order_by(BatchRow.created_at)
        with self.transaction() as connection:
            return list(connection.execute(query).scalars())

    def closure(self, batch_id: str) -> Closure | None:
        """Who closed a batch, when and why; None while it is open."""
        with self.transaction() as connection:
            row = connection.execute(select(ClosureRow.__table__).where(ClosureRow.batch_id == batch_id)).mappings()
            found = row.first()
        return Closure(**found) if found else None

    def close(self, batch_id: str, *, actor: str, reason: str, overdue: bool = False) -> Closure:
        """Closes a batch for good; one that is closed already stays as it was closed.

        Of a batch for people a notice goes out: it is written in the same transaction.

        Args:
            batch_id: The batch.
            actor: Who closes it.
            reason: Why.
            overdue: Its deadline came before its votes.

        Raises:
            InputError: No actor or no reason.
            PlumblineError: There is no such batch.
        """
        actor, reason = actor.strip(), reason.strip()
        if not (actor and reason):
            raise InputError(
                "a batch is closed by somebody, for a reason.", where=f"batch {batch_id}", hint="Give both."
            )
        with self.transaction(write=True, alone_with=batch_id) as connection:
            self.add_closure(connection, Closure(batch_id, actor, reason, utc_now()), overdue=overdue)
        closed = self.closure(batch_id)
        assert closed is not None  # just written
        return closed

    def add_closure(self, connection: Connection, closure: Closure, *, overdue: bool = False) -> None:
        """Closes a batch within a transaction, and writes the notice of it if people judged; see `close`."""
        added = self.add(connection, ClosureRow, [asdict(closure)])
        if added and _is_for_people(connection, closure.batch_id):
            write_notice(connection, _notice_of_end(connection, closure.batch_id, closure.reason, overdue=overdue))

    def add(self, connection: Connection, model: type[EvidenceBase], rows: Sequence[dict[str, Any]]) -> set[str]:
        """Adds rows within a transaction; returns the keys of those that were not there yet."""
        insert = insert_of(model, connection.dialect.name)
        added: set[str] = set()
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            added |= set(connection.execute(insert, list(rows[first : first + _ROWS_AT_ONCE])).scalars())
        return added

    @contextmanager
    def transaction(self, *, write: bool = False, alone_with: str | None = None) -> Iterator[Connection]:
        """One transaction; what fails in it leaves nothing behind.

        Args:
            write: Whether it writes; on SQLite it then has the database for itself.
            alone_with: A batch that no other writer who names it touches until the end.

        Raises:
            PlumblineError: The database refused.
        """
        try:
            with self._engine.connect().execution_options(write=write) as connection, connection.begin():
                if alone_with is not None and connection.dialect.name == "postgresql":
                    connection.execute(select(func.pg_advisory_xact_lock(_lock_of(alone_with))))
                yield connection
        except SQLAlchemyError as error:
            raise PlumblineError(
                f"the evidence database refused: {_first_line(error)}", where=DATABASE_VARIABLE
            ) from error


def open_database(url: str | None = None) -> EvidenceDatabase:
    """Opens the evidence database and brings its tables up to date; safe when several processes do so at once.

    Args:
        url: SQLAlchemy URL; PLUMBLINE_DATABASE_URL if None.

    Raises:
        InputError: No URL, an unsupported database, one that does not answer, or one of a newer Plumbline.
    """
    url = url or database_url()
    file = sqlite_file(url)
    try:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        engine = open_engine(url)
        if engine.dialect.name not in _INSERTS:
            raise InputError(f"{engine.dialect.name} is not supported.", where=DATABASE_VARIABLE, hint="Use Postgres.")
        _migrate(engine)
        create_release_tables(engine)
    except (SQLAlchemyError, OSError, ImportError) as error:
        raise InputError(
            f"cannot open the evidence database: {_first_line(error)}",
            where=DATABASE_VARIABLE,
            hint="Check the URL, its driver, and that the database answers.",
        ) from error
    return EvidenceDatabase(engine)


def judgement_id(item_id: str, rater: str, kind: str, revision: int = 0) -> str:
    """The id that the same judgement always gets."""
    return digest_of([item_id, rater, kind, revision])[:_ID_LENGTH]


def utc_now() -> str:
    """Now, in UTC, ISO 8601 with microseconds: text that sorts by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _deadline(opened: str, settings: HumanEvalSettings) -> str:
    ends = datetime.fromisoformat(opened) + timedelta(hours=settings.deadline_hours)
    return ends.isoformat(timespec="microseconds")


def _is_for_people(connection: Connection, batch_id: str) -> bool:
    settings = connection.execute(select(BatchRow.settings).where(BatchRow.batch_id == batch_id)).scalar_one()
    return settings.get("panel") == PEOPLE


def _notice_of_end(connection: Connection, batch_id: str, reason: str, *, overdue: bool) -> Notice:
    columns = select(RELEASE_ORDERS.c.model, RELEASE_ORDERS.c.version).distinct()
    waiting = connection.execute(columns.where(RELEASE_ORDERS.c.batch_id == batch_id)).all()
    names = ", ".join(f"{row.model} version {row.version}" for row in waiting)
    what = "Evidence overdue" if overdue else "Evidence complete"
    return Notice(
        id=digest_of(["batch closed", batch_id])[:_ID_LENGTH],
        kind="evidence_overdue" if overdue else "evidence_complete",
        text=f"{what}: batch {batch_id[:8]}{f' of {names}' if names else ''} is closed. {reason}"
        + (" The release run starts by itself." if names else ""),
        details={
            "batch_id": batch_id,
            "model_name": waiting[0].model if waiting else None,
            "version": waiting[0].version if waiting else None,
        },
    )


def _migrate(engine: Engine) -> None:
    """Alembic within one transaction that holds the write lock, so that one process migrates and the others wait."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    with engine.connect().execution_options(write=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise InputError(
                f"the evidence tables are of another version: {error}.",
                where=DATABASE_VARIABLE,
                hint="Run the Plumbline version that last migrated this database, or a newer one.",
            ) from error


def item_of(row: RowMapping) -> Item:
    """An item from its row."""
    record = PromptRecord(id=row["prompt_id"], prompt=row["prompt"], slice=row["slice"])
    first, second = Answer(**row["first"]), Answer(**row["second"])
    return Item(row["item_id"], row["comparison"], row["kind"], row["position"], record, first, second)


@cache
def insert_of(model: type[EvidenceBase], dialect: str) -> Any:
    """An insertion that leaves a row alone whose key is there already, and returns the key if it was not."""
    (key,) = inspect(model).primary_key
    return _INSERTS[dialect](model.__table__).on_conflict_do_nothing(index_elements=[key]).returning(key)


def _lock_of(name: str) -> int:
    """A Postgres advisory lock's number (signed, 64 bits) from a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


def _item_row(batch_id: str, item: Item) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "batch_id": batch_id,
        "comparison": item.comparison,
        "kind": item.kind,
        "position": item.position,
        "prompt_id": item.record.id,
        "slice": item.record.slice,
        "prompt": item.record.model_dump(mode="json")["prompt"],
        "first": item.first.as_json(),
        "second": item.second.as_json(),
    }


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
