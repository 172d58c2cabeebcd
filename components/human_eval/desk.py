"""The rating desk: hands items to people and takes their answers. What the review service shows, without the web.

    next_task > (save_draft) > submit | skip > next_task ...      reopen: the last one again, to correct it

An item that was handed out is leased to its rater; a lease that runs out hands it on. Every decision about an item
(who gets it, whether an answer is still wanted) is taken in one write transaction that has the batch for itself, so
there are never more votes on a pair than were asked for, nor two leases on the same vote. A request that arrives twice
finds what it did and gets the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select

from components.human_eval.answers import RaterAnswer, require_text
from components.human_eval.book import BatchBook, task_id_of
from components.human_eval.books import Books, Decision
from components.human_eval.database import EvidenceDatabase, Judgement
from components.human_eval.intake import Intake, answer_of, closed_error
from components.human_eval.rating import (
    AnsweredError,
    GoneError,
    Progress,
    RaterKind,
    Receipt,
    Task,
    UnknownTaskError,
)
from components.human_eval.schema import BatchRow, ClosureRow, DraftRow, InterventionRow, SkipRow
from components.human_eval.settings import PEOPLE
from components.human_eval.turns import Plan, Turn, Turns, shown_swapped
from components.shared.errors import InputError
from components.shared.files import digest_of

__all__ = ["RatingDesk"]

_ID_LENGTH = 32


class RatingDesk:
    """Hands out items and takes answers.

    Args:
        database: The evidence database.
        now: The clock; UTC.
    """

    def __init__(self, database: EvidenceDatabase, *, now: Callable[[], datetime] | None = None) -> None:
        self.books = Books(database, now=now)
        self._intake = Intake(self.books)
        self._database = database

    @property
    def database(self) -> EvidenceDatabase:
        return self._database

    def open_batches(self, rater: str | None = None) -> list[str]:
        """Batches that await people, oldest first: not closed, and not judged by a panel.

        Args:
            rater: Also the closed ones of which an item is adjudicated that this rater may judge; and none of those
                that have nothing for anybody.
        """
        closed = select(ClosureRow.batch_id)
        adjudicated = select(InterventionRow.batch_id).where(InterventionRow.kind == "adjudicate")
        wanted = BatchRow.batch_id.not_in(closed) | BatchRow.batch_id.in_(adjudicated)
        with self._database.transaction() as connection:
            found = list(
                connection.execute(select(BatchRow.batch_id).where(wanted).order_by(BatchRow.created_at)).scalars()
            )
        for_people = [batch_id for batch_id in found if self.plan(batch_id).settings.panel == PEOPLE]
        return [batch_id for batch_id in for_people if self._awaits(batch_id, rater)]

    def plan(self, batch_id: str) -> Plan:
        """What there is to ask in a batch.

        Raises:
            InputError: No such batch.
        """
        return self.books.book(batch_id).plan

    def next_task(self, batch_id: str, rater: str) -> Task | None:
        """The rater's next item, leased from now on; the same one again while it is neither judged nor skipped.

        Args:
            batch_id: The batch.
            rater: Pseudonym.

        Returns:
            None if there is nothing for this rater now: see `progress`.

        Raises:
            ClosedError: The batch is closed.
            InputError: No such batch, or one that is not for people.
        """
        return self.next_with_progress(batch_id, rater)[0]

    def next_with_progress(self, batch_id: str, rater: str) -> tuple[Task | None, Progress]:
        """`next_task` and `progress` of one moment."""
        self._for_people(batch_id)

        def take(decision: Decision) -> tuple[Task | None, Progress] | None:
            self._intake.close_when_due(decision)
            book, now, draft = decision.book, self.books.stamp(), None
            if not book.awaits(rater, now=now):
                return None  # and no error: that it is closed now shall be kept
            turns = book.turns(rater, now=now)
            turn = None if book.is_done_with(rater) else book.held(rater, now=now)
            if turn is not None:
                draft = self._draft(decision, task_id_of(turn, rater))
            else:
                turn = book.next_turn(turns, now=now)
            task = None
            if turn is not None:
                task = self._task(book, turn, rater, self._intake.lease(decision, turn, rater), draft=draft)
            return task, _progress(book, turns, now)

        found = self.books.decide(batch_id, take)
        if found is None:
            raise closed_error(batch_id)
        return found

    def show(self, task_id: str, rater: str) -> Task:
        """An item that was handed to the rater, once more, with the rater's answer if there is one.

        Raises:
            UnknownTaskError: The item was never handed to this rater.
        """
        batch_id, turn = self._find(task_id, rater)

        def look(decision: Decision) -> Task:
            latest = self._intake.latest(decision, turn, rater)
            return self._task(decision.book, turn, rater, decision.book.leases[task_id].until, latest=latest)

        return self.books.decide(batch_id, look)

    def submit(self, task_id: str, rater: str, answer: RaterAnswer, *, rater_kind: RaterKind = "human") -> Receipt:
        """Stores an answer; the same request again is a no-op with the same answer.

        Args:
            task_id: Of the task.
            rater: Pseudonym.
            answer: The answer, in terms of what was shown.
            rater_kind: What the rater is.

        Raises:
            UnknownTaskError: The item was never handed to this rater.
            ClosedError: The batch is closed.
            GoneError: The lease ran out, and others have the item now.
            AnsweredError: Another answer is there, and this is no correction of it.
            SetAsideError: The rater's votes do not count.
        """
        batch_id, turn = self._find(task_id, rater)
        self._for_people(batch_id)

        def take(decision: Decision) -> Receipt:
            if turn.kind == "practice":
                return self._intake.practice(decision, turn, rater, answer)
            return self._intake.judgement(decision, turn, rater, answer, rater_kind)

        return self.books.decide(batch_id, take)

    def take_label(
        self,
        batch_id: str,
        item_id: str,
        rater: str,
        answer: RaterAnswer,
        *,
        swapped: bool,
        import_id: str,
        rater_kind: RaterKind = "human",
    ) -> bool:
        """Stores an answer that was given in another labelling tool; the rules are the same, only no lease is needed.

        Args:
            batch_id: The batch.
            item_id: The item.
            rater: Pseudonym.
            answer: In terms of what the tool showed.
            swapped: Whether it showed the second answer as A.
            import_id: The import that it came by: see `imports.record_import`.
            rater_kind: What the rater is.

        Returns:
            False if this very answer is there already.

        Raises:
            InputError: The batch has no such item, or nobody is asked about it.
            ClosedError: The batch is closed.
            GoneError: The item has all its votes, or they are promised to others.
            AnsweredError: The rater gave another answer to it.
            SetAsideError: The rater's votes do not count.
            ForeignLabelError: The rater judges in this batch himself.
        """
        plan = self._for_people(batch_id)
        item = self.books.book(batch_id).items.get(item_id)
        if item is None or item.kind == "identical" or item_id in plan.practice:
            raise InputError("nobody is asked about this item.", where=f"batch {batch_id}, item {item_id}")
        turn = Turn(item_id, "gold" if item.kind == "gold" else "vote")

        def take(decision: Decision) -> bool:
            known = decision.book.latest(turn, rater) is not None
            self._intake.require_not_here(decision, rater)
            self._intake.judgement(decision, turn, rater, answer, rater_kind, swapped=swapped, import_id=import_id)
            return not known

        try:
            return self.books.decide(batch_id, take)
        except GoneError as error:
            raise GoneError("it has all its votes, or they are promised to others.") from error

    def skip(self, task_id: str, rater: str, *, reason: str | None = None) -> None:
        """Records that the rater does not want to judge an item; a practice item cannot be skipped.

        Raises:
            InputError: The reason cannot be stored.
            UnknownTaskError: The item was never handed to this rater.
            ClosedError: The batch is closed.
            AnsweredError: The rater judged it already, or it is a practice item.
        """
        batch_id, turn = self._find(task_id, rater)
        why = require_text((reason or "").strip(), where="reason") or None

        def skip(decision: Decision) -> None:
            book = decision.book
            if book.has_skipped(turn, rater):
                return
            self._intake.require_open(book, rater)
            if turn.kind == "practice":
                raise AnsweredError(
                    "practice items cannot be skipped.", hint="Choose what seems best; it does not count."
                )
            if book.latest(turn, rater) is not None:
                raise AnsweredError("you judged this item already.", hint="Undo to correct it.")
            before = book.skips[rater].get(turn, 0)
            row = {
                "task_id": digest_of([task_id, "skip", before])[:_ID_LENGTH] if before else task_id,
                "item_id": turn.item_id,
                "rater": rater,
                "kind": turn.kind,
                "reason": why,
                "created_at": self.books.stamp(),
            }
            decision.add(SkipRow, row)
            self._intake.drop_draft(decision, task_id)

        self.books.decide(batch_id, skip)

    def reopen(self, batch_id: str, rater: str, *, before: str | None = None) -> Task | None:
        """The item that the rater judged or skipped last, to be answered anew: undo.

        The old answer stands until the new one supersedes it.

        Args:
            batch_id: The batch.
            rater: Pseudonym.
            before: A task that is reopened already; the one before it is wanted.

        Returns:
            None if there is none.

        Raises:
            ClosedError: The batch is closed.
            GoneError: It was skipped, and others have it now.
            SetAsideError: The rater's votes do not count.
        """
        self._for_people(batch_id)

        def reopen(decision: Decision) -> Task | None:
            book = decision.book
            if book.closed:
                raise closed_error(batch_id)
            self._intake.require_trusted(book, rater)
            actions = book.actions(rater)
            ids = [task_id_of(turn, rater) for turn in actions]
            if before in ids:
                actions = actions[: ids.index(before)]
            if not actions:
                return None
            turn = actions[-1]
            latest = self._intake.latest(decision, turn, rater)
            if latest is None:
                self._intake.require_wanted(book, turn, rater)
            return self._task(book, turn, rater, self._intake.lease(decision, turn, rater), latest=latest)

        return self.books.decide(batch_id, reopen)

    def save_draft(self, task_id: str, rater: str, content: Mapping[str, Any]) -> str:
        """Keeps what the rater has begun to answer, and keeps the item for the rater.

        Returns:
            Until when the item is kept.

        Raises:
            UnknownTaskError: The item was never handed to this rater.
            ClosedError: The batch is closed.
            GoneError: Others have the item now.
            SetAsideError: Nothing more is taken from this rater.
        """
        batch_id, turn = self._find(task_id, rater)
        self._for_people(batch_id)

        def save(decision: Decision) -> str:
            self._intake.require_open(decision.book, rater)
            self._intake.require_trusted(decision.book, rater)
            if decision.book.latest(turn, rater) is None:
                self._intake.require_wanted(decision.book, turn, rater)
            decision.change(delete(DraftRow).where(DraftRow.task_id == task_id))
            draft = {"task_id": task_id, "content": dict(content), "saved_at": self.books.stamp()}
            decision.change(insert(DraftRow).values(draft))
            return self._intake.lease(decision, turn, rater, drafted=True)

        return self.books.decide(batch_id, save)

    def progress(self, batch_id: str, rater: str) -> Progress:
        """Where the rater and the batch stand."""

        def look(decision: Decision) -> Progress:
            self._intake.close_when_due(decision)
            now = self.books.stamp()
            return _progress(decision.book, decision.book.turns(rater, now=now), now)

        return self.books.decide(batch_id, look)

    def _awaits(self, batch_id: str, rater: str | None) -> bool:
        def look(decision: Decision) -> bool:
            self._intake.close_when_due(decision)
            book = decision.book
            return not book.closed if rater is None else book.awaits(rater, now=self.books.stamp())

        return self.books.decide(batch_id, look)

    def _for_people(self, batch_id: str) -> Plan:
        plan = self.plan(batch_id)
        if plan.settings.panel != PEOPLE:
            raise InputError("is judged by a panel, not by people.", where=f"batch {batch_id}")
        return plan

    def _find(self, task_id: str, rater: str) -> tuple[str, Turn]:
        found = self.books.find(task_id, rater)
        if found is None:
            raise UnknownTaskError("this item was not handed to you.", hint="Ask for the next one.")
        return found

    def _draft(self, decision: Decision, task_id: str) -> dict[str, Any] | None:
        if decision.book.leases[task_id].count == 1:
            return None
        return decision.connection.execute(select(DraftRow.content).where(DraftRow.task_id == task_id)).scalar()

    def _task(
        self,
        book: BatchBook,
        turn: Turn,
        rater: str,
        expires: str,
        *,
        latest: Judgement | None = None,
        draft: dict[str, Any] | None = None,
    ) -> Task:
        item = book.items[turn.item_id]
        swapped = latest.swapped if latest else shown_swapped(item.item_id, rater, turn.kind)
        a, b = (item.second, item.first) if swapped else (item.first, item.second)
        return Task(
            task_id=task_id_of(turn, rater),
            batch_id=book.plan.batch_id,
            practice=turn.kind == "practice",
            prompt=item.record.prompt,
            response_a=a.response,
            response_b=b.response,
            finished_a=a.finished,
            finished_b=b.finished,
            expires_at=expires,
            revision=latest.revision + 1 if latest else 0,
            previous=answer_of(latest) if latest else None,
            draft=draft,
        )


def _progress(book: BatchBook, turns: Turns, now: str) -> Progress:
    plan, done = book.plan, book.is_done_with(turns.rater)
    return Progress(
        judged=len(turns.judged),
        skipped=len(turns.skipped),
        remaining=0 if done else turns.remaining(),
        practice_done=len(turns.practised & set(plan.practice)),
        practice_total=len(plan.practice),
        votes=book.given_votes,
        votes_needed=book.needed * len(plan.pairs),
        waiting=turns.leased_elsewhere and not done,
        closed=not book.awaits(turns.rater, now=now),
        set_aside=book.is_aside(turns.rater),
        excused=done and not book.is_aside(turns.rater),
    )
