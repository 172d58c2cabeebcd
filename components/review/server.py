"""Starts the review service: `plumbline review`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import uvicorn

from components.review.app import create_app
from components.review.people import LocalLogin
from components.review.settings import SECRET_VARIABLE, ReviewSettings
from components.shared.errors import InputError
from components.shared.release_orders import StartRun
from components.shared.settings import load_settings

__all__ = ["review_settings", "secret_of", "serve", "with_local_people"]


def serve(
    settings: ReviewSettings,
    *,
    secret: str,
    logins: list[str],
    tell: Callable[[str], None],
    start: StartRun | None = None,
    replace_key: str = "",
) -> None:
    """Serves until it is stopped.

    Args:
        settings: Of the service.
        secret: Of the service.
        logins: Who gets a one-time link; only where people sign in locally.
        tell: Shows a line to whoever started it.
        start: Starts release runs; None: the service closes batches and sends notices only.
        replace_key: Why this secret takes the place of the one that the database knows.
    """
    app = create_app(settings, secret=secret, start=start, replace_key=replace_key)
    login = app.state.review.login
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    tell(f"Review service: http://{host}:{settings.port}")
    if isinstance(login, LocalLogin):
        for name in logins:
            tell(f"{name} signs in once with http://{host}:{settings.port}/login?token={login.issue(name)}")
    # No access log: it would hold the tokens of the links. No forwarded addresses: trust is in the peer itself.
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )


def review_settings(
    path: str | None,
    *,
    host: str | None,
    port: int | None,
    managers: list[str],
    raters: list[str],
    simulated: list[str],
) -> ReviewSettings:
    """The settings of the file, with what the command line says on top.

    Args:
        path: YAML file; None for the defaults.
        host: Overrides the file's.
        port: Overrides the file's.
        managers: May do everything, where people sign in locally: rate, and decide on releases.
        raters: May rate, where people sign in locally.
        simulated: Programs that rate, where people sign in locally; their votes are marked.

    Raises:
        InputError: The file cannot be used, or people are named although a proxy signs them in.
    """
    settings = load_settings(path, ReviewSettings) if path else ReviewSettings()
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = settings.model_copy(update=given)
    if settings.login == "local":
        return with_local_people(settings, managers=managers, raters=raters, simulated=simulated)
    if raters or simulated:
        raise InputError(
            "people are named on the command line, but a proxy signs them in.",
            where="--rater, --simulated",
            hint="Name them in `roles` and `simulated` of the settings.",
        )
    return settings


def with_local_people(
    settings: ReviewSettings, *, managers: list[str], raters: list[str], simulated: list[str]
) -> ReviewSettings:
    """Settings in which the people named on the command line have their roles.

    Args:
        settings: As configured.
        managers: May do everything: rate, and decide on releases.
        raters: May rate.
        simulated: Programs that rate; their votes are marked.
    """
    roles = settings.roles
    updated = roles.model_copy(
        update={
            "rater": [*roles.rater, *managers, *raters, *simulated],
            "release_manager": [*roles.release_manager, *managers],
        }
    )
    return settings.model_copy(update={"roles": updated, "simulated": [*settings.simulated, *simulated]})


def secret_of(settings: ReviewSettings, folder: Path) -> str:
    """The service's secret: of the environment, or, where people sign in locally, of a file that is made once.

    Args:
        settings: Of the service.
        folder: Where the file is.

    Raises:
        InputError: There is none, and people do not sign in locally.
    """
    found = os.environ.get(SECRET_VARIABLE, "")
    if found:
        return found
    if settings.login != "local":
        raise InputError(
            "the service's secret is not set.", where=SECRET_VARIABLE, hint="Make one with `openssl rand -hex 32`."
        )
    file = folder / "review-secret"
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return file.read_text().strip()
    with os.fdopen(descriptor, "w") as opened:
        opened.write(secrets.token_hex(32) + "\n")
    return file.read_text().strip()
