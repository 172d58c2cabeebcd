"""Who is there: sign-in, roles, and the pseudonym under which a rater judges.

The login is known to this service only while a request lasts. What is stored of a rater is a keyed hash of it: without
the key nobody can say who `rater-k3v9...` is, nor compute it from a list of names.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import secrets
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from itsdangerous import BadSignature, URLSafeTimedSerializer

from components.human_eval.rating import RaterKind
from components.review.settings import EVERYBODY, ReviewSettings

__all__ = ["SESSION_COOKIE", "HeaderLogin", "LocalLogin", "Login", "Role", "User", "make_login", "pseudonym"]

SESSION_COOKIE = "plumbline_session"


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


def pseudonym(login: str, secret: str) -> str:
    """The name under which a login judges: a keyed hash (HMAC-SHA256, 80 bits of it)."""
    key = hashlib.sha256(b"plumbline pseudonym\x00" + secret.encode()).digest()
    digest = hmac.new(key, login.strip().casefold().encode(), hashlib.sha256).digest()
    return "rater-" + base64.b32encode(digest[:10]).decode().lower()


def make_login(settings: ReviewSettings, secret: str) -> HeaderLogin | LocalLogin:
    """The way of signing in that the settings ask for."""
    return HeaderLogin(settings, secret) if settings.login == "header" else LocalLogin(settings, secret)


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

    Args:
        settings: Roles and the length of a session.
        secret: Of the service.
    """

    def __init__(self, settings: ReviewSettings, secret: str) -> None:
        self._settings = settings
        self._secret = secret
        self._serializer = URLSafeTimedSerializer(secret, salt="plumbline session")
        self._tokens: dict[str, str] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()

    def issue(self, login: str) -> str:
        """A token with which `login` signs in once."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._tokens[_hash(token)] = login
        return token

    def exchange(self, token: str) -> str | None:
        """The session cookie for a token, which is used up by it; None if it is unknown or used."""
        with self._lock:
            login = self._tokens.pop(_hash(token), None)
        if login is None:
            return None
        return str(self._serializer.dumps([login, secrets.token_urlsafe(12)]))

    def end(self, cookie: str) -> None:
        """Signs out: the session is not accepted any more by this process."""
        found = self._read(cookie)
        if found:
            with self._lock:
                self._ended.add(found[1])

    def identify(self, headers: Mapping[str, str], cookies: Mapping[str, str], peer: str | None) -> User | None:
        """The user of the session cookie."""
        found = self._read(cookies.get(SESSION_COOKIE, ""))
        if found is None or found[1] in self._ended:
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
    names = {login.casefold(), EVERYBODY, *(f"group:{group}".casefold() for group in groups)}
    roles = frozenset(
        role for role in Role if names & {name.casefold() for name in getattr(settings.roles, role.value)}
    )
    kind: RaterKind = "simulated" if login in settings.simulated else "ai" if login in settings.ai else "human"
    return User(login, roles, pseudonym(login, secret), kind, session)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
