"""From the columns that users have to the fields of our records.

Each format is recognised by its columns, row by row, so one file may mix them. What comes out is a `Candidate`: the
fields of a record, not yet checked. Types, lengths and contents are for the expectations and checks that follow; here a
row fails only if its parts cannot be found.

| kind | accepted |
|---|---|
| sft | `messages`; or `prompt` + `completion`, each text or a list of messages |
| prompts | `prompt`, text or a list of messages |
| preferences | `prompt` + `chosen` + `rejected`, text or lists of messages; |
| | `chosen` + `rejected` as whole conversations; |
| | `prompt` (or `input_text`) + `candidate_0` + `candidate_1` + `choice` (0 or 1); Label Studio; Argilla |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from components.data_validation import exports
from components.data_validation.faults import RowFault
from components.data_validation.sources import RawRow
from components.shared.errors import InputError
from components.shared.files import digest_of

__all__ = ["ACCEPTED", "TEXT_FIELDS", "Candidate", "Kind", "Reason", "to_candidates"]

Kind = Literal["sft", "prompts", "preferences"]

TEXT_FIELDS: dict[Kind, tuple[str, ...]] = {
    "sft": ("completion",),
    "prompts": (),
    "preferences": ("chosen", "rejected"),
}
"""The answers in a record of each kind."""

ACCEPTED: dict[Kind, str] = {
    "sft": "'messages', or 'prompt' and 'completion'",
    "prompts": "'prompt'",
    "preferences": (
        "'prompt', 'chosen' and 'rejected'; 'prompt' (or 'input_text'), 'candidate_0', 'candidate_1' and 'choice'; "
        "a Label Studio export ('data' and 'annotations'); or an Argilla export ('fields' and 'responses')"
    ),
}

_COMMON = ("id", "slice", "group_id")
_JUDGEMENT = ("rater", "rationale", "strength", "source", "chosen_finished", "rejected_finished")
_DEFAULTS = {"strength": 1.0, "source": "human", "chosen_finished": True, "rejected_finished": True}
_MOST_METADATA_CHARACTERS = 2000


@dataclass(frozen=True)
class Reason:
    """Why a row is set aside: the name of the check, and what it saw (never the text itself)."""

    check: str
    message: str


@dataclass
class Candidate:
    """A row on its way to become a record.

    Attributes:
        row: The row as found.
        values: Fields of the record, unchecked; empty if the row has no known format.
        reasons: Why it cannot become one; empty is good.
        redactions: Found secrets and addresses, by kind.
    """

    row: RawRow
    values: dict[str, Any]
    reasons: list[Reason] = field(default_factory=list)
    redactions: Counter[str] = field(default_factory=Counter)

    def reject(self, check: str, message: str) -> None:
        """Adds a reason, once for each check."""
        if all(reason.check != check for reason in self.reasons):
            self.reasons.append(Reason(check, message))


def to_candidates(rows: Iterable[RawRow], kind: Kind) -> list[Candidate]:
    """Recognises and normalises rows; an export's row with several judgements becomes several candidates.

    Raises:
        InputError: Not one readable row of a file has the columns of an accepted format.
    """
    candidates: list[Candidate] = []
    recognised: dict[str, bool] = {}
    stranger: dict[str, RawRow] = {}
    for row in rows:
        reader = _reader(row.values, kind) if row.values is not None else None
        if row.values is None:
            candidates.append(Candidate(row, {}, [Reason("unreadable_row", str(row.fault))]))
        elif reader is None:
            stranger.setdefault(row.file, row)
            found = ", ".join(sorted(row.values)) or "none"
            candidates.append(Candidate(row, {}, [Reason("wrong_columns", f"columns found: {found}")]))
        else:
            recognised[row.file] = True
            candidates.extend(_read(row, reader, kind))
    for file, row in stranger.items():
        if file not in recognised:
            raise InputError(
                f"no known columns for {kind}; found: {', '.join(sorted(row.values or {})) or 'none'}.",
                where=row.where,
                hint=f"Accepted: {ACCEPTED[kind]}.",
            )
    return candidates


Reader = Callable[[Mapping[str, Any]], Iterable[dict[str, Any]]]


def _reader(values: Mapping[str, Any], kind: Kind) -> Reader | None:
    for columns, reader in _READERS[kind]:
        if columns <= values.keys():
            return reader
    return None


def _read(row: RawRow, reader: Reader, kind: Kind) -> Iterator[Candidate]:
    try:
        found = list(reader(row.values or {}))
    except RowFault as fault:
        yield Candidate(row, {}, [Reason(fault.check, fault.message)])
        return
    for values in found:
        yield Candidate(row, _complete(values, kind))


def _complete(values: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """Fills in what a record must have and a row may lack: slice, id, and what is known of a judgement."""
    values["slice"] = "all" if values.get("slice") is None else values["slice"]
    if kind == "preferences":
        for name, default in _DEFAULTS.items():
            values[name] = default if values.get(name) is None else values[name]
    for name in ("id", "group_id", "rater"):
        if isinstance(values.get(name), int) and not isinstance(values[name], bool):
            values[name] = str(values[name])
    if values.get("id") in (None, ""):
        content = {name: values.get(name) for name in ("prompt", "group_id", "rater", *TEXT_FIELDS[kind])}
        values["id"] = f"{kind}-{digest_of(content)[:16]}"
    return values


# --- readers ---------------------------------------------------------------------------------------------------------


def _read_messages(row: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    turns = _turns(row["messages"], "messages")
    return [_fields(row, _COMMON, {"messages"}, prompt=_prompt(turns[:-1]), completion=_answer(turns[-1:], "messages"))]


def _read_demonstration(row: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    prompt, completion = _prompt(row["prompt"]), _answer(row["completion"], "completion")
    return [_fields(row, _COMMON, {"prompt", "completion"}, prompt=prompt, completion=completion)]


def _read_prompt(row: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    return [_fields(row, _COMMON, {"prompt"}, prompt=_prompt(row["prompt"]))]


def _read_pair(row: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    prompt = _prompt(row["prompt"])
    chosen, rejected = _answer(row["chosen"], "chosen"), _answer(row["rejected"], "rejected")
    used = {"prompt", "chosen", "rejected"}
    return [_fields(row, (*_COMMON, *_JUDGEMENT), used, prompt=prompt, chosen=chosen, rejected=rejected)]


def _read_conversations(row: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """`chosen` and `rejected` as whole conversations that differ in the last turn; what they share is the prompt."""
    chosen, rejected = _turns(row["chosen"], "chosen"), _turns(row["rejected"], "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise RowFault("no_common_prompt", "chosen and rejected differ before their last turn")
    values = {
        "prompt": _prompt(chosen[:-1]),
        "chosen": _answer(chosen[-1:], "chosen"),
        "rejected": _answer(rejected[-1:], "rejected"),
    }
    return [_fields(row, (*_COMMON, *_JUDGEMENT), {"chosen", "rejected"}, **values)]


def _read_candidates(row: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Google's RLHF pipeline: `choice` is the number of the preferred candidate."""
    source = "prompt" if "prompt" in row else "input_text"
    answers = [_answer(row[name], name) for name in ("candidate_0", "candidate_1")]
    choice = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}.get(str(row["choice"]).strip())
    if choice is None or isinstance(row["choice"], bool):
        raise RowFault("unknown_choice", "choice is neither 0 nor 1")
    used = {source, "candidate_0", "candidate_1", "choice"}
    values = {"prompt": _prompt(row[source]), "chosen": answers[choice], "rejected": answers[1 - choice]}
    return [_fields(row, (*_COMMON, *_JUDGEMENT), used, **values)]


def _read_export(reader: Reader) -> Reader:
    def read(row: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        for pair in reader(row):
            yield from _read_pair(pair)

    return read


_READERS: dict[Kind, list[tuple[frozenset[str], Reader]]] = {
    "sft": [
        (frozenset({"messages"}), _read_messages),
        (frozenset({"prompt", "completion"}), _read_demonstration),
    ],
    "prompts": [(frozenset({"prompt"}), _read_prompt)],
    "preferences": [
        (frozenset({"prompt", "chosen", "rejected"}), _read_pair),
        (frozenset({"chosen", "rejected"}), _read_conversations),
        (frozenset({"prompt", "candidate_0", "candidate_1", "choice"}), _read_candidates),
        (frozenset({"input_text", "candidate_0", "candidate_1", "choice"}), _read_candidates),
        (frozenset({"data", "annotations"}), _read_export(exports.label_studio_pairs)),
        (frozenset({"fields", "responses"}), _read_export(exports.argilla_pairs)),
    ],
}


# --- parts of a row --------------------------------------------------------------------------------------------------


def _fields(row: Mapping[str, Any], known: tuple[str, ...], used: set[str], **values: Any) -> dict[str, Any]:
    """The record's fields: `values`, those that have their own name, and small extra columns as metadata."""
    metadata = row.get("metadata")
    extra = {
        name: value
        for name, value in row.items()
        if name not in {*known, *used, "metadata"} and _is_small(value) and value is not None
    }
    kept = dict(metadata) if isinstance(metadata, dict) else {}
    return {**{name: row.get(name) for name in known}, **values, "metadata": {**extra, **kept}}


def _is_small(value: Any) -> bool:
    return isinstance(value, str | int | float) and len(str(value)) <= _MOST_METADATA_CHARACTERS


def _prompt(value: Any) -> Any:
    """A prompt as text or turns; one turn of the user is the same prompt as its text, and is stored as text."""
    if not isinstance(value, list):
        return value
    turns = _turns(value, "prompt")
    if turns[-1]["role"] == "assistant":
        raise RowFault("malformed_messages", "prompt: the last turn is the assistant's")
    if len(turns) == 1 and turns[0]["role"] == "user":
        return turns[0]["content"]
    return turns


def _answer(value: Any, name: str) -> Any:
    """An answer as text; a list must hold one turn of the assistant."""
    if not isinstance(value, list):
        return value
    turns = _turns(value, name)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise RowFault("malformed_messages", f"{name}: the answer is not one turn of the assistant")
    return turns[0]["content"]


def _turns(value: Any, name: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise RowFault("malformed_messages", f"{name}: not a list of messages")
    for number, turn in enumerate(value):
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise RowFault("malformed_messages", f"{name}[{number}]: a message has a role and a text as content")
        if turn.get("role") not in ("system", "user", "assistant"):
            raise RowFault("malformed_messages", f"{name}[{number}]: the role is not system, user or assistant")
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]
