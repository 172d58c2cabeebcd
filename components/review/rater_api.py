"""The JSON API for raters: what the pages do, for programs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict

from components.human_eval.answers import RaterAnswer
from components.human_eval.rating import Progress, Receipt, Task
from components.review.access import AnyUser, Rater, ReviewOf
from components.review.people import Role
from components.shared.errors import InputError

__all__ = ["Account", "BatchState", "NextTask", "router"]

router = APIRouter(prefix="/api/v1", tags=["rating"])

_LARGEST_DRAFT = 20_000
"""Characters."""


class Account(BaseModel):
    """Who is signed in.

    Attributes:
        login: The login.
        roles: What it may do.
        form_token: What a request that changes something sends in the header `X-Form-Token`.
    """

    login: str
    roles: list[Role]
    form_token: str


class BatchState(BaseModel):
    """A batch and where it stands."""

    batch_id: str
    progress: Progress


class NextTask(BaseModel):
    """The next item, or none; then `progress` says whether it is worth asking again (`waiting`)."""

    task: Task | None
    progress: Progress


class Skip(BaseModel):
    """Why an item is skipped; it may be left out."""

    model_config = ConfigDict(extra="forbid")

    reason: str | None = None


class Undo(BaseModel):
    """Which item is to be answered anew: the last one, or the one before `before`."""

    model_config = ConfigDict(extra="forbid")

    before: str | None = None


class Saved(BaseModel):
    """Until when an item is kept for the rater."""

    expires_at: str


@router.get("/me", tags=["account"])
def me(user: AnyUser, review: ReviewOf) -> Account:
    """Who is signed in, and the token for requests that change something."""
    return Account(login=user.login, roles=sorted(user.roles), form_token=review.tokens.make(user))


@router.get("/batches")
def batches(user: Rater, review: ReviewOf) -> list[BatchState]:
    """The batches that await raters, with one's own progress."""
    return [
        BatchState(batch_id=batch_id, progress=review.desk.progress(batch_id, user.pseudonym))
        for batch_id in review.desk.open_batches(user.pseudonym)
    ]


@router.get("/batches/{batch_id}/progress")
def progress(batch_id: str, user: Rater, review: ReviewOf) -> Progress:
    """One's own progress in a batch."""
    return review.desk.progress(batch_id, user.pseudonym)


@router.post("/batches/{batch_id}/next")
def next_task(batch_id: str, user: Rater, review: ReviewOf) -> NextTask:
    """One's next item, kept until `expires_at`; the same one again until it is judged or skipped."""
    task, progress = review.desk.next_with_progress(batch_id, user.pseudonym)
    return NextTask(task=task, progress=progress)


@router.post("/batches/{batch_id}/undo")
def undo(batch_id: str, wanted: Undo, user: Rater, review: ReviewOf) -> NextTask:
    """The item that was judged or skipped last, to be answered anew with the `revision` that it names."""
    review.metrics.answers.labels("undo").inc()
    task = review.desk.reopen(batch_id, user.pseudonym, before=wanted.before)
    return NextTask(task=task, progress=review.desk.progress(batch_id, user.pseudonym))


@router.post("/tasks/{task_id}/answer")
def answer(task_id: str, given: RaterAnswer, user: Rater, review: ReviewOf) -> Receipt:
    """Stores an answer; sending the same one twice stores it once."""
    receipt = review.desk.submit(task_id, user.pseudonym, given, rater_kind=user.rater_kind)
    review.metrics.answers.labels("judge").inc()
    return receipt


@router.post("/tasks/{task_id}/skip", status_code=204)
def skip(task_id: str, given: Skip, user: Rater, review: ReviewOf) -> None:
    """Skips an item; it goes to others."""
    review.desk.skip(task_id, user.pseudonym, reason=given.reason)
    review.metrics.answers.labels("skip").inc()


@router.put("/tasks/{task_id}/draft")
def draft(task_id: str, content: Annotated[dict[str, Any], Body()], user: Rater, review: ReviewOf) -> Saved:
    """Keeps what was begun, and the item for its rater."""
    if len(str(content)) > _LARGEST_DRAFT:
        raise InputError("the draft is too long.", where="body", hint=f"At most {_LARGEST_DRAFT} characters are kept.")
    return Saved(expires_at=review.desk.save_draft(task_id, user.pseudonym, content))
