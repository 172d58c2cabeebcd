"""The rating desk: hands items to people and takes their answers. What the review service shows, without the web.

    next_task > (save_draft) > submit | skip > next_task ...      reopen: the last one again, to correct it

An item that was handed out is leased to its rater; a lease that runs out hands it on. Every decision about an item
(who gets it, whether an answer is still wanted) is taken in one write transaction that has the batch for itself, so
there are never more votes on a pair than were asked for, nor two leases on the same vote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal

from sqlalchemy import Connection, delete, func, select

from components.human_eval.answers import RaterAnswer
from components.human_eval.batch import Batch
from components.human_eval.database import EvidenceDatabase, Judgement, judgement_id
from components.human_eval.rating_rows import (
    held_turn,
    is_closed,
    last_actions,
    latest_judgement,
    leases_of_others,
    own_turns,
    practised_items,
    raters_of,
    task_id_of,
    votes_by_item,
)
from components.human_eval.schema import (
    BatchRow,
    ClosureRow,
    DraftRow,
    ItemRow,
    JudgementRow,
    LeaseRow,
    PracticeRow,
    SkipRow,
)
from components.human_eval.settings import PEOPLE
from components.human_eval.turns import Plan, Turn, Turns, make_plan, shown_swapped
from components.shared.errors import InputError, PlumblineError
from components.shared.files import digest_of
from components.shared.records import Prompt

__all__ = [
    "AnsweredError",
    "ClosedError",
    "Feedback",
    "GoneError",
    "Progress",
    "RaterKind",
    "RatingDesk",
    "Receipt",
    "Task",
    "UnknownTaskError",
]

RaterKind = Literal["human", "ai", "simulated"]

_ID_LENGTH = 32
_BATCHES_KEPT = 32
"""Batches that are kept in memory once read."""

_COMPLETE = "Every pair has its votes."
_DESK = "rating desk"


class ClosedError(PlumblineError):
    """The batch accepts nothing any more."""


class GoneError(PlumblineError):
    """The lease ran out and the item went to others."""


class AnsweredError(PlumblineError):
    """The rater gave another answer to this item already."""


class UnknownTaskError(PlumblineError):
    """The item was never handed to this rater."""


@dataclass(frozen=True)
class Task:
    """An item as one rater sees it. Whether it is a check cannot be told from it.

    Attributes:
        task_id: Names the item to this rater.
        batch_id: Its batch.
        practice: Answers to it are commented and do not count.
        prompt: What was asked.
        response_a: The answer shown as A.
        response_b: The answer shown as B.
        finished_a: False if answer A was cut at the length limit.
        finished_b: The same for B.
        expires_at: Until when it is kept for the rater.
        revision: What the answer has to say as its revision.
        previous: The answer that a correction replaces.
        draft: What the rater had begun to answer.
    """

    task_id: str
    batch_id: str
    practice: bool
    prompt: Prompt
    response_a: str
    response_b: str
    finished_a: bool
    finished_b: bool
    expires_at: str
    revision: int = 0
    previous: RaterAnswer | None = None
    draft: dict[str, Any] | None = None


@dataclass(frozen=True)
class Feedback:
    """What a practice item has to say about the answer."""

    correct: bool
    better: Literal["a", "b"]


@dataclass(frozen=True)
class Receipt:
    """An answer was stored."""

    task_id: str
    revision: int
    feedback: Feedback | None = None


@dataclass(frozen=True)
class Progress:
    """Where a rater and a batch stand.

    Attributes:
        judged: Items that the rater judged, checks included.
        skipped: Items that the rater skipped.
        remaining: Items that may still come to the rater.
        practice_done: Practice items done.
        practice_total: Practice items there are.
        votes: Votes that the batch has.
        votes_needed: Votes that it needs.
        waiting: Others hold items that may yet come to this rater.
        closed: Nothing is accepted any more.
    """

    judged: int
    skipped: int
    remaining: int
    practice_done: int
    practice_total: int
    votes: int
    votes_needed: int
    waiting: bool
    closed: bool


class RatingDesk:
    """Hands out items and takes answers.

    Args:
        database: The evidence database.
        now: The clock; UTC.
    """

    def __init__(self, database: EvidenceDatabase, *, now: Callable[[], datetime] | None = None) -> None:
        self._database = database
        self._now = now or (lambda: datetime.now(UTC))
        self._plans: dict[str, _Known] = {}

    @property
    def database(self) -> EvidenceDatabase:
        return self._database

    def open_batches(self) -> list[str]:
        """Batches that await people, oldest first: not closed, and not judged by a panel."""
        with self._database.transaction() as connection:
            closed = select(ClosureRow.batch_id)
            query = select(BatchRow.batch_id).where(BatchRow.batch_id.not_in(closed)).order_by(BatchRow.created_at)
            found = list(connection.execute(query).scalars())
        return [batch_id for batch_id in found if self.plan(batch_id).settings.panel == PEOPLE]

    def plan(self, batch_id: str) -> Plan:
        """What there is to ask in a batch.

        Raises:
            InputError: No such batch.
        """
        return self._know(batch_id).plan

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
        plan = self._for_people(batch_id)
        with self._database.transaction(write=True, alone_with=batch_id) as connection:
            self._require_open(connection, batch_id)
            turn = held_turn(connection, batch_id, rater, now=self._stamp())
            if turn is None:
                turn = self._turns(connection, plan, rater).next(plan)
            if turn is None:
                return None
            expires = self._lease(connection, plan, turn, rater)
            draft = connection.execute(
                select(DraftRow.content).where(DraftRow.task_id == task_id_of(turn, rater))
            ).scalar()
        return self._task(batch_id, turn, rater, expires, draft=draft)

    def show(self, task_id: str, rater: str) -> Task:
        """An item that was handed to the rater, once more, with the rater's answer if there is one.

        Raises:
            UnknownTaskError: The item was never handed to this rater.
        """
        batch_id, turn = self._find(task_id, rater)
        with self._database.transaction() as connection:
            latest = latest_judgement(connection, turn, rater)
            expires = connection.execute(
                select(func.max(LeaseRow.expires_at)).where(LeaseRow.task_id == task_id)
            ).scalar_one()
        return self._task(batch_id, turn, rater, expires, latest=latest)

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
        """
        batch_id, turn = self._find(task_id, rater)
        plan = self._for_people(batch_id)
        with self._database.transaction(write=True, alone_with=batch_id) as connection:
            if turn.kind == "practice":
                return self._submit_practice(connection, batch_id, turn, rater, answer)
            receipt = self._submit_judgement(connection, plan, turn, rater, answer, rater_kind)
        self._close_if_complete(plan)
        return receipt

    def take_label(
        self,
        batch_id: str,
        item_id: str,
        rater: str,
        answer: RaterAnswer,
        *,
        swapped: bool,
        rater_kind: RaterKind = "human",
    ) -> bool:
        """Stores an answer that was given in another labelling tool; the rules are the same, only no lease is needed.

        Args:
            batch_id: The batch.
            item_id: The item.
            rater: Pseudonym.
            answer: In terms of what the tool showed.
            swapped: Whether it showed the second answer as A.
            rater_kind: What the rater is.

        Returns:
            False if this very answer is there already.

        Raises:
            InputError: The batch has no such item, or nobody is asked about it.
            ClosedError: The batch is closed.
            GoneError: The item has all its votes, or they are promised to others.
            AnsweredError: The rater gave another answer to it.
        """
        plan = self._for_people(batch_id)
        item = self._know(batch_id).items.get(item_id)
        if item is None or item.kind == "identical" or item_id in plan.practice:
            raise InputError("nobody is asked about this item.", where=f"batch {batch_id}, item {item_id}")
        turn = Turn(item_id, "gold" if item.kind == "gold" else "vote")
        with self._database.transaction(write=True, alone_with=batch_id) as connection:
            known = latest_judgement(connection, turn, rater) is not None
            try:
                self._submit_judgement(connection, plan, turn, rater, answer, rater_kind, swapped=swapped)
            except GoneError as error:
                raise GoneError("it has all its votes, or they are promised to others.") from error
        self._close_if_complete(plan)
        return not known

    def skip(self, task_id: str, rater: str, *, reason: str | None = None) -> None:
        """Records that the rater does not want to judge an item; a practice item cannot be skipped.

        Raises:
            UnknownTaskError: The item was never handed to this rater.
            ClosedError: The batch is closed.
            AnsweredError: The rater judged it already, or it is a practice item.
        """
        batch_id, turn = self._find(task_id, rater)
        with self._database.transaction(write=True, alone_with=batch_id) as connection:
            self._require_open(connection, batch_id)
            if turn.kind == "practice":
                raise AnsweredError(
                    "practice items cannot be skipped.", hint="Choose what seems best; it does not count."
                )
            if latest_judgement(connection, turn, rater) is not None:
                raise AnsweredError("you judged this item already.", hint="Undo to correct it.")
            row = {
                "task_id": task_id,
                "item_id": turn.item_id,
                "rater": rater,
                "kind": turn.kind,
                "reason": (reason or "").strip() or None,
                "created_at": self._stamp(),
            }
            self._database.add(connection, SkipRow, [row])
            connection.execute(delete(DraftRow).where(DraftRow.task_id == task_id))

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
        """
        plan = self._for_people(batch_id)
        with self._database.transaction(write=True, alone_with=batch_id) as connection:
            self._require_open(connection, batch_id)
            actions = last_actions(connection, batch_id, rater)
            ids = [task_id_of(turn, rater) for turn in actions]
            if before in ids:
                actions = actions[: ids.index(before)]
            if not actions:
                return None
            turn = actions[-1]
            latest = latest_judgement(connection, turn, rater)
            if latest is None:
                self._require_wanted(connection, plan, turn, rater)
            expires = self._lease(connection, plan, turn, rater)
        return self._task(batch_id, turn, rater, expires, latest=latest)

    def save_draft(self, task_id: str, rater: str, content: Mapping[str, Any]) -> str:
        """Keeps what the rater has begun to answer, and keeps the item for the rater.

        Returns:
            Until when the item is kept.

        Raises:
            UnknownTaskError: The item was never handed to this rater.
            ClosedError: The batch is closed.
            GoneError: Others have the item now.
        """
        batch_id, turn = self._find(task_id, rater)
        plan = self._for_people(batch_id)
        with self._database.transaction(write=True, alone_with=batch_id) as connection:
            self._require_open(connection, batch_id)
            if turn.kind == "vote" and latest_judgement(connection, turn, rater) is None:
                self._require_wanted(connection, plan, turn, rater)
            connection.execute(delete(DraftRow).where(DraftRow.task_id == task_id))
            row = {"task_id": task_id, "content": dict(content), "saved_at": self._stamp()}
            self._database.add(connection, DraftRow, [row])
            return self._lease(connection, plan, turn, rater)

    def progress(self, batch_id: str, rater: str) -> Progress:
        """Where the rater and the batch stand."""
        plan = self.plan(batch_id)
        with self._database.transaction() as connection:
            turns = self._turns(connection, plan, rater)
            votes = votes_by_item(connection, batch_id)
            closed = is_closed(connection, batch_id)
        needed = plan.settings.votes_per_prompt
        return Progress(
            judged=len(turns.judged),
            skipped=len(turns.skipped),
            remaining=turns.remaining(plan),
            practice_done=len(turns.practised & set(plan.practice)),
            practice_total=len(plan.practice),
            votes=sum(min(count, needed) for count in votes.values()),
            votes_needed=needed * len(plan.pairs),
            waiting=turns.leased_elsewhere,
            closed=closed,
        )

    # --- reading -----------------------------------------------------------------------------------------------------

    def _know(self, batch_id: str) -> _Known:
        if batch_id not in self._plans:
            if len(self._plans) >= _BATCHES_KEPT:
                self._plans.pop(next(iter(self._plans)))
            self._plans[batch_id] = _Known(self._database.batch(batch_id))
        return self._plans[batch_id]

    def _for_people(self, batch_id: str) -> Plan:
        plan = self.plan(batch_id)
        if plan.settings.panel != PEOPLE:
            raise InputError("is judged by a panel, not by people.", where=f"batch {batch_id}")
        return plan

    def _find(self, task_id: str, rater: str) -> tuple[str, Turn]:
        query = (
            select(LeaseRow.item_id, LeaseRow.kind, ItemRow.batch_id)
            .join(ItemRow, ItemRow.item_id == LeaseRow.item_id)
            .where(LeaseRow.task_id == task_id, LeaseRow.rater == rater)
            .limit(1)
        )
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise UnknownTaskError("this item was not handed to you.", hint="Ask for the next one.")
        return row.batch_id, Turn(row.item_id, row.kind)

    def _turns(self, connection: Connection, plan: Plan, rater: str) -> Turns:
        leased = leases_of_others(connection, plan.batch_id, rater, now=self._stamp())
        taken = votes_by_item(connection, plan.batch_id)
        for item_id, count in leased.items():
            taken[item_id] = taken.get(item_id, 0) + count
        judged, skipped = own_turns(connection, plan.batch_id, rater)
        practised = practised_items(connection, plan.batch_id, rater)
        return Turns(rater, judged, skipped, practised, taken, bool(leased))

    # --- writing -----------------------------------------------------------------------------------------------------

    def _lease(self, connection: Connection, plan: Plan, turn: Turn, rater: str) -> str:
        """Leases an item, or prolongs the lease once half of it has passed; returns when it ends."""
        task_id, now = task_id_of(turn, rater), self._now()
        span = timedelta(minutes=plan.settings.lease_minutes)
        number, ends = connection.execute(
            select(func.count(), func.max(LeaseRow.expires_at)).where(LeaseRow.task_id == task_id)
        ).one()
        if ends is not None and ends > _text(now + span / 2):
            return ends
        row = {
            "lease_id": digest_of([task_id, number])[:_ID_LENGTH],
            "task_id": task_id,
            "item_id": turn.item_id,
            "rater": rater,
            "kind": turn.kind,
            "number": number,
            "granted_at": _text(now),
            "expires_at": _text(now + span),
        }
        self._database.add(connection, LeaseRow, [row])
        return row["expires_at"]

    def _submit_judgement(
        self,
        connection: Connection,
        plan: Plan,
        turn: Turn,
        rater: str,
        answer: RaterAnswer,
        rater_kind: RaterKind,
        *,
        swapped: bool | None = None,
    ) -> Receipt:
        task_id, latest = task_id_of(turn, rater), latest_judgement(connection, turn, rater)
        if latest is not None and answer.revision == latest.revision:
            if _answer_of(latest) == answer:
                return Receipt(task_id, answer.revision)
            raise AnsweredError("you gave another answer to this item already.", hint="Undo to correct it.")
        expected = 0 if latest is None else latest.revision + 1
        if answer.revision != expected:
            raise AnsweredError("this item was answered elsewhere meanwhile.", hint="Load the page again.")
        self._require_open(connection, plan.batch_id)
        if latest is None:
            self._require_wanted(connection, plan, turn, rater)
        if swapped is None:
            swapped = shown_swapped(turn.item_id, rater, turn.kind)
        judgement = Judgement(
            judgement_id=judgement_id(turn.item_id, rater, turn.kind, answer.revision),
            item_id=turn.item_id,
            rater=rater,
            rater_kind=rater_kind,
            kind=turn.kind,  # type: ignore[arg-type]  (practice never comes here)
            swapped=latest.swapped if latest else swapped,
            created_at=self._stamp(),
            supersedes=latest.judgement_id if latest else None,
            **answer.model_dump(),
        )
        self._database.add(connection, JudgementRow, [asdict(judgement)])
        connection.execute(delete(DraftRow).where(DraftRow.task_id == task_id))
        return Receipt(task_id, answer.revision)

    def _submit_practice(
        self, connection: Connection, batch_id: str, turn: Turn, rater: str, answer: RaterAnswer
    ) -> Receipt:
        self._require_open(connection, batch_id)
        task_id, swapped = task_id_of(turn, rater), shown_swapped(turn.item_id, rater, turn.kind)
        better: Literal["a", "b"] = "b" if swapped else "a"  # the first answer of a gold item is the better one
        row = {
            "task_id": task_id,
            "item_id": turn.item_id,
            "rater": rater,
            "swapped": swapped,
            "choice": answer.choice,
            "correct": answer.choice == better,
            "created_at": self._stamp(),
        }
        self._database.add(connection, PracticeRow, [row])
        connection.execute(delete(DraftRow).where(DraftRow.task_id == task_id))
        return Receipt(task_id, 0, Feedback(answer.choice == better, better))

    def _close_if_complete(self, plan: Plan) -> None:
        """Closes a batch that has all its votes, once no rater is left whose votes need a check to count."""
        with self._database.transaction() as connection:
            votes = votes_by_item(connection, plan.batch_id)
            if any(votes.get(pair, 0) < plan.settings.votes_per_prompt for pair in plan.pairs):
                return
            raters = raters_of(connection, plan.batch_id)
            if any(self._turns(connection, plan, rater).owes(plan) for rater in raters):
                return
        self._database.close(plan.batch_id, actor=_DESK, reason=_COMPLETE)

    def _require_open(self, connection: Connection, batch_id: str) -> None:
        if is_closed(connection, batch_id):
            raise ClosedError("this batch is closed: it takes no more answers.", where=f"batch {batch_id}")

    def _require_wanted(self, connection: Connection, plan: Plan, turn: Turn, rater: str) -> None:
        """Makes sure that a vote is still wanted: the lease lives, or nobody else has taken the place."""
        if turn.kind != "vote":
            return
        taken = votes_by_item(connection, plan.batch_id).get(turn.item_id, 0)
        taken += leases_of_others(connection, plan.batch_id, rater, now=self._stamp()).get(turn.item_id, 0)
        if taken >= plan.settings.votes_per_prompt:
            raise GoneError(
                "your time for this item ran out, and it went to others.", hint="Nothing is lost; take the next one."
            )

    # --- showing -----------------------------------------------------------------------------------------------------

    def _task(
        self,
        batch_id: str,
        turn: Turn,
        rater: str,
        expires: str,
        *,
        latest: Judgement | None = None,
        draft: dict[str, Any] | None = None,
    ) -> Task:
        item = self._know(batch_id).items[turn.item_id]
        swapped = latest.swapped if latest else shown_swapped(item.item_id, rater, turn.kind)
        a, b = (item.second, item.first) if swapped else (item.first, item.second)
        return Task(
            task_id=task_id_of(turn, rater),
            batch_id=batch_id,
            practice=turn.kind == "practice",
            prompt=item.record.prompt,
            response_a=a.response,
            response_b=b.response,
            finished_a=a.finished,
            finished_b=b.finished,
            expires_at=expires,
            revision=latest.revision + 1 if latest else 0,
            previous=_answer_of(latest) if latest else None,
            draft=draft,
        )

    def _stamp(self) -> str:
        return _text(self._now())


class _Known:
    """A batch that was read once; batches do not change."""

    def __init__(self, batch: Batch) -> None:
        self.items = {item.item_id: item for item in batch.items}
        self._batch = batch

    @cached_property
    def plan(self) -> Plan:
        return make_plan(self._batch.batch_id, self._batch.settings, self._batch.items)


def _answer_of(judgement: Judgement) -> RaterAnswer:
    values = {name: getattr(judgement, name) for name in RaterAnswer.model_fields}
    return RaterAnswer.model_validate(values)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
