"""Errors that say what is wrong, where, and what to do."""

from __future__ import annotations

__all__ = ["ArtifactError", "FetchError", "InputError", "PlumblineError"]


class PlumblineError(Exception):
    """An error for a person to read.

    Args:
        problem: What is wrong, in one sentence.
        where: File, row, field, setting or service.
        hint: What to do about it.
    """

    def __init__(self, problem: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.problem = problem
        self.where = where
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = self.problem
        if self.where:
            text = f"{self.where}: {text}"
        if self.hint:
            text = f"{text} {self.hint}"
        return text


class InputError(PlumblineError):
    """A file, record or setting that the user gave cannot be used."""


class ArtifactError(PlumblineError):
    """An artifact is missing, half-written, altered, or of another kind."""


class FetchError(ArtifactError):
    """Whoever keeps an artifact did not hand it out: that says nothing of the artifact, and it may be asked again."""
