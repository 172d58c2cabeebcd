"""Batches from a release manager's side: where they stand, closing them, labels to and from other tools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, File, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, PlainTextResponse, Response

from components.human_eval.database import Closure
from components.human_eval.settings import PEOPLE
from components.human_eval.supervision import BatchReport
from components.review.access import FORM_TOKEN, Manager, Reader, Review, ReviewOf
from components.review.exchange import LABEL_STUDIO_CONFIG, Format, ImportReport, export_batch, import_labels
from components.review.pages import imports_table, redirect, render
from components.shared.errors import InputError

__all__ = ["api", "pages"]

api = APIRouter(prefix="/api/v1", tags=["batches"])
pages = APIRouter(include_in_schema=False)


class Closing(BaseModel):
    """Why a batch is closed."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=1000)


class Returned(Closing):
    """Which skipped item is given back to those who skipped it, and why."""

    item_id: str


class Dismissal(Closing):
    """Whose votes are set aside, and why."""

    rater: str


class Adjudication(Closing):
    """Which items of the review queue go to how many further raters, and why."""

    item_ids: list[str] = Field(min_length=1, max_length=100)
    votes: int = Field(default=2, ge=1, le=9)


@api.post("/batches/{batch_id}/close")
def close(batch_id: str, given: Closing, user: Manager, review: ReviewOf) -> Closure:
    """Closes a batch: it takes no more answers."""
    review.desk.plan(batch_id)  # refuses one that does not exist
    return review.desk.database.close(batch_id, actor=user.login, reason=given.reason)


@api.get("/batches/{batch_id}/report")
def report(batch_id: str, user: Reader, review: ReviewOf) -> BatchReport:
    """What the batch waits for, its raters, and the items on which they disagree."""
    return review.supervision.report(batch_id)


@api.post("/batches/{batch_id}/return-skip")
def return_skip(batch_id: str, given: Returned, user: Manager, review: ReviewOf) -> BatchReport:
    """Gives a skipped item back to those who skipped it."""
    review.supervision.return_skip(batch_id, given.item_id, actor=user.login, reason=given.reason)
    return review.supervision.report(batch_id)


@api.post("/batches/{batch_id}/dismiss")
def dismiss(batch_id: str, given: Dismissal, user: Manager, review: ReviewOf) -> BatchReport:
    """Sets the votes of a rater aside who owes checks and is gone."""
    review.supervision.dismiss(batch_id, given.rater, actor=user.login, reason=given.reason)
    return review.supervision.report(batch_id)


@api.post("/batches/{batch_id}/adjudicate")
def adjudicate(batch_id: str, given: Adjudication, user: Manager, review: ReviewOf) -> BatchReport:
    """Sends items on which raters disagree to further raters."""
    who = {"actor": user.login, "reason": given.reason}
    review.supervision.adjudicate(batch_id, given.item_ids, votes=given.votes, **who)
    return review.supervision.report(batch_id)


@api.get("/batches/{batch_id}/export")
def export(batch_id: str, user: Manager, review: ReviewOf, tool: Annotated[Format, Query(alias="format")]) -> Response:
    """The batch's items, blind, for Label Studio or Argilla."""
    tasks = export_batch(review.desk.database.batch(batch_id), tool)
    name = f'attachment; filename="batch-{batch_id[:8]}-{tool}.json"'
    return JSONResponse(tasks, headers={"content-disposition": name})


@api.get("/label-studio-config")
def label_studio_config(user: Manager) -> PlainTextResponse:
    """The labelling interface for the exported tasks."""
    return PlainTextResponse(LABEL_STUDIO_CONFIG)


async def _body(request: Request) -> bytes:
    """What was sent, byte for byte: its digest is recorded."""
    return await request.body()


@api.post("/batches/{batch_id}/import")
def import_(
    batch_id: str,
    content: list[dict[str, Any]],
    file: Annotated[bytes, Depends(_body)],
    user: Manager,
    review: ReviewOf,
) -> ImportReport:
    """Takes the labels of an export; those that are refused are named with their reasons.

    Who imports is recorded, and does not approve a release that rests on it.
    """
    return import_labels(review.desk, batch_id, file, actor=user.login, source="API", rater_of=review.rater_of)


@pages.get("/batches")
def batches(request: Request, user: Reader, review: ReviewOf) -> Response:
    """Every batch for people."""
    return _show(request, review)


@pages.get("/batches/{batch_id}")
def batch(request: Request, batch_id: str, user: Reader, review: ReviewOf) -> Response:
    """One batch: what it waits for, its raters, the items on which they disagree."""
    report = review.supervision.report(batch_id)
    about = {"deadline": review.desk.database.deadline(batch_id), "imports": imports_table(report.imports)}
    return render(request, "manage_batch.html", report=report, **about)


@pages.post("/batches/{batch_id}/import")
def import_form(
    request: Request, batch_id: str, user: Manager, review: ReviewOf, file: Annotated[UploadFile, File()]
) -> Response:
    """Takes a labelled export and says what became of it."""
    who = {"actor": user.login, "source": file.filename or "", "rater_of": review.rater_of}
    return _show(request, review, import_labels(review.desk, batch_id, file.file.read(), **who))


@dataclass(frozen=True)
class _Move:
    """What a form asks for: what it must hold, who does it (the API's own function), and what is shown then."""

    holds: type[Closing]
    does: Callable[..., Any]
    shows: str = "/batches/{batch_id}"


_MOVES = {
    "close": _Move(Closing, close, "/batches"),
    "return-skip": _Move(Returned, return_skip),
    "dismiss": _Move(Dismissal, dismiss),
    "adjudicate": _Move(Adjudication, adjudicate),
}


async def _read(request: Request) -> dict[str, Any]:
    form = await request.form()
    sent: dict[str, Any] = {name: form.get(name) for name in form if name not in (FORM_TOKEN, "item_ids")}
    return sent | ({"item_ids": form.getlist("item_ids")} if "item_ids" in form else {})


@pages.post("/batches/{batch_id}/{move}")
def move_form(
    request: Request,
    batch_id: str,
    move: str,
    user: Manager,
    review: ReviewOf,
    sent: Annotated[dict[str, Any], Depends(_read)],
) -> Response:
    """Closes a batch, gives a skipped item back, dismisses a rater, sends items to further raters."""
    wanted = _MOVES.get(move)
    if wanted is None:
        raise InputError(f"{move!r} is no move.", hint=f"There are {', '.join(_MOVES)}.")
    try:
        given = wanted.holds.model_validate(sent)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    wanted.does(batch_id, given, user, review)
    return redirect(request, wanted.shows.format(batch_id=quote(batch_id, safe="")))


def _show(request: Request, review: Review, report: ImportReport | None = None) -> Response:
    database = review.desk.database
    for_people = [name for name in database.batch_ids() if review.desk.plan(name).settings.panel == PEOPLE]
    found = [
        (name, review.desk.progress(name, ""), database.closure(name), database.deadline(name))
        for name in reversed(for_people)
    ]
    return render(request, "manage_batches.html", batches=found, report=report)
