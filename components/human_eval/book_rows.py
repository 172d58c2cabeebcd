"""The rows of the evidence tables that a batch's book notes: read in the order of writing, and added.

On Postgres a column of its own numbers the rows of each table in the order of writing, on SQLite the rowid does.
"""

from __future__ import annotations

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

from components.human_eval.book import Noted
from components.human_eval.database import insert_of
from components.human_eval.schema import (
    ClosureRow,
    EvidenceBase,
    InterventionRow,
    ItemRow,
    JudgementRow,
    LeaseRow,
    PracticeRow,
    SkipRow,
)

__all__ = ["SOURCES", "add_row", "all_rows", "last_numbers", "rows_since"]

SOURCES: dict[str, Any] = {
    "judgement": JudgementRow,
    "lease": LeaseRow,
    "skip": SkipRow,
    "practice": PracticeRow,
    "closure": ClosureRow,
    "intervention": InterventionRow,
}
"""Tables by the name that `Noted.source` has."""

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
_DEFAULTS: dict[str, Any] = {
    "item_id": None,
    "rater": None,
    "kind": None,
    "number": 0,
    "choice": None,
    "swapped": False,
    "until": None,
    "mark": None,
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
_NUMBERS = {"postgresql": "sequence", "sqlite": "rowid"}
_NAMES = {model: name for name, model in SOURCES.items()}

_since: dict[str, Any] = {}
_inserts: dict[tuple[type[EvidenceBase], str], Any] = {}


def rows_since(dialect: str) -> Any:
    """The rows after those read, of all batches; one statement, made once, so that its compiled form is found again.

    Columns: the fields of `Noted` after `source`, then source, number, batch (None where the item tells it).
    Parameters: `after_` and the name of each source.
    """
    if dialect not in _since:
        _since[dialect] = union_all(
            *(
                _rows(name, dialect).where(_number_of(name, dialect) > bindparam(f"after_{name}", type_=BigInteger))
                for name in SOURCES
            )
        )
    return _since[dialect]


def all_rows(dialect: str, batch_id: str) -> Any:
    """All rows of a batch, with the columns of `rows_since`."""
    parts = []
    for name, model in SOURCES.items():
        rows = _rows(name, dialect)
        if hasattr(model, "batch_id"):
            parts.append(rows.where(model.batch_id == batch_id))
        else:
            parts.append(rows.join(ItemRow, ItemRow.item_id == model.item_id).where(ItemRow.batch_id == batch_id))
    return union_all(*parts)


def last_numbers(connection: Connection, dialect: str) -> dict[str, int]:
    """The number of each table's last row."""
    ends = [
        select(func.coalesce(func.max(_number_of(name, dialect)), 0)).select_from(model).scalar_subquery()
        for name, model in SOURCES.items()
    ]
    return dict(zip(SOURCES, connection.execute(select(*ends)).one(), strict=True))


def add_row(connection: Connection, model: type[EvidenceBase], row: dict[str, Any]) -> tuple[Noted, int] | None:
    """Adds a row.

    Returns:
        What a book notes of it, and its number; None if it was there already.
    """
    name, dialect = _NAMES[model], connection.dialect.name
    key = (model, dialect)
    if key not in _inserts:
        _inserts[key] = insert_of(model, dialect).returning(literal_column(_NUMBERS[dialect], BigInteger))
    added = connection.execute(_inserts[key], row).first()
    if added is None:
        return None
    known = {field: row[column.key] for field, column in _COLUMNS[name].items() if field != "batch_id"}
    about = {field: row[field] for field in ("item_id", "rater") if field in row}
    return Noted(source=name, **{**_DEFAULTS, **about, **known}), int(added[-1])


def _number_of(name: str, dialect: str) -> Any:
    """What numbers a table's rows in the order of writing; SQLite does so in every table that is never deleted from."""
    return literal_column(f"{SOURCES[name].__tablename__}.{_NUMBERS[dialect]}", BigInteger)


def _rows(name: str, dialect: str) -> Select:
    """Rows of one table, in the order of `Noted`'s fields after `source`."""
    model, known = SOURCES[name], {**_ABSENT, **_COLUMNS[name]}
    item_id = getattr(model, "item_id", cast(null(), String))
    rater = getattr(model, "rater", cast(null(), String))
    values = [known["key"], known["at"], item_id, rater]
    values += [known[column] for column in ("kind", "number", "choice", "swapped", "until", "mark")]
    return select(*values, literal(name, String).label("source"), _number_of(name, dialect), known["batch_id"])
