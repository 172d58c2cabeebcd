"""What every request goes through: who is it, may he, does the form come from our own page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from components.human_eval.desk import RatingDesk
from components.human_eval.rating import RaterKind
from components.human_eval.supervision import Supervision
from components.review.metrics import Metrics
from components.review.people import HeaderLogin, LocalLogin, Role, User, rater_kind_of
from components.review.protection import FormTokens, is_foreign
from components.review.readiness import Readiness
from components.review.releases import ReleaseBoard
from components.review.settings import ReviewSettings
from components.shared.errors import PlumblineError
from components.shared.pseudonyms import pseudonym

__all__ = [
    "FORM_TOKEN",
    "FORM_TOKEN_HEADER",
    "AnyUser",
    "ForbiddenError",
    "ForgedError",
    "Manager",
    "Rater",
    "Reader",
    "Review",
    "ReviewOf",
    "SignInError",
]

FORM_TOKEN = "form_token"
FORM_TOKEN_HEADER = "x-form-token"


class SignInError(PlumblineError):
    """Nobody is signed in."""


class ForbiddenError(PlumblineError):
    """The user does not have the role."""


class ForgedError(PlumblineError):
    """The request does not come from a page of this service."""


@dataclass(frozen=True)
class Review:
    """What the service works with.

    Attributes:
        settings: Of the service.
        desk: Hands items to raters.
        board: Reads and decides releases.
        login: How people sign in.
        tokens: What forms carry.
        metrics: What is counted.
        readiness: Asks database and MLflow.
        secret: Keys the pseudonyms.
    """

    settings: ReviewSettings
    desk: RatingDesk
    board: ReleaseBoard
    login: HeaderLogin | LocalLogin
    tokens: FormTokens
    metrics: Metrics
    readiness: Readiness
    secret: str = field(repr=False)

    @property
    def supervision(self) -> Supervision:
        """What release managers see of batches, and do about them."""
        return Supervision(self.desk.books)

    def pseudonym_of(self, login: str) -> str:
        """The name under which a login judges."""
        return pseudonym(login, self.secret)

    def rater_of(self, login: str) -> tuple[str, RaterKind]:
        """That name, and how the votes of the login are marked."""
        return self.pseudonym_of(login), rater_kind_of(login, self.settings)


def review_of(request: Request) -> Review:
    """The service that a request came to."""
    return request.app.state.review


async def _review(request: Request) -> Review:
    """`review_of` as a dependency; a coroutine, because FastAPI gives every other function a thread of its own."""
    return review_of(request)


def user_of(request: Request) -> User | None:
    """Who is signed in, if anybody."""
    peer = request.client.host if request.client else None
    return review_of(request).login.identify(request.headers, request.cookies, peer)


async def _signed_in(request: Request) -> User:
    user = user_of(request)
    if user is None:
        raise SignInError("you are not signed in.", hint="Open the link that `plumbline review` printed, or sign in.")
    if request.method not in ("GET", "HEAD", "OPTIONS"):
        await _require_own_form(request, user)
    request.state.user = user
    return user


async def _require_own_form(request: Request, user: User) -> None:
    token = request.headers.get(FORM_TOKEN_HEADER, "")
    if not token and _is_form(request):
        token = str((await request.form()).get(FORM_TOKEN, ""))
    if is_foreign(request.headers) or not review_of(request).tokens.accepts(token, user):
        raise ForgedError(
            "this page is too old, or the request came from elsewhere; nothing was changed.",
            hint=f"Load the page again; a program sends the token of /api/v1/me in {FORM_TOKEN_HEADER}.",
        )


def _is_form(request: Request) -> bool:
    kind = request.headers.get("content-type", "")
    return kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data"))


def _need(*roles: Role) -> Callable[[User], Awaitable[User]]:
    async def need(user: Annotated[User, Depends(_signed_in)]) -> User:
        if not user.may(*roles):
            raise ForbiddenError(
                f"{user.login} may not do this.", hint=f"It takes the role {' or '.join(roles)}; ask an administrator."
            )
        return user

    return need


ReviewOf = Annotated[Review, Depends(_review)]
AnyUser = Annotated[User, Depends(_signed_in)]
Rater = Annotated[User, Depends(_need(Role.RATER))]
Manager = Annotated[User, Depends(_need(Role.RELEASE_MANAGER))]
Reader = Annotated[User, Depends(_need(Role.RELEASE_MANAGER, Role.AUDITOR))]
