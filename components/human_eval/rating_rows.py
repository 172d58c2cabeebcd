"""What the database knows of raters at work: votes by item, live leases, a rater's own answers. Queries only."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from components.human_eval.database import Judgement
from components.human_eval.schema import ClosureRow, ItemRow, JudgementRow, LeaseRow, PracticeRow, SkipRow
from components.human_eval.turns import Turn
from components.shared.files import digest_of

__all__ = [
    "held_turn",
    "is_answered",
    "is_closed",
    "last_actions",
    "latest_judgement",
    "leases_of_others",
    "own_turns",
    "practised_items",
    "raters_of",
    "task_id_of",
    "votes_by_item",
]

_ID_LENGTH = 32


def task_id_of(turn: Turn, rater: str) -> str:
    """The id by which a rater knows an item; it tells nothing about the item."""
    return digest_of([turn.item_id, rater, turn.kind, "task"])[:_ID_LENGTH]


def votes_by_item(connection: Connection, batch_id: str) -> dict[str, int]:
    """Effective votes by item: one a rater, however often it was corrected."""
    query = (
        select(JudgementRow.item_id, func.count(JudgementRow.rater.distinct()).label("raters"))
        .join(ItemRow, ItemRow.item_id == JudgementRow.item_id)
        .where(ItemRow.batch_id == batch_id, JudgementRow.kind == "vote")
        .group_by(JudgementRow.item_id)
    )
    return {row.item_id: row.raters for row in connection.execute(query)}


def is_closed(connection: Connection, batch_id: str) -> bool:
    """Whether a batch accepts nothing any more."""
    return connection.execute(select(ClosureRow.batch_id).where(ClosureRow.batch_id == batch_id)).first() is not None


def is_answered(connection: Connection, turn: Turn, rater: str, task_id: str) -> bool:
    """Whether a rater has judged, skipped or practised on an item."""
    if turn.kind == "practice":
        return connection.execute(select(PracticeRow.task_id).where(PracticeRow.task_id == task_id)).first() is not None
    skipped = connection.execute(select(SkipRow.task_id).where(SkipRow.task_id == task_id)).first()
    return skipped is not None or latest_judgement(connection, turn, rater) is not None


def latest_judgement(connection: Connection, turn: Turn, rater: str) -> Judgement | None:
    """The rater's judgement on an item that no later one supersedes."""
    table = JudgementRow.__table__
    query = (
        select(table)
        .where(table.c.item_id == turn.item_id, table.c.rater == rater, table.c.kind == turn.kind)
        .order_by(table.c.revision.desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().first()
    return Judgement(**row) if row else None


def own_turns(connection: Connection, batch_id: str, rater: str) -> tuple[list[Turn], frozenset[Turn]]:
    """What a rater judged, in the order of the first answers, and what he skipped and did not judge after all."""
    judged = connection.execute(
        select(JudgementRow.item_id, JudgementRow.kind)
        .join(ItemRow, ItemRow.item_id == JudgementRow.item_id)
        .where(ItemRow.batch_id == batch_id, JudgementRow.rater == rater, JudgementRow.revision == 0)
        .order_by(JudgementRow.created_at, JudgementRow.judgement_id)
    )
    turns = [Turn(row.item_id, row.kind) for row in judged]
    skipped = connection.execute(
        select(SkipRow.item_id, SkipRow.kind)
        .join(ItemRow, ItemRow.item_id == SkipRow.item_id)
        .where(ItemRow.batch_id == batch_id, SkipRow.rater == rater)
    )
    return turns, frozenset(Turn(row.item_id, row.kind) for row in skipped) - set(turns)


def last_actions(connection: Connection, batch_id: str, rater: str) -> list[Turn]:
    """What a rater judged or skipped, each item once, the last touched last."""
    latest: dict[Turn, str] = {}
    for model in (SkipRow, JudgementRow):
        query = (
            select(model.item_id, model.kind, model.created_at)
            .join(ItemRow, ItemRow.item_id == model.item_id)
            .where(ItemRow.batch_id == batch_id, model.rater == rater)
        )
        for row in connection.execute(query):
            turn = Turn(row.item_id, row.kind)
            latest[turn] = max(row.created_at, latest.get(turn, ""))
    return sorted(latest, key=lambda turn: latest[turn])


def leases_of_others(connection: Connection, batch_id: str, rater: str, *, now: str) -> dict[str, int]:
    """Live leases on votes that are neither given nor skipped, by item."""
    given = select(JudgementRow.judgement_id).where(
        JudgementRow.item_id == LeaseRow.item_id, JudgementRow.rater == LeaseRow.rater, JudgementRow.kind == "vote"
    )
    skipped = select(SkipRow.task_id).where(SkipRow.task_id == LeaseRow.task_id)
    query = (
        select(LeaseRow.item_id, func.count(LeaseRow.rater.distinct()).label("raters"))
        .join(ItemRow, ItemRow.item_id == LeaseRow.item_id)
        .where(
            ItemRow.batch_id == batch_id,
            LeaseRow.kind == "vote",
            LeaseRow.rater != rater,
            LeaseRow.expires_at > now,
            ~given.exists(),
            ~skipped.exists(),
        )
        .group_by(LeaseRow.item_id)
    )
    return {row.item_id: row.raters for row in connection.execute(query)}


def held_turn(connection: Connection, batch_id: str, rater: str, *, now: str) -> Turn | None:
    """The item that the rater holds and has not answered."""
    query = (
        select(LeaseRow.item_id, LeaseRow.kind, LeaseRow.task_id)
        .join(ItemRow, ItemRow.item_id == LeaseRow.item_id)
        .where(ItemRow.batch_id == batch_id, LeaseRow.rater == rater, LeaseRow.expires_at > now)
        .order_by(LeaseRow.granted_at.desc())
    )
    for row in connection.execute(query):
        turn = Turn(row.item_id, row.kind)
        if not is_answered(connection, turn, rater, row.task_id):
            return turn
    return None


def practised_items(connection: Connection, batch_id: str, rater: str) -> frozenset[str]:
    """Items of a batch that a rater has practised on."""
    query = (
        select(PracticeRow.item_id)
        .join(ItemRow, ItemRow.item_id == PracticeRow.item_id)
        .where(ItemRow.batch_id == batch_id, PracticeRow.rater == rater)
    )
    return frozenset(connection.execute(query).scalars())


def raters_of(connection: Connection, batch_id: str) -> list[str]:
    """Who has judged anything in a batch."""
    query = (
        select(JudgementRow.rater)
        .distinct()
        .join(ItemRow, ItemRow.item_id == JudgementRow.item_id)
        .where(ItemRow.batch_id == batch_id)
    )
    return list(connection.execute(query).scalars())
