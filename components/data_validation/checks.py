"""Own checks, beside the expectations: what shows only when two texts, two rows or all rows are looked at together.

Checks between rows look at rows that are good so far, so that of two equal rows a good one stays.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from components.data_validation.formats import TEXT_FIELDS, Candidate, Kind
from components.data_validation.measures import visible_text
from components.data_validation.redaction import redact_text, redact_value, to_pseudonym
from components.shared.records import normalise_text

__all__ = [
    "DUPLICATE_CHECKS",
    "LengthSkew",
    "count_disagreements",
    "find_contradictions",
    "find_duplicates",
    "find_equal_answers",
    "find_repeated_ids",
    "measure_length_skew",
    "redact",
]

DUPLICATE_CHECKS = frozenset({"duplicate", "near_duplicate"})
"""Reasons that are redundancy rather than faults; they have a budget of their own."""

_NAMES = ("id", "group_id", "rater")


def redact(candidates: Iterable[Candidate], *, salt: str, replace: bool) -> None:
    """Finds secrets and e-mail addresses in every field, counts them, and replaces them.

    Args:
        candidates: Rows of any kind.
        salt: For the pseudonyms of ids, groups and raters that hold an address.
        replace: False counts only.
    """
    for candidate in candidates:
        clean: dict[str, Any] = {}
        for name, value in candidate.values.items():
            if name in _NAMES and isinstance(value, str):
                clean[name] = to_pseudonym(value, salt, candidate.redactions)
            else:
                clean[name] = redact_value(value, candidate.redactions)
        if replace:
            candidate.values = clean


def find_equal_answers(candidates: Iterable[Candidate]) -> None:
    """Rejects pairs whose answers look the same: they prefer nothing."""
    for candidate in candidates:
        chosen, rejected = candidate.values.get("chosen"), candidate.values.get("rejected")
        if isinstance(chosen, str) and isinstance(rejected, str) and visible_text(chosen) == visible_text(rejected):
            candidate.reject("chosen_equals_rejected", "chosen and rejected look the same")


def find_duplicates(candidates: Iterable[Candidate], kind: Kind) -> None:
    """Rejects rows that repeat an earlier good one.

    A prompt repeats if its text does, a demonstration if prompt and answer do, a pair if the same rater gave the same
    preference before. Raters who agree are no duplicates.
    """
    first: dict[tuple[str, ...], Candidate] = {}
    for candidate in _good(candidates):
        key = (_prompt_key(candidate), *(visible_text(candidate.values[name]) for name in TEXT_FIELDS[kind]))
        if kind == "preferences":
            key = (*key, candidate.values.get("rater") or "")
        if key in first:
            candidate.reject("duplicate", f"repeats {first[key].row.where}")
        else:
            first[key] = candidate


def find_repeated_ids(candidates: Iterable[Candidate]) -> None:
    """Rejects rows whose id an earlier good row has: an id must name one record."""
    first: dict[str, Candidate] = {}
    for candidate in _good(candidates):
        known = first.setdefault(candidate.values["id"], candidate)
        if known is not candidate:
            candidate.reject("repeated_id", f"has the id of {known.row.where}")


def find_contradictions(candidates: Iterable[Candidate]) -> None:
    """Rejects pairs that one rater (or an unnamed one) labelled both ways: no way is known to be meant.

    Raters who differ from each other are no fault but a measure of how hard the pair is: see `count_disagreements`.
    """
    for votes in _votes(candidates).values():
        by_rater: dict[str, list[tuple[bool, Candidate]]] = defaultdict(list)
        for rater, way, candidate in votes:
            by_rater[rater].append((way, candidate))
        for judged in by_rater.values():
            if len({way for way, _ in judged}) == 2:
                for way, candidate in judged:
                    other = next(partner for opposite, partner in judged if opposite != way)
                    candidate.reject("contradictory", f"labelled the other way in {other.row.where}")


def count_disagreements(candidates: Iterable[Candidate]) -> int:
    """How many pairs different raters labelled different ways."""
    return sum(len({way for _, way, _ in votes}) == 2 for votes in _votes(candidates).values())


@dataclass(frozen=True)
class LengthSkew:
    """How far length alone tells which answer is preferred.

    Attributes:
        longer_chosen: Share of pairs of unequal length whose longer answer is preferred.
        n: Pairs of unequal length.
        accuracy: Of the better of the two rules "longer" and "shorter".
        ci95: Wilson's interval of it.
    """

    longer_chosen: float | None
    n: int
    accuracy: float | None
    ci95: tuple[float, float] | None


def measure_length_skew(chosen_tokens: Sequence[float], rejected_tokens: Sequence[float]) -> LengthSkew:
    """The length skew of pairs, from the lengths of their answers in tokens, `(pairs,)` each."""
    from components.shared.statistics import wilson_interval

    pairs = list(zip(chosen_tokens, rejected_tokens, strict=True))
    longer, shorter = sum(c > r for c, r in pairs), sum(c < r for c, r in pairs)
    n = longer + shorter
    if n == 0:
        return LengthSkew(None, 0, None, None)
    low, high = wilson_interval(max(longer, shorter), n)
    return LengthSkew(longer / n, n, max(longer, shorter) / n, (low, high))


def redacted_row(candidate: Candidate) -> Any:
    """The row as found, for the quarantine, with secrets and addresses replaced."""
    found: Counter[str] = Counter()
    row = candidate.row
    return redact_text(row.text, found) if row.values is None else redact_value(row.values, found)


def _good(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [candidate for candidate in candidates if not candidate.reasons]


def _prompt_key(candidate: Candidate) -> str:
    prompt = candidate.values["prompt"]
    if isinstance(prompt, list):
        return normalise_text("\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt))
    return normalise_text(prompt)


def _votes(candidates: Iterable[Candidate]) -> dict[tuple[str, str, str], list[tuple[str, bool, Candidate]]]:
    """Rater, way and row of each judgement, by prompt and the two answers in alphabetical order."""
    votes: dict[tuple[str, str, str], list[tuple[str, bool, Candidate]]] = defaultdict(list)
    for candidate in _good(candidates):
        chosen, rejected = visible_text(candidate.values["chosen"]), visible_text(candidate.values["rejected"])
        key = (_prompt_key(candidate), min(chosen, rejected), max(chosen, rejected))
        votes[key].append((candidate.values.get("rater") or "", chosen < rejected, candidate))
    return votes
