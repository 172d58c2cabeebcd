"""A full disk, told in one way: every library that writes says it in words of its own."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from components.shared.errors import PlumblineError

__all__ = ["full_disk"]

_NUMBERS = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota of disk space is used up"}
_WORDS = re.compile(
    r"No space left on device|os error 28\b|Disk quota exceeded|os error 122\b|database or disk is full"
    r"|inline_container"
)
"""Rust's (safetensors), SQLite's, and those of torch.save, which tells the failed write by its position only."""


def full_disk(error: BaseException) -> PlumblineError | None:
    """What to tell a person of an error that a full disk is behind; None where it is another, or is told already.

    Args:
        error: As it reached the boundary of a stage.
    """
    if isinstance(error, PlumblineError) or not isinstance(error, Exception):
        return None
    for one in _chain(error):
        number = getattr(one, "errno", None) or 0
        if number in _NUMBERS or _WORDS.search(str(one)):
            return PlumblineError(
                f"{_NUMBERS.get(number, _NUMBERS[errno.ENOSPC])}.",
                where=getattr(one, "filename", None)
                or f"{type(one).__name__}: {str(one).strip().partition(chr(10))[0]}",
                hint="Free some, or give the step more (a larger volume, scratch or TMPDIR); run it again: what it "
                "finished before is kept.",
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__
