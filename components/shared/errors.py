"""Errors that say what is wrong, where, and what to do."""

from __future__ import annotations

__all__ = ["ArtifactError", "FetchError", "InputError", "PlumblineError", "error_like"]


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


def error_like(kind: str, problem: str, where: str | None, hint: str | None) -> PlumblineError:
    """An error that another process told, of its own kind where that is known here."""
    known = {PlumblineError}
    for _ in range(4):  # kinds of kinds
        known |= {one for each in known for one in each.__subclasses__()}
    kinds = {one.__name__: one for one in known}
    return kinds.get(kind, PlumblineError)(problem, where=where, hint=hint)
