"""Labels from other tools: who brought them in, from which file.

The names of the raters in such a file are what the file says. Whoever imports it vouches for them, and is recorded
before its first label is taken: a row that stays, to which each judgement points that came by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select

from components.human_eval.answers import require_text
from components.human_eval.database import EvidenceDatabase, Judgement, utc_now
from components.human_eval.schema import ImportRow
from components.shared.accounts import account
from components.shared.errors import InputError, PlumblineError
from components.shared.files import digest_of

__all__ = ["Import", "find_imports", "record_import", "tell_imports"]

_ID_LENGTH = 32
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Import:
    """A file of labels that somebody brought in.

    Attributes:
        import_id: The same for the same file, batch and person.
        batch_id: The batch.
        actor: Who imported it, as signed in.
        written_by: Account and machine of the process that took it.
        source: Where it came from: the file's name, or by which way.
        digest: sha256 of the file.
        labels: How many labels are in it; what of them was taken, the judgements tell.
        created_at: When it was first imported (UTC, ISO 8601).
    """

    import_id: str
    batch_id: str
    actor: str
    written_by: str
    source: str
    digest: str
    labels: int
    created_at: str


def record_import(
    database: EvidenceDatabase, batch_id: str, *, actor: str, source: str, digest: str, labels: int
) -> str:
    """Records who imports what; the same file once more, by the same person, is the same import.

    Returns:
        The import's id, for its judgements.

    Raises:
        InputError: Nobody is named.
    """
    actor, source = actor.strip(), source.strip()[:_LONGEST_NAME] or "unnamed"
    if not actor:
        raise InputError("labels are imported by somebody.", where=f"batch {batch_id}", hint="Name who imports them.")
    require_text(source, where=f"batch {batch_id}, name of the file")
    found = Import(
        digest_of([batch_id, actor, digest])[:_ID_LENGTH],
        batch_id,
        actor,
        account(),
        source,
        digest,
        labels,
        utc_now(),
    )
    with database.transaction(write=True) as connection:
        database.add(connection, ImportRow, [asdict(found)])
    return found.import_id


def find_imports(database: EvidenceDatabase, batch_id: str) -> dict[str, Import]:
    """A batch's imports by their id, oldest first."""
    table = ImportRow.__table__
    query = select(table).where(table.c.batch_id == batch_id).order_by(table.c.created_at, table.c.import_id)
    with database.transaction() as connection:
        return {row["import_id"]: Import(**row) for row in connection.execute(query).mappings()}


def tell_imports(imports: Mapping[str, Import], judgements: Iterable[Judgement]) -> list[dict[str, Any]]:
    """Each import with `judgements`, how many rows of the evidence came by it.

    Raises:
        PlumblineError: A judgement names an import that nobody recorded.
    """
    taken = Counter(judgement.import_id for judgement in judgements if judgement.import_id is not None)
    unknown = sorted(set(taken) - set(imports))
    if unknown:
        raise PlumblineError(
            f"judgements came by an import that is not recorded: {', '.join(unknown)}.",
            where="evidence database",
            hint="Rows were written past Plumbline; find out by whom.",
        )
    return [asdict(found) | {"judgements": taken[name]} for name, found in imports.items()]
