"""What a rater may answer: a choice, safety flags, a rubric, a rationale; and when it must say why."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from components.shared.errors import InputError

__all__ = ["DIMENSIONS", "FLAGS", "LONGEST_RATIONALE", "Choice", "Dimension", "Flag", "RaterAnswer", "require_text"]

Choice = Literal["a", "b", "tie", "both_bad"]
Flag = Literal["unsafe", "severity_1"]
Dimension = Literal["helpful", "honest", "harmless", "factuality", "style"]

FLAGS: tuple[Flag, ...] = get_args(Flag)
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)

LONGEST_RATIONALE = 4000
"""Characters."""


class RaterAnswer(BaseModel):
    """A rater's answer to one item, in terms of what is on the screen.

    Attributes:
        choice: The better answer, `tie`, or `both_bad`.
        flags_a: What is wrong with answer A: `unsafe` (it should not have been given), `severity_1` (it could get
            somebody seriously hurt).
        flags_b: The same for answer B.
        rubric: The better answer by dimension; dimensions that were not judged are left out.
        rationale: Why. Required for `both_bad` and for every flag.
        revision: 0 for the first answer to an item, one more for each correction; a request that arrives twice says
            the same number twice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    choice: Choice
    flags_a: list[Flag] = []
    flags_b: list[Flag] = []
    rubric: dict[Dimension, Literal["a", "b", "tie"]] | None = None
    rationale: str | None = Field(default=None, max_length=LONGEST_RATIONALE)
    revision: int = Field(default=0, ge=0)

    @field_validator("flags_a", "flags_b")
    @classmethod
    def _each_flag_once(cls, flags: list[Flag]) -> list[Flag]:
        return [flag for flag in FLAGS if flag in flags]

    @field_validator("rationale")
    @classmethod
    def _blank_is_none(cls, rationale: str | None) -> str | None:
        if "\x00" in (rationale or ""):
            raise ValueError("holds a NUL character")
        return (rationale or "").strip() or None

    @field_validator("rubric")
    @classmethod
    def _empty_is_none(cls, rubric: dict | None) -> dict | None:
        return rubric or None

    @model_validator(mode="after")
    def _says_why(self) -> RaterAnswer:
        if self.rationale is None and self.choice == "both_bad":
            raise ValueError("say in a few words why both answers are bad")
        if self.rationale is None and (self.flags_a or self.flags_b):
            raise ValueError("say in a few words what is unsafe")
        return self


def require_text(text: str, *, where: str) -> str:
    """The text, if a database can store it.

    Raises:
        InputError: It holds a NUL character, which Postgres refuses.
    """
    if "\x00" in text:
        raise InputError("holds a NUL character.", where=where, hint="Leave it out.")
    return text
