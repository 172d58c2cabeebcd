"""The records that stages exchange as JSON lines."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.shared.errors import InputError
from components.shared.files import read_jsonl, write_jsonl

__all__ = [
    "Message",
    "PreferenceRecord",
    "Prompt",
    "PromptRecord",
    "SFTRecord",
    "group_key",
    "normalise_text",
    "prompt_text",
    "read_records",
    "stable_order",
    "write_records",
]

Role = Literal["system", "user", "assistant"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(_Record):
    """One turn of a conversation."""

    role: Role
    content: str


Prompt = str | list[Message]


class PromptRecord(_Record):
    """A prompt to sample answers for.

    Attributes:
        id: Unique within a dataset.
        prompt: Text, or the turns of a conversation up to the answer.
        slice: The part of the data it is reported under.
        group_id: Records of one group never part between splits; absent, the normalised prompt is the group.
    """

    id: str
    prompt: Prompt
    slice: str = "all"
    group_id: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class SFTRecord(PromptRecord):
    """A demonstration: prompt and the answer to imitate."""

    completion: str


class PreferenceRecord(PromptRecord):
    """Two answers to a prompt, one preferred.

    Attributes:
        chosen: The preferred answer.
        rejected: The other one.
        rater: Pseudonym of who judged.
        rationale: Why, in the rater's words.
        strength: How clear the preference is, in [0, 1]; 1 when not known.
        source: Who judged: people, a judge model, or a simulation.
        chosen_finished: False when `chosen` was cut at the length limit (no EOS is appended).
        rejected_finished: The same for `rejected`.
    """

    chosen: str
    rejected: str
    rater: str | None = None
    rationale: str | None = None
    strength: float = Field(default=1.0, ge=0.0, le=1.0)
    source: Literal["human", "ai", "simulated"] = "human"
    chosen_finished: bool = True
    rejected_finished: bool = True


Record = TypeVar("Record", bound=PromptRecord)


def prompt_text(prompt: Prompt) -> str:
    """The prompt as plain text, for people and for comparison; a conversation has one `role: content` line a turn."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.role}: {message.content}" for message in prompt)


def normalise_text(text: str) -> str:
    """NFKC, lower case, invisible characters removed, runs of white space as one space."""
    if text.isascii():  # nothing to compose or remove, and much faster
        return " ".join(text.lower().split())
    visible = (c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return " ".join("".join(visible).casefold().split())


def group_key(record: PromptRecord) -> str:
    """What keeps records together across splits: `group_id`, else the normalised prompt."""
    return record.group_id or normalise_text(prompt_text(record.prompt))


def stable_order(records: Iterable[Record]) -> list[Record]:
    """Records by the hash of their ids, not by a seed: every stage takes the same first ones, and fewer are in more."""
    return sorted(records, key=lambda record: hashlib.sha256(record.id.encode()).hexdigest())


def read_records(path: str | Path, model: type[Record]) -> Iterator[Record]:
    """Reads records of one kind from JSON lines.

    Raises:
        InputError: A row does not fit the record; the error names file, row and field.
    """
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            yield model.model_validate(row)
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(str(part) for part in fault["loc"])
            raise InputError(f"field {field!r}: {fault['msg']}.", where=f"{path}, record {number}") from error


def write_records(path: str | Path, records: Iterable[PromptRecord]) -> None:
    """Writes records as JSON lines, atomically."""
    write_jsonl(path, (record.model_dump(mode="json") for record in records))
