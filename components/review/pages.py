"""Pages from templates: autoescaped, no undefined names; the same values on every page."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse, RedirectResponse, Response

from components.human_eval.answers import DIMENSIONS, LONGEST_RATIONALE
from components.review.access import review_of, user_of
from components.review.people import LocalLogin, Role
from components.shared.records import Message, Prompt
from components.shared.report import table

__all__ = ["STATIC", "imports_table", "is_fragment", "redirect", "render", "turns_of"]

_FOLDER = Path(__file__).resolve().parent
STATIC = _FOLDER / "static"

_environment = Environment(
    loader=FileSystemLoader(_FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def turns_of(prompt: Prompt) -> list[Message]:
    """The turns of a prompt; a text is one turn of the user's."""
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)


def _minute(moment: datetime) -> str:
    """A moment, to the minute, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


_environment.filters.update(turns=turns_of, minute=_minute)
_environment.globals.update(dimensions=DIMENSIONS, longest_rationale=LONGEST_RATIONALE)


def is_fragment(request: Request) -> bool:
    """Whether htmx asks for a part of a page."""
    return request.headers.get("hx-request") == "true"


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page, or with htmx a part of one.

    Args:
        request: Whose user and form token the page shows.
        template: File in `templates/`.
        status: HTTP status.
        **values: What the template shows; plain text is escaped.
    """
    review, user = review_of(request), user_of(request)
    common = {
        "user": user,
        "form_token": review.tokens.make(user) if user else "",
        "may_rate": bool(user and user.may(Role.RATER)),
        "may_read": bool(user and user.may(Role.RELEASE_MANAGER, Role.AUDITOR)),
        "may_decide": bool(user and user.may(Role.RELEASE_MANAGER)),
        "local": isinstance(review.login, LocalLogin),
    }
    return HTMLResponse(_environment.get_template(template).render(**common, **values), status_code=status)


def redirect(request: Request, url: str) -> Response:
    """Sends the browser elsewhere after a form; htmx is told in its own way."""
    if is_fragment(request):
        return Response(status_code=204, headers={"HX-Redirect": url})
    return RedirectResponse(url, status_code=303)


def imports_table(imports: list[dict[str, Any]]) -> Markup | None:
    """Labels from other tools: who brought them in, from which file; None if there are none."""
    shown = ("actor", "source", "labels", "judgements")
    rows = [
        [row["created_at"][:16].replace("T", " "), *(row[name] for name in shown), row["digest"][:16]]
        for row in imports
    ]
    headers = ["UTC", "imported by", "file", "labels in it", "judgements taken", "sha256"]
    return table(headers, rows, caption="Labels from other tools") if rows else None
