"""Who is there: sign-in, roles, and the pseudonym under which a rater judges.

The login is known to this service only while a request lasts. What is stored of a rater is a keyed hash of it: without
the key nobody can say who `rater-k3v9...` is, nor compute it from a list of names.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from itsdangerous import BadSignature, URLSafeTimedSerializer

from components.human_eval.database import EvidenceDatabase
from components.human_eval.rating import RaterKind
from components.review.settings import EVERYBODY, ReviewSettings
from components.review.sign_ins import SignIns
from components.shared.pseudonyms import pseudonym

__all__ = ["SESSION_COOKIE", "HeaderLogin", "LocalLogin", "Login", "Role", "User", "make_login", "rater_kind_of"]

SESSION_COOKIE = "plumbline_session"
_GROUP = "group:"
"""Before the name of a group in the settings' roles."""


class Role(StrEnum):
    """What a person may do."""

    RATER = "rater"
    RELEASE_MANAGER = "release_manager"
    AUDITOR = "auditor"


@dataclass(frozen=True)
class User:
    """Somebody who is signed in.

    Attributes:
        login: The name that the platform knows; on the ledger for approvals, never in the judgements.
        roles: What he may do.
        pseudonym: The name under which he judges.
        rater_kind: How his votes are marked.
        session: Names this sign-in; forms are bound to it.
    """

    login: str
    roles: frozenset[Role]
    pseudonym: str
    rater_kind: RaterKind
    session: str

    def may(self, *roles: Role) -> bool:
        """Whether the user has one of the roles."""
        return not self.roles.isdisjoint(roles)


class Login(Protocol):
    """How people sign in."""

    def identify(self, headers: Mapping[str, str], cookies: Mapping[str, str], peer: str | None) -> User | None:
        """The user behind a request; None if nobody is signed in."""
        ...


def make_login(settings: ReviewSettings, secret: str, database: EvidenceDatabase) -> HeaderLogin | LocalLogin:
    """The way of signing in that the settings ask for."""
    if settings.login == "header":
        return HeaderLogin(settings, secret)
    return LocalLogin(settings, secret, SignIns(database, hours=settings.session_hours))


class HeaderLogin:
    """A proxy in front has signed the user in and says so in a header.

    Args:
        settings: Header, trusted peers and roles.
        secret: Of the service.
    """

    def __init__(self, settings: ReviewSettings, secret: str) -> None:
        self._settings = settings
        self._secret = secret
        self._trusted = [ipaddress.ip_network(peer) for peer in settings.trusted_peers]

    def identify(self, headers: Mapping[str, str], cookies: Mapping[str, str], peer: str | None) -> User | None:
        """The user whom the header names; None without it, or from a peer that is not trusted."""
        claimed = headers.get(self._settings.user_header, "").strip()
        if not claimed or not self._is_trusted(peer):
            return None
        login = claimed.removeprefix(self._settings.user_prefix)
        groups = headers.get(self._settings.groups_header, "") if self._settings.groups_header else ""
        names = [group.strip() for group in groups.split(",") if group.strip()]
        return _user(login, names, self._settings, self._secret, session="header")

    def _is_trusted(self, peer: str | None) -> bool:
        try:
            address = ipaddress.ip_address(peer or "")
        except ValueError:
            return False
        return any(address in network for network in self._trusted)


class LocalLogin:
    """One-time tokens that the command prints, exchanged for a signed cookie.

    The cookie says who it is and is good as long as the service keeps its secret; links and sign-outs are in the
    database. So nobody has to sign in anew when the service is started again.

    Args:
        settings: Roles and the length of a session.
        secret: Of the service.
        sign_ins: Links and ended sessions.
    """

    def __init__(self, settings: ReviewSettings, secret: str, sign_ins: SignIns) -> None:
        self._settings = settings
        self._secret = secret
        self._serializer = URLSafeTimedSerializer(secret, salt="plumbline session")
        self._sign_ins = sign_ins

    def issue(self, login: str) -> str:
        """A token with which `login` signs in once, within the length of a session."""
        return self._sign_ins.issue(login)

    def exchange(self, token: str) -> str | None:
        """The session cookie for a token, which is used up by it; None if it is unknown, used or too old."""
        login = self._sign_ins.use(token)
        if login is None:
            return None
        return str(self._serializer.dumps([login, secrets.token_urlsafe(12)]))

    def end(self, cookie: str) -> None:
        """Signs out: the session is not accepted any more."""
        found = self._read(cookie)
        if found:
            self._sign_ins.end(found[1])

    def identify(self, headers: Mapping[str, str], cookies: Mapping[str, str], peer: str | None) -> User | None:
        """The user of the session cookie."""
        found = self._read(cookies.get(SESSION_COOKIE, ""))
        if found is None or self._sign_ins.is_ended(found[1]):
            return None
        login, session = found
        return _user(login, [], self._settings, self._secret, session=session)

    def _read(self, cookie: str) -> tuple[str, str] | None:
        try:
            login, session = self._serializer.loads(cookie, max_age=int(self._settings.session_hours * 3600))
        except BadSignature:
            return None
        return str(login), str(session)


def _user(login: str, groups: Iterable[str], settings: ReviewSettings, secret: str, *, session: str) -> User:
    own = set() if login.casefold().startswith(_GROUP) else {login.casefold()}  # nobody is a group by being called so
    names = {*own, EVERYBODY, *(f"{_GROUP}{group}".casefold() for group in groups)}
    roles = frozenset(
        role for role in Role if names & {name.casefold() for name in getattr(settings.roles, role.value)}
    )
    return User(login, roles, pseudonym(login, secret), rater_kind_of(login, settings), session)


def rater_kind_of(login: str, settings: ReviewSettings) -> RaterKind:
    """How a login's votes are marked; in whatever case it is written, as it is one rater."""
    name = login.strip().casefold()
    if name in {one.casefold() for one in settings.simulated}:
        return "simulated"
    return "ai" if name in {one.casefold() for one in settings.ai} else "human"
