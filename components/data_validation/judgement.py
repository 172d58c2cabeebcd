"""May the run go on with this data? Faults past the budget, gaps and leaks stop it; lesser findings are warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from components.data_validation.assignment import Assignment
from components.data_validation.settings import DataValidationSettings
from components.data_validation.validation import Part

__all__ = ["Judgement", "judge"]

_TOP_REASONS = 5
_MAY_BE_EMPTY = {"sft/heldout", "prompts/fresh"}
"""Splits that the run itself can do without."""

_SHARE_SETTING = {
    "prompts/human_eval": "human_eval",
    "prompts/fresh": "fresh",
    "prompts/heldout": "heldout",
    "sft/heldout": "sft_heldout",
    "preferences/heldout": "preference_heldout",
    "preferences/divergence": "preference_divergence",
}


@dataclass
class Judgement:
    """What was found: `problems` stop the run, `warnings` are shown."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def judge(parts: Sequence[Part], assignment: Assignment, settings: DataValidationSettings) -> Judgement:
    """Judges all parts and their splits.

    Args:
        parts: The kinds of data of a call.
        assignment: Where their records went.
        settings: The limits.
    """
    judgement = Judgement()
    for part in parts:
        _judge_budget(part, settings, judgement)
        _judge_slices(part, settings, judgement)
        _judge_remarks(part, settings, judgement)
    if not judgement.problems:
        _judge_splits(assignment, settings, judgement)
    judgement.problems += [f"leakage: {leak}" for leak in assignment.leaks]
    return judgement


def _judge_budget(part: Part, settings: DataValidationSettings, judgement: Judgement) -> None:
    rows, faulty = len(part.candidates), len(part.faulty)
    redundant = len(part.quarantined) - faulty
    if faulty > settings.max_quarantined_share * rows:
        judgement.problems.append(
            f"{part.kind}: {_share(faulty, rows)} have a fault, the budget is {settings.max_quarantined_share:.1%} "
            f"(max_quarantined_share): {_top(part.reasons)}"
        )
    if redundant > settings.max_duplicate_share * rows:
        judgement.problems.append(
            f"{part.kind}: {_share(redundant, rows)} repeat another, the limit is {settings.max_duplicate_share:.1%} "
            "(max_duplicate_share)"
        )
    if len(part.records) < settings.min_rows:
        judgement.problems.append(
            f"{part.kind}: {len(part.records)} good rows are left of {rows}, fewer than {settings.min_rows} (min_rows)"
        )


def _judge_slices(part: Part, settings: DataValidationSettings, judgement: Judgement) -> None:
    """Demonstrations need not cover the slices: nothing is reported by slice of them."""
    sizes = Counter(record.slice for record in part.records)
    for name in settings.required_slices:
        if part.kind != "sft" and sizes[name] < settings.min_rows_per_slice:
            judgement.problems.append(
                f"{part.kind}: slice {name!r} has {sizes[name]} good rows, fewer than {settings.min_rows_per_slice} "
                "(min_rows_per_slice)"
            )
    for name, size in sorted(sizes.items()):
        if name not in settings.required_slices and size < settings.min_rows_per_slice:
            judgement.warnings.append(f"{part.kind}: slice {name!r} has only {size} rows")


def _judge_remarks(part: Part, settings: DataValidationSettings, judgement: Judgement) -> None:
    skew = part.length_skew
    if skew is not None and skew.accuracy is not None and skew.ci95 is not None:
        rule = "longer" if (skew.longer_chosen or 0.0) >= 0.5 else "shorter"
        if skew.ci95[0] > settings.max_length_only_accuracy:
            judgement.problems.append(
                f"{part.kind}: the {rule} answer is preferred in {skew.accuracy:.1%} of {skew.n} pairs, the limit is "
                f"{settings.max_length_only_accuracy:.1%} (max_length_only_accuracy): a reward model need learn "
                "nothing but length"
            )
    if part.near_duplicates:
        judgement.warnings.append(f"{part.kind}: {len(part.near_duplicates)} rows are nearly the same as another")
    if part.disagreements:
        judgement.warnings.append(f"{part.kind}: raters differ on {part.disagreements} pairs")
    redactions = sum((candidate.redactions for candidate in part.candidates), Counter[str]())
    if redactions:
        done = "replaced" if settings.redact else "found and KEPT (redact is off)"
        kinds = ", ".join(f"{kind} {count}" for kind, count in redactions.most_common())
        judgement.warnings.append(f"{part.kind}: secrets or addresses {done}: {kinds}")


def _judge_splits(assignment: Assignment, settings: DataValidationSettings, judgement: Judgement) -> None:
    for name, records in assignment.splits.items():
        setting = _SHARE_SETTING.get(name)
        wanted = setting is None or getattr(settings.splits, setting) > 0
        if records or not wanted:
            continue
        if name in _MAY_BE_EMPTY:
            judgement.warnings.append(f"{name} is empty: too few rows for its share")
        else:
            remedy = f"raise splits.{setting}" if setting else "lower the held-out shares of splits"
            judgement.problems.append(f"{name} is empty: give more rows or {remedy}")


def _share(count: int, rows: int) -> str:
    return f"{count} of {rows} rows ({count / rows:.1%})"


def _top(reasons: Counter[str]) -> str:
    return ", ".join(f"{check} {count}" for check, count in reasons.most_common(_TOP_REASONS))
