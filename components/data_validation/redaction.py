"""Secrets and e-mail addresses, replaced before anything is stored.

Patterns are those of common credentials whose shape is unmistakable, plus `key = value` assignments whose name says
"password" or "token". A replaced text says what stood there: `[REDACTED:email]`. Names of people and raters that are
addresses become pseudonyms, so that rows of one rater stay together.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import Any

__all__ = ["PATTERNS", "redact_text", "redact_value", "to_pseudonym"]

PATTERNS: dict[str, re.Pattern[str]] = {
    "private_key": re.compile(
        r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY-----.*?(?:-----END (?:[A-Z]+ ){0,3}PRIVATE KEY-----|\Z)", re.DOTALL
    ),
    "aws_access_key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "github_token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})\b"),
    "gitlab_token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20,64}"),
    "huggingface_token": re.compile(r"\bhf_[A-Za-z0-9]{30,64}\b"),
    "openai_key": re.compile(r"\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{20,200}"),
    "google_api_key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
    "slack_token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,250}"),
    "stripe_key": re.compile(r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,128}\b"),
    "json_web_token": re.compile(r"\beyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{8,4096}"),
    "url_password": re.compile(r"(?<=://)[^\s/:@]{1,128}:[^\s/@]{1,256}(?=@)"),
    "assigned_secret": re.compile(
        r"(?i)(?:password|passwd|secret[_ -]?key|api[_-]?key|access[_-]?token|auth[_-]?token)['\"]?\s{0,3}[:=]\s{0,3}"
        r"['\"]?(?P<secret>[^\s'\",;]{8,256})"
    ),
    "email": re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"),
}

_HINTS = re.compile(r"@|-----BEGIN|AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|hf_|sk-|AIza|xox|k_live_|k_test_|eyJ|[:=]")


def redact_text(text: str, found: Counter[str]) -> str:
    """Replaces what must not be stored.

    Args:
        text: Any text.
        found: Counts what was replaced, by kind.
    """
    if not _HINTS.search(text):
        return text
    for kind, pattern in PATTERNS.items():
        text = pattern.sub(lambda match, kind=kind: _replacement(match, kind, found), text)
    return text


def redact_value(value: Any, found: Counter[str]) -> Any:
    """`redact_text` for every text in a JSON value, keys of objects included."""
    if isinstance(value, str):
        return redact_text(value, found)
    if isinstance(value, list):
        return [redact_value(item, found) for item in value]
    if isinstance(value, dict):
        return {redact_text(str(key), found): redact_value(item, found) for key, item in value.items()}
    return value


def to_pseudonym(name: str, salt: str, found: Counter[str]) -> str:
    """`name`, or a stable pseudonym for it if it holds something that must not be stored."""
    if redact_text(name, found) == name:
        return name
    return "redacted-" + hashlib.sha256(f"{salt}\x1f{name}".encode()).hexdigest()[:16]


def _replacement(match: re.Match[str], kind: str, found: Counter[str]) -> str:
    whole = match.group(0)
    secret = match.groupdict().get("secret") or whole
    if secret.startswith("[REDACTED:"):
        return whole
    found[kind] += 1
    return whole.replace(secret, f"[REDACTED:{kind}]")
