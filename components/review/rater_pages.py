"""The pages for raters: one item at a time, by keyboard or thumb. Works without JavaScript too, only slower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.responses import HTMLResponse, Response

from components.human_eval.answers import DIMENSIONS, FLAGS, RaterAnswer
from components.human_eval.rating import (
    AnsweredError,
    ClosedError,
    GoneError,
    Progress,
    SetAsideError,
    Task,
    UnknownTaskError,
)
from components.review.access import Rater, Review, ReviewOf
from components.review.pages import is_fragment, redirect, render
from components.review.people import User

__all__ = ["router"]

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class _Sent:
    """A form: the answer in it, not yet checked, and the task that it is about."""

    values: dict[str, Any]
    task_id: str


async def _read(request: Request) -> _Sent:
    form = await request.form()

    def text(name: str) -> str:
        return str(form.get(name) or "")

    flags = {f"flags_{side}": [flag for flag in FLAGS if flag in form.getlist(f"flags_{side}")] for side in ("a", "b")}
    rubric = {name: text(f"rubric_{name}") for name in DIMENSIONS if text(f"rubric_{name}")}
    revision = text("revision")
    values = {
        "choice": text("choice") or None,
        **flags,
        "rubric": rubric,
        "rationale": text("rationale"),
        "revision": int(revision) if revision.isdecimal() else 0,
    }
    return _Sent(values, text("task_id"))


Sent = Annotated[_Sent, Depends(_read)]

_BLANK: dict[str, Any] = {"choice": None, "flags_a": [], "flags_b": [], "rubric": {}, "rationale": ""}


@router.get("/rate")
def batches(request: Request, user: Rater, review: ReviewOf) -> Response:
    """The batches that await this rater."""
    mine = user.pseudonym
    desk = review.desk
    found = [
        (batch_id, desk.progress(batch_id, mine), desk.database.deadline(batch_id))
        for batch_id in desk.open_batches(mine)
    ]
    return render(request, "batches.html", batches=found)


@router.get("/rate/{batch_id}")
def rate(request: Request, batch_id: str, user: Rater, review: ReviewOf) -> Response:
    """The page on which a batch is judged."""
    return _next(request, review, user, batch_id)


@router.post("/rate/{batch_id}/answer")
def answer(request: Request, batch_id: str, user: Rater, review: ReviewOf, sent: Sent) -> Response:
    """Takes an answer and shows the next item; one that lacks something stays, with a remark."""
    try:
        given = RaterAnswer.model_validate(sent.values)
    except ValidationError as error:
        return _again(request, review, user, sent, _fault(error))
    try:
        receipt = review.desk.submit(sent.task_id, user.pseudonym, given, rater_kind=user.rater_kind)
    except (GoneError, AnsweredError, SetAsideError, UnknownTaskError) as error:
        return _next(request, review, user, batch_id, notice=f"Not stored: {error}", status=409)
    review.metrics.answers.labels("judge").inc()
    if receipt.feedback is not None:
        progress = review.desk.progress(batch_id, user.pseudonym)
        values = {"batch_id": batch_id, "feedback": receipt.feedback, "progress": progress, "choice": given.choice}
        return render(request, "_feedback.html" if is_fragment(request) else "feedback.html", **values)
    return _done_with(request, review, user, batch_id, "Stored. The next item.")


@router.post("/rate/{batch_id}/skip")
def skip(request: Request, batch_id: str, user: Rater, review: ReviewOf, sent: Sent) -> Response:
    """Skips the item and shows the next one."""
    try:
        review.desk.skip(sent.task_id, user.pseudonym, reason=sent.values["rationale"])
    except (AnsweredError, UnknownTaskError) as error:
        return _next(request, review, user, batch_id, notice=str(error), status=409)
    review.metrics.answers.labels("skip").inc()
    return _done_with(request, review, user, batch_id, "Skipped. The next item.")


@router.post("/rate/{batch_id}/undo")
def undo(request: Request, batch_id: str, user: Rater, review: ReviewOf, sent: Sent) -> Response:
    """Shows the last item again, with its answer, to correct it."""
    try:
        task = review.desk.reopen(batch_id, user.pseudonym, before=sent.task_id or None)
    except (GoneError, SetAsideError) as error:
        return _next(request, review, user, batch_id, notice=str(error), status=409)
    if task is None:
        return _next(request, review, user, batch_id, notice="There is nothing to undo.")
    review.metrics.answers.labels("undo").inc()
    return _show(request, review, user, task, said="The item before, to correct.")


@router.post("/rate/{batch_id}/next")
def next_item(request: Request, batch_id: str, user: Rater, review: ReviewOf) -> Response:
    """Goes on, after practice or after an undo that is not wanted."""
    return _done_with(request, review, user, batch_id, "")


@router.post("/rate/{batch_id}/draft")
def draft(request: Request, batch_id: str, user: Rater, review: ReviewOf, sent: Sent) -> Response:
    """Keeps what was begun."""
    try:
        review.desk.save_draft(sent.task_id, user.pseudonym, {name: sent.values[name] for name in _BLANK})
    except (GoneError, ClosedError, UnknownTaskError) as error:
        return HTMLResponse(f"Not saved: {error.problem}", headers={"content-type": "text/plain; charset=utf-8"})
    return Response("Draft saved", media_type="text/plain")


def _done_with(request: Request, review: Review, user: User, batch_id: str, said: str) -> Response:
    """The next item: at once for htmx, after a redirect for a plain form, so that a reload sends nothing twice."""
    if is_fragment(request):
        return _next(request, review, user, batch_id, said=said)
    return redirect(request, f"/rate/{batch_id}")


def _next(
    request: Request,
    review: Review,
    user: User,
    batch_id: str,
    *,
    notice: str = "",
    said: str = "",
    status: int = 200,
) -> Response:
    try:
        task, progress = review.desk.next_with_progress(batch_id, user.pseudonym)
    except ClosedError:
        task, progress = None, review.desk.progress(batch_id, user.pseudonym)
    if task is not None:
        return _show(request, review, user, task, progress, notice=notice, said=said, status=status)
    values = {"batch_id": batch_id, "progress": progress, "notice": notice}
    return render(request, "_done.html" if is_fragment(request) else "done.html", status=status, **values)


def _again(request: Request, review: Review, user: User, sent: _Sent, fault: str) -> Response:
    """The same item with what was filled in, and what is missing."""
    task = review.desk.show(sent.task_id, user.pseudonym)
    return _show(request, review, user, task, notice=fault, filled=sent.values, status=422)


def _show(
    request: Request,
    review: Review,
    user: User,
    task: Task,
    progress: Progress | None = None,
    *,
    notice: str = "",
    said: str = "",
    filled: dict[str, Any] | None = None,
    status: int = 200,
) -> Response:
    begun = filled or task.draft or (task.previous.model_dump() if task.previous else {})
    known = {name: value for name, value in begun.items() if name in _BLANK and value is not None}
    progress = progress or review.desk.progress(task.batch_id, user.pseudonym)
    values = {"task": task, "filled": _BLANK | known, "progress": progress, "notice": notice, "said": said}
    return render(request, "_task.html" if is_fragment(request) else "rate.html", status=status, **values)


def _fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    if fault["loc"] == ("choice",):
        return "Choose one of the four."
    words = fault["msg"].removeprefix("Value error, ")
    return f"{words[:1].upper()}{words[1:]}."
