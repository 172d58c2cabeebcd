"""The name under which a login judges pairs: a keyed hash, made by the review service and recognised by the gate.

Without the key nobody can say who `rater-k3v9...` is, nor compute it from a list of names.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

__all__ = ["PSEUDONYM_KEY", "is_pseudonym", "pseudonym"]

PSEUDONYM_KEY = "PLUMBLINE_REVIEW_SECRET"
"""Environment variable of the key."""

_FORM = re.compile(r"rater-[a-z2-7]{16}")


def pseudonym(login: str, secret: str) -> str:
    """The name under which a login judges: HMAC-SHA256, 80 bits of it."""
    key = hashlib.sha256(b"plumbline pseudonym\x00" + secret.encode()).digest()
    digest = hmac.new(key, login.strip().casefold().encode(), hashlib.sha256).digest()
    return "rater-" + base64.b32encode(digest[:10]).decode().lower()


def is_pseudonym(rater: str) -> bool:
    """Whether a rater's name is of this form."""
    return _FORM.fullmatch(rater) is not None
