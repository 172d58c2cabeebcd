"""What the rating desk says: tasks, receipts, progress, and why it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from components.human_eval.answers import RaterAnswer
from components.shared.errors import PlumblineError
from components.shared.records import Prompt

__all__ = [
    "AnsweredError",
    "ClosedError",
    "Feedback",
    "ForeignLabelError",
    "GoneError",
    "Progress",
    "RaterKind",
    "Receipt",
    "SetAsideError",
    "Task",
    "UnknownTaskError",
]

RaterKind = Literal["human", "ai", "simulated"]


class ClosedError(PlumblineError):
    """The batch accepts nothing any more."""


class GoneError(PlumblineError):
    """The lease ran out and the item went to others."""


class AnsweredError(PlumblineError):
    """The rater gave another answer to this item already."""


class ForeignLabelError(PlumblineError):
    """A file holds labels of a rater who judges here."""


class UnknownTaskError(PlumblineError):
    """The item was never handed to this rater."""


class SetAsideError(PlumblineError):
    """Nothing more is taken from this rater on this batch: the votes do not count, or the rater was dismissed."""


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
        votes: Votes that the batch has; those that were set aside are not among them.
        votes_needed: Votes that it needs.
        waiting: Others hold items that may yet come to this rater.
        closed: Nothing is accepted any more.
        set_aside: The rater's votes do not count, and nothing more comes to this rater.
        excused: The rater's votes count, and nothing more comes to this rater.
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
    set_aside: bool = False
    excused: bool = False
