"""The review service: raters judge blind pairs, release managers read the evidence and decide.

/rate ...       pages for raters            /releases ...   pages for release managers and auditors
/batches        batches, for managers       /api/v1 ...     the same as JSON; /api/openapi.json describes it
/healthz /readyz /metrics                   for the platform; they tell nothing about anybody
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, Form, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from components.human_eval.database import EvidenceDatabase, open_database
from components.human_eval.desk import RatingDesk
from components.review import batch_admin, rater_api, rater_pages, release_api, release_pages
from components.review.access import AnyUser, Review, ReviewOf
from components.review.faults import handle_faults
from components.review.metrics import CONTENT_TYPE, Metrics
from components.review.pages import STATIC, redirect, render
from components.review.people import SESSION_COOKIE, LocalLogin, Role, make_login
from components.review.protection import FormTokens, Protection
from components.review.readiness import Readiness
from components.review.releases import ReleaseBoard
from components.review.settings import SECRET_VARIABLE, ReviewSettings
from components.review.watch import Watch
from components.shared import report
from components.shared.errors import InputError
from components.shared.release_orders import StartRun
from components.shared.review_key import ReviewKey, register_key

__all__ = ["create_app"]

_logger = logging.getLogger(__name__)

_SHORTEST_SECRET = 32
_KEEP = {"cache-control": "public, max-age=3600"}

site = APIRouter(include_in_schema=False)


def create_app(
    settings: ReviewSettings,
    *,
    secret: str,
    database: EvidenceDatabase | None = None,
    start: StartRun | None = None,
    replace_key: str = "",
) -> FastAPI:
    """Makes the service.

    Args:
        settings: How people sign in, and what they may do.
        secret: Signs sessions and forms, keys the pseudonyms; at least 32 characters.
        database: Evidence database; that of the environment if None.
        start: Starts the release run of a batch that has closed; None starts none.
        replace_key: Why this secret takes the place of another one that the database knows; "" refuses it.

    Raises:
        InputError: The secret is too short or another one than the database's, or the database is not set.
    """
    if len(secret) < _SHORTEST_SECRET:
        raise InputError(
            f"has {len(secret)} characters, at least {_SHORTEST_SECRET} are needed.",
            where=SECRET_VARIABLE,
            hint="Make one with `openssl rand -hex 32`, and keep it: pseudonyms depend on it.",
        )
    desk, key = RatingDesk(database or open_database()), ReviewKey(secret)
    register_key(desk.database.engine, key, replace=replace_key)
    watch = Watch(desk, start=start)
    app = FastAPI(
        title="Plumbline review",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=watch.lifespan(settings.watch_seconds),
    )
    metrics = Metrics(desk, watch)
    app.state.review = Review(
        settings=settings,
        desk=desk,
        board=ReleaseBoard(key),
        login=make_login(settings, secret, desk.database),
        tokens=FormTokens(secret, hours=settings.session_hours),
        metrics=metrics,
        readiness=Readiness(desk.database),
        secret=secret,
    )
    for router in (rater_api.router, release_api.router, batch_admin.api, rater_pages.router, release_pages.router):
        app.include_router(router)
    app.include_router(batch_admin.pages)
    app.include_router(site)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    handle_faults(app)
    app.add_middleware(Protection)
    app.add_middleware(metrics.middleware)
    return app


@site.get("/")
def home(request: Request, user: AnyUser) -> Response:
    """To the page of one's role."""
    if user.may(Role.RELEASE_MANAGER, Role.AUDITOR):
        return redirect(request, "/releases")
    return redirect(request, "/rate") if user.may(Role.RATER) else render(request, "home.html")


@site.get("/login")
def login_page(request: Request, token: str = "") -> Response:
    """Asks before it uses a token up: what merely looks at links must not."""
    return render(request, "login.html", token=token, notice="")


@site.post("/login")
def login(request: Request, review: ReviewOf, token: Annotated[str, Form()] = "") -> Response:
    """Signs in with a one-time token."""
    cookie = review.login.exchange(token) if isinstance(review.login, LocalLogin) else None
    if cookie is None:
        notice = "This link was used already, or is not of this service."
        return render(request, "login.html", status=403, token="", notice=notice)
    response = redirect(request, "/")
    seconds = int(review.settings.session_hours * 3600)
    response.set_cookie(
        SESSION_COOKIE,
        cookie,
        max_age=seconds,
        httponly=True,
        samesite="strict",
        secure=review.settings.secure_cookies,
    )
    return response


@site.post("/logout")
def logout(request: Request, user: AnyUser, review: ReviewOf) -> Response:
    """Signs out."""
    if isinstance(review.login, LocalLogin):
        review.login.end(request.cookies.get(SESSION_COOKIE, ""))
    response = redirect(request, "/login")
    response.delete_cookie(SESSION_COOKIE)
    return response


@site.get("/static/report.css")
def report_css() -> FileResponse:
    """Colours, tables and charts: the run report's own style sheet."""
    return FileResponse(Path(report.__file__).with_name("report.css"), headers=_KEEP)


@site.get("/healthz")
def healthz() -> PlainTextResponse:
    """The process answers."""
    return PlainTextResponse("ok\n")


@site.get("/readyz")
def readyz(review: ReviewOf) -> JSONResponse:
    """The database and MLflow answer; which does not is said."""
    faults = review.readiness.faults()
    if faults:
        _logger.warning("Not ready: %s", "; ".join(f"{name}: {fault}" for name, fault in faults.items()))
    return JSONResponse({"ready": not faults, **faults}, status_code=503 if faults else 200)


@site.get("/metrics")
def metrics_page(review: ReviewOf) -> Response:
    """For Prometheus."""
    return Response(review.metrics.render(), headers={"content-type": CONTENT_TYPE})
