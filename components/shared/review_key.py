"""The review service's key: what makes an approval one that was given there, by somebody who was signed in.

    ReviewKey(secret).sign(statement)             the service, which alone has the secret
    is_signed(public, statement, signature)       everybody who counts approvals, now or a year later
    register_key(engine, key)                     the service when it starts; another key is refused, unless it says why
    registered_key(engine)                        the gate, which writes the public key into the verdict that it opens

The secret keys the pseudonyms too. So a service with another secret would not only sign what counts for nothing: each
of its raters would be a stranger who may vote a second time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import Connection, Engine, select

from components.shared.accounts import account
from components.shared.errors import InputError
from components.shared.files import canonical_json, digest_of
from components.shared.notices import Notice, write_notice
from components.shared.pseudonyms import PSEUDONYM_KEY, pseudonym
from components.shared.release_tables import REVIEW_KEYS, add_if_new, create_release_tables

__all__ = ["ReviewKey", "fingerprint", "is_signed", "key_replaced_at", "register_key", "registered_key"]


@dataclass(frozen=True)
class ReviewKey:
    """The service's secret and what is made of it.

    Attributes:
        secret: PLUMBLINE_REVIEW_SECRET.
    """

    secret: str

    def __repr__(self) -> str:
        return f"ReviewKey({fingerprint(self.public)})"

    @property
    def public(self) -> str:
        """The public key, in hex: it may be shown to anybody, and is on the ledger."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, statement: dict[str, Any]) -> str:
        """Ed25519 signature of a statement's canonical JSON, in hex."""
        return self._private.sign(canonical_json(statement).encode()).hex()

    def pseudonym(self, login: str) -> str:
        """The name under which a login judges pairs."""
        return pseudonym(login, self.secret)

    @property
    def _private(self) -> Ed25519PrivateKey:
        seed = hashlib.sha256(b"plumbline approvals\x00" + self.secret.encode()).digest()
        return Ed25519PrivateKey.from_private_bytes(seed)


def fingerprint(public: str) -> str:
    """A public key for people to compare: its first 16 digits."""
    return public[:16] or "none"


def is_signed(public: str, statement: dict[str, Any], signature: str) -> bool:
    """Whether the holder of a public key's secret signed exactly this statement."""
    try:
        verifier = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        verifier.verify(bytes.fromhex(signature), canonical_json(statement).encode())
    except (InvalidSignature, ValueError, TypeError):  # a forged row may hold anything
        return False
    return True


def registered_key(engine: Engine) -> str:
    """Public key of this database's review service; "" if none has ever been started on it."""
    create_release_tables(engine)
    with engine.connect() as connection:
        return _newest(connection)[1]


def key_replaced_at(engine: Engine) -> str:
    """When the review service's key was last replaced (UTC, ISO 8601); "" if it never was."""
    create_release_tables(engine)
    query = select(REVIEW_KEYS.c.at).where(REVIEW_KEYS.c.number > 1).order_by(REVIEW_KEYS.c.number.desc()).limit(1)
    with engine.connect() as connection:
        return connection.execute(query).scalar() or ""


def register_key(engine: Engine, key: ReviewKey, *, replace: str = "") -> None:
    """Makes a service's key the one of this database; once it is, another one is refused.

    Args:
        engine: The database of evidence and ledger.
        key: Of the service that starts.
        replace: Why another key takes the place of the one that is there; told to everybody. "" refuses it.

    Raises:
        InputError: The database has another key, and nobody said why that is to be replaced.
    """
    create_release_tables(engine)
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        number, known = _newest(connection)
        if known == key.public:
            return
        if known and not replace:
            raise InputError(
                f"makes the key {fingerprint(key.public)}, and the database knows its review service by "
                f"{fingerprint(known)}. Raters would be strangers who vote again, and approvals would not count.",
                where=PSEUDONYM_KEY,
                hint="Set the secret that it had. If that is lost, or known to others: --replace-key WHY.",
            )
        row = {
            "number": number + 1,
            "public_key": key.public,
            "registered_by": account(),
            "reason": replace,
            "at": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        added = add_if_new(connection, REVIEW_KEYS, row)
        if added and known:
            write_notice(connection, _replaced(number + 1, known, key.public, replace))
    if not added:  # another service was faster: is it ours?
        register_key(engine, key, replace=replace)


def _newest(connection: Connection) -> tuple[int, str]:
    query = select(REVIEW_KEYS.c.number, REVIEW_KEYS.c.public_key).order_by(REVIEW_KEYS.c.number.desc()).limit(1)
    found = connection.execute(query).first()
    return (found.number, found.public_key) if found else (0, "")


def _replaced(number: int, old: str, new: str, reason: str) -> Notice:
    return Notice(
        id=digest_of(["review_key_replaced", number, old, new, reason])[:32],
        kind="review_key_replaced",
        text=f"The review service's key {fingerprint(old)} was replaced by {fingerprint(new)} ({account()}): {reason} "
        "Raters have new pseudonyms; approvals under the old key do not count any more.",
        details={"actor": account()},
    )
