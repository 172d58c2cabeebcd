"""What makes a single row unusable."""

from __future__ import annotations

__all__ = ["RowFault"]


class RowFault(Exception):
    """The parts of one row cannot be found; the row is quarantined and the run goes on.

    Args:
        check: Short name of what failed.
        message: What was seen, without the row's text.
    """

    def __init__(self, check: str, message: str) -> None:
        self.check = check
        self.message = message
        super().__init__(f"{check}: {message}")
