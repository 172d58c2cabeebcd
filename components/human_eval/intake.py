"""Takes answers for the rating desk: stores them if they are wanted, and closes a batch that has them all.

Every method works within a decision: a transaction that has the batch for itself.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Literal

from sqlalchemy import delete, select

from components.human_eval.answers import RaterAnswer
from components.human_eval.book import BatchBook, task_id_of
from components.human_eval.books import Books, Decision, as_text
from components.human_eval.database import Closure, Judgement, judgement_id
from components.human_eval.rating import (
    AnsweredError,
    ClosedError,
    Feedback,
    ForeignLabelError,
    GoneError,
    RaterKind,
    Receipt,
    SetAsideError,
)
from components.human_eval.schema import DraftRow, ItemRow, JudgementRow, LeaseRow, PracticeRow
from components.human_eval.turns import Turn, shown_swapped
from components.shared.files import digest_of

__all__ = ["Intake", "answer_of", "closed_error"]

_ID_LENGTH = 32
_COMPLETE = "Every pair has its votes."
_DESK = "rating desk"


class Intake:
    """Stores answers and leases.

    Args:
        books: The books of the batches.
    """

    def __init__(self, books: Books) -> None:
        self._books = books

    def latest(self, decision: Decision, turn: Turn, rater: str) -> Judgement | None:
        """The rater's judgement on an item that no later one supersedes, whole."""
        given = decision.book.latest(turn, rater)
        if given is None:
            return None
        return self._books.database.judgement(
            decision.connection, judgement_id(turn.item_id, rater, turn.kind, given.revision)
        )

    def lease(self, decision: Decision, turn: Turn, rater: str, *, drafted: bool = False) -> str:
        """Leases an item, or prolongs the lease once half of it has passed; returns when it ends.

        With the first draft it is prolonged in any case, so that a task with one lease is known to have no draft.
        """
        book, task_id, now = decision.book, task_id_of(turn, rater), self._books.now()
        span = timedelta(minutes=book.plan.settings.lease_minutes)
        held = book.leases.get(task_id)
        fresh = held is not None and held.until > as_text(now + span / 2)
        if held is not None and fresh and book.keeps(turn, rater) and not (drafted and held.count == 1):
            return held.until
        number = held.count if held is not None else 0
        row = {
            "lease_id": digest_of([task_id, number])[:_ID_LENGTH],
            "task_id": task_id,
            "item_id": turn.item_id,
            "rater": rater,
            "kind": turn.kind,
            "number": number,
            "granted_at": as_text(now),
            "expires_at": as_text(now + span),
        }
        decision.add(LeaseRow, row)
        return row["expires_at"]

    def drop_draft(self, decision: Decision, task_id: str) -> None:
        """Deletes what was begun, if anything was."""
        leases = decision.book.leases
        if task_id in leases and leases[task_id].count > 1:
            decision.change(delete(DraftRow).where(DraftRow.task_id == task_id))

    def judgement(
        self,
        decision: Decision,
        turn: Turn,
        rater: str,
        answer: RaterAnswer,
        rater_kind: RaterKind,
        *,
        swapped: bool | None = None,
        import_id: str | None = None,
    ) -> Receipt:
        """Stores a judgement; one of another tool says how it was shown there, and by which import it came."""
        book, task_id, latest = decision.book, task_id_of(turn, rater), self.latest(decision, turn, rater)
        if latest is not None and answer.revision == latest.revision:
            if answer_of(latest) == answer:
                return Receipt(task_id, answer.revision)
            raise AnsweredError("you gave another answer to this item already.", hint="Undo to correct it.")
        if answer.revision != (0 if latest is None else latest.revision + 1):
            raise AnsweredError("this item was answered elsewhere meanwhile.", hint="Load the page again.")
        self._require_takes(book, turn, rater, latest)
        if swapped is None:
            swapped = shown_swapped(turn.item_id, rater, turn.kind)
        judgement = Judgement(
            judgement_id=judgement_id(turn.item_id, rater, turn.kind, answer.revision),
            item_id=turn.item_id,
            rater=rater,
            rater_kind=rater_kind,
            kind=turn.kind,  # type: ignore[arg-type]  (practice never comes here)
            swapped=latest.swapped if latest else swapped,
            created_at=self._books.stamp(),
            supersedes=latest.judgement_id if latest else None,
            adjudication=latest.adjudication if latest else book.adjudication_of(turn),
            import_id=import_id,
            **answer.model_dump(),
        )
        decision.add(JudgementRow, asdict(judgement))
        self.drop_draft(decision, task_id)
        if book.plan.settings.undo_minutes == 0.0:
            self.close_when_due(decision)
        return Receipt(task_id, answer.revision)

    def practice(self, decision: Decision, turn: Turn, rater: str, answer: RaterAnswer) -> Receipt:
        """Stores an answer to a practice item."""
        book, task_id, swapped = decision.book, task_id_of(turn, rater), shown_swapped(turn.item_id, rater, turn.kind)
        better: Literal["a", "b"] = "b" if swapped else "a"  # the first answer of a gold item is the better one
        receipt = Receipt(task_id, 0, Feedback(answer.choice == better, better))
        known = book.practised[rater].get(turn.item_id)
        if known == answer.choice:
            return receipt
        if known is not None:
            raise AnsweredError("you practised on this item already.", hint="Go on to the next one.")
        self.require_open(book, rater)
        row = {
            "task_id": task_id,
            "item_id": turn.item_id,
            "rater": rater,
            "swapped": swapped,
            "choice": answer.choice,
            "correct": answer.choice == better,
            "created_at": self._books.stamp(),
        }
        decision.add(PracticeRow, row)
        self.drop_draft(decision, task_id)
        return receipt

    def close_when_due(self, decision: Decision) -> None:
        """Closes a batch that has all its votes, once nobody owes a check and the last answer can stand."""
        book = decision.book
        if book.may_close(now=self._books.now()):
            decision.close(Closure(book.plan.batch_id, _DESK, _COMPLETE, self._books.stamp()))

    def require_not_here(self, decision: Decision, rater: str) -> None:
        """Whoever judges in this batch is not spoken for by a file: it could make him fail the checks."""
        if rater not in decision.book.raters:
            return
        own = (
            select(JudgementRow.judgement_id)
            .join(ItemRow, ItemRow.item_id == JudgementRow.item_id)
            .where(ItemRow.batch_id == decision.book.plan.batch_id)
            .where(JudgementRow.rater == rater, JudgementRow.import_id.is_(None))
            .limit(1)
        )
        if decision.connection.execute(own).first() is not None:
            raise ForeignLabelError(
                "this rater judges in the batch here, and labels in his name are not taken from a file.",
                hint="Let each rater work in one place.",
            )

    def require_open(self, book: BatchBook, rater: str) -> None:
        if not book.awaits(rater, now=self._books.stamp()):
            raise closed_error(book.plan.batch_id)

    def require_trusted(self, book: BatchBook, rater: str) -> None:
        if book.is_dismissed(rater) and not book.is_aside(rater):
            raise SetAsideError(
                "nothing more is asked of you on this batch; what you answered counts.",
                hint="Ask the release manager.",
            )
        if book.is_aside(rater):
            raise SetAsideError(
                "your answers on this batch are set aside, and nothing about them can be changed.",
                hint="Ask the release manager.",
            )

    def _require_takes(self, book: BatchBook, turn: Turn, rater: str, latest: Judgement | None) -> None:
        """Makes sure that a new judgement of this rater is wanted."""
        if latest is not None and book.closed:
            raise closed_error(book.plan.batch_id)
        self.require_open(book, rater)
        self.require_trusted(book, rater)
        if latest is None:
            self.require_wanted(book, turn, rater)

    def require_wanted(self, book: BatchBook, turn: Turn, rater: str) -> None:
        """Makes sure that a vote is still wanted: the lease lives, or nobody else has taken the place."""
        if not book.has_place(turn, rater, now=self._books.stamp()):
            raise GoneError(
                "your time for this item ran out, and it went to others.", hint="Nothing is lost; take the next one."
            )


def closed_error(batch_id: str) -> ClosedError:
    """Says that a batch is closed."""
    return ClosedError("this batch is closed: it takes no more answers.", where=f"batch {batch_id}")


def answer_of(judgement: Judgement) -> RaterAnswer:
    """The answer as it was given."""
    values = {name: getattr(judgement, name) for name in RaterAnswer.model_fields}
    return RaterAnswer.model_validate(values)
