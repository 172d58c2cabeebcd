"""Errors on their way out: a status for each kind, JSON for programs, a page or a remark for people."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from components.human_eval.rating import AnsweredError, ClosedError, GoneError, SetAsideError, UnknownTaskError
from components.release_gate.approvals import ApprovalError
from components.release_gate.promotion import PromotionError
from components.release_gate.states import IllegalMoveError
from components.review.access import ForbiddenError, ForgedError, SignInError
from components.review.pages import is_fragment, render
from components.review.releases import UnknownReleaseError
from components.shared.errors import InputError, PlumblineError

__all__ = ["handle_faults", "status_of"]

_logger = logging.getLogger(__name__)

_STATUS: list[tuple[type[PlumblineError], int]] = [
    (SignInError, 401),
    (ForbiddenError, 403),
    (ForgedError, 403),
    (UnknownTaskError, 404),
    (UnknownReleaseError, 404),
    (ClosedError, 409),
    (GoneError, 409),
    (AnsweredError, 409),
    (SetAsideError, 409),
    (ApprovalError, 409),
    (PromotionError, 409),
    (IllegalMoveError, 409),
    (InputError, 422),
]

_TITLES = {401: "Sign in first", 403: "Not allowed", 404: "Not found", 409: "Not possible now", 422: "Not valid"}


def status_of(error: PlumblineError) -> int:
    """The HTTP status of an error; 500 for one that the caller can do nothing about."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def handle_faults(app: FastAPI) -> None:
    """Gives every error of the service its answer."""
    app.add_exception_handler(PlumblineError, _plumbline)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _plumbline(request: Request, error: Exception) -> Response:
    assert isinstance(error, PlumblineError)
    status = status_of(error)
    if status >= 500:
        _logger.error("%s %s: %s", request.method, request.url.path, error)
    return _answer(request, status, error.problem, error.where, error.hint)


async def _not_valid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [
        f"{'.'.join(str(part) for part in fault['loc'][1:]) or fault['loc'][0]}: {_words(fault['msg'])}"
        for fault in error.errors()
    ]
    return _answer(request, 422, "; ".join(faults) + ".", None, None)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, error.status_code, str(error.detail), None, None)


async def _unexpected(request: Request, error: Exception) -> Response:
    _logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(request, 500, "the service failed; what happened is in its log.", None, None)


def _answer(request: Request, status: int, problem: str, where: str | None, hint: str | None) -> Response:
    if request.url.path.startswith("/api/"):
        content = {"error": {"problem": problem, "where": where, "hint": hint}}
        return JSONResponse(content, status_code=status)
    template = "_fault.html" if is_fragment(request) else "fault.html"
    title = _TITLES.get(status, "Something went wrong")
    return render(request, template, status=status, title=title, problem=problem, where=where, hint=hint)


def _words(message: str) -> str:
    return message.removeprefix("Value error, ")
