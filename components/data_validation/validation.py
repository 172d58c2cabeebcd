"""One kind of data from address to records: read, recognise, redact, measure, judge, and set the bad rows aside.

    rows -> candidates -> expectations and checks -> records | quarantine

No row is lost on the way: each ends as a record or in the quarantine with all its reasons, and the counts say so.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from components.data_validation import checks
from components.data_validation.expectations import ExpectationResult, run_expectations
from components.data_validation.formats import TEXT_FIELDS, Candidate, Kind, to_candidates
from components.data_validation.measures import measure
from components.data_validation.near_duplicates import find_near_duplicates
from components.data_validation.settings import DataValidationSettings
from components.data_validation.sources import read_rows
from components.shared.records import PreferenceRecord, PromptRecord, SFTRecord

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

__all__ = ["MODELS", "Part", "quarantine_rows", "validate"]

logger = logging.getLogger(__name__)

MODELS: dict[Kind, type[PromptRecord]] = {"sft": SFTRecord, "prompts": PromptRecord, "preferences": PreferenceRecord}


@dataclass
class Part:
    """One kind of data, judged.

    Attributes:
        kind: Which.
        uri: Where it came from.
        candidates: Every row; those with reasons are the quarantine.
        records: Those without, in their order.
        lengths: Tokens of each text of the records, by text, `(records,)` each.
        expectations: Outcome of the suite.
        near_duplicates: Numbers of later and earlier row of each near-duplicate pair, among rows otherwise good.
        disagreements: Pairs that raters labelled differently.
        length_skew: How far length tells the preference; pairs only.
    """

    kind: Kind
    uri: str
    candidates: list[Candidate]
    records: list[PromptRecord] = field(default_factory=list)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    expectations: list[ExpectationResult] = field(default_factory=list)
    near_duplicates: list[tuple[Candidate, Candidate]] = field(default_factory=list)
    disagreements: int = 0
    length_skew: checks.LengthSkew | None = None

    @property
    def quarantined(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.reasons]

    @property
    def faulty(self) -> list[Candidate]:
        """Quarantined for something other than redundancy."""
        return [c for c in self.quarantined if any(r.check not in checks.DUPLICATE_CHECKS for r in c.reasons)]

    @property
    def reasons(self) -> Counter[str]:
        """How many rows each check set aside, the most frequent first."""
        counts = Counter(reason.check for candidate in self.quarantined for reason in candidate.reasons)
        return Counter(dict(counts.most_common()))


def validate(
    uri: str,
    kind: Kind,
    tokenizer: PreTrainedTokenizerBase,
    settings: DataValidationSettings,
    *,
    name: str | None = None,
) -> Part:
    """Judges every row behind an address.

    Args:
        uri: The address.
        kind: What its rows are.
        tokenizer: Counts tokens.
        settings: Of the stage.
        name: What people know the data by, where that is not the address: a step's output lies elsewhere in every run.

    Raises:
        InputError: Nothing there, another format, or no known columns. Bad rows raise nothing: they are in the
            quarantine of the result.
    """
    rows = read_rows(uri)
    if name is not None:
        rows = [replace(row, file=_named(row.file, uri, name)) for row in rows]
    part = Part(kind, name or uri, to_candidates(rows, kind))
    checks.redact(part.candidates, salt=settings.splits.salt, replace=settings.redact)
    frame = measure(part.candidates, kind, tokenizer)
    part.expectations = run_expectations(frame, kind, settings)
    for result in part.expectations:
        for number in result.unexpected:
            part.candidates[number].reject(result.check, result.message)
    records = _to_records(part.candidates, kind)
    _check_between_rows(part, settings)
    part.records = [records[number] for number, candidate in enumerate(part.candidates) if not candidate.reasons]
    _measure_accepted(part, frame)
    logger.info("%s: %d rows, %d accepted, %d quarantined", kind, len(rows), len(part.records), len(part.quarantined))
    return part


def quarantine_rows(part: Part) -> list[dict[str, Any]]:
    """The quarantine for a file: the row as found (redacted), where it stood, and all its reasons."""
    return [
        {
            "kind": part.kind,
            "file": candidate.row.file,
            "line": candidate.row.line,
            "reasons": [reason.check for reason in candidate.reasons],
            "messages": [reason.message for reason in candidate.reasons],
            "row": checks.redacted_row(candidate),
        }
        for candidate in part.quarantined
    ]


def _named(file: str, folder: str, name: str) -> str:
    """A file of a folder that people know by another name; one that lies elsewhere keeps its own."""
    root = Path(folder).expanduser().resolve()
    path = Path(file).expanduser().resolve() if "://" not in file else None
    if path is None or not path.is_relative_to(root):
        return file
    return f"{name}: {path.relative_to(root).as_posix().removeprefix('user/')}"


def _to_records(candidates: Sequence[Candidate], kind: Kind) -> dict[int, PromptRecord]:
    """Records by number of candidate; the record's own rules have the last word."""
    records: dict[int, PromptRecord] = {}
    for number, candidate in enumerate(candidates):
        if candidate.reasons:
            continue
        try:
            records[number] = MODELS[kind].model_validate(candidate.values)
        except ValidationError as error:
            for fault in error.errors():
                place = ".".join(str(step) for step in fault["loc"])
                candidate.reject("invalid_record", f"{place}: {fault['msg']}")
    return records


def _check_between_rows(part: Part, settings: DataValidationSettings) -> None:
    if part.kind == "preferences":
        checks.find_equal_answers(part.candidates)
        part.disagreements = checks.count_disagreements(part.candidates)
        checks.find_contradictions(part.candidates)
    checks.find_duplicates(part.candidates, part.kind)
    checks.find_repeated_ids(part.candidates)
    if settings.near_duplicates.action == "off":
        return
    good = [candidate for candidate in part.candidates if not candidate.reasons]
    near = find_near_duplicates([_whole_text(candidate, part.kind) for candidate in good], settings.near_duplicates)
    part.near_duplicates = [(good[later], good[earlier]) for later, earlier in near.items()]
    if settings.near_duplicates.action == "quarantine":
        for later, earlier in part.near_duplicates:
            later.reject("near_duplicate", f"is nearly the same as {earlier.row.where}")


def _whole_text(candidate: Candidate, kind: Kind) -> str:
    prompt = candidate.values["prompt"]
    texts = [turn["content"] for turn in prompt] if isinstance(prompt, list) else [prompt]
    return "\n".join([*texts, *(candidate.values[name] for name in TEXT_FIELDS[kind])])


def _measure_accepted(part: Part, frame: pd.DataFrame) -> None:
    accepted = {number for number, candidate in enumerate(part.candidates) if not candidate.reasons}
    kept = frame[frame["row"].isin(sorted(accepted))]
    part.lengths = {name: [int(n) for n in kept[f"{name}_tokens"]] for name in ("prompt", *TEXT_FIELDS[part.kind])}
    if part.kind == "preferences":
        part.length_skew = checks.measure_length_skew(part.lengths["chosen"], part.lengths["rejected"])
