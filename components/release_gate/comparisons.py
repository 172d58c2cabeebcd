"""One comparison of two models by people, read from the evidence and checked against its own outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from components.release_gate.evidence import Case, Source
from components.release_gate.findings import Finding

__all__ = ["AGAINST_CHAMPION", "AGAINST_REFERENCE", "Comparison", "percent", "read_comparison"]

AGAINST_REFERENCE = "candidate_vs_reference"
AGAINST_CHAMPION = "candidate_vs_champion"

_STATISTICS = "statistics.json"
_OUTCOMES = "outcomes.jsonl"
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Comparison:
    """Win rate of the first-named model, with its one-sided 95 % anytime-valid bounds.

    Attributes:
        name: Such as `candidate_vs_reference`.
        win_rate: Mean outcome over prompts; a tie is 0.5.
        lower: Lower bound of the confidence sequence.
        upper: Upper bound of the confidence sequence.
        outcomes: Outcome in [0, 1] by prompt id, in the order in which they came.
    """

    name: str
    win_rate: float
    lower: float
    upper: float
    outcomes: dict[str, float]

    @property
    def n_prompts(self) -> int:
        return len(self.outcomes)


def read_comparison(case: Case, name: str, *, min_prompts: int) -> Comparison:
    """Reads a comparison.

    Raises:
        EvidenceFault: It is absent or has fewer prompts than `min_prompts` (HOLD); it is not finite, out of range, has
            a prompt twice, or its statistics are not those of its outcomes (ERROR).
    """
    human = case.human
    path = (_STATISTICS, "comparisons", name)
    n_prompts = human.count(*path, "n_prompts")
    win_rate = human.number(*path, "win_rate", low=0.0, high=1.0)
    lower = human.number(*path, "lower", low=0.0, high=1.0)
    upper = human.number(*path, "upper", low=lower, high=1.0)
    outcomes = _outcomes(human, name)
    if len(outcomes) != n_prompts:
        raise human.refuse(f"{name} says {n_prompts} prompts, its outcomes are {len(outcomes)}.", *path)
    if abs(math.fsum(outcomes.values()) / n_prompts - win_rate) > _ROUNDING:
        raise human.refuse(f"{name} says win rate {win_rate:.4f}, its outcomes say otherwise.", *path)
    if n_prompts < min_prompts:
        raise human.refuse(
            f"{name} has {n_prompts} judged prompts, {min_prompts} are needed: collect votes on "
            f"{min_prompts - n_prompts} more.",
            *path,
            finding=Finding.HOLD,
        )
    return Comparison(name, win_rate, lower, upper, outcomes)


def percent(value: float) -> str:
    """A share for a sentence: 61.3 %."""
    return f"{100 * value:.1f} %"


def _outcomes(human: Source, name: str) -> dict[str, float]:
    rows: list[dict[str, Any]] = [row for row in human.rows(_OUTCOMES) if row.get("comparison") == name]
    if not rows:
        raise human.refuse(f"{name} has no outcomes.", _OUTCOMES, finding=Finding.HOLD)
    keys = [str(row.get("prompt_id")) for row in rows]
    human.refuse_duplicates(_OUTCOMES, keys)
    values = [human.row_number(row, _OUTCOMES, "outcome", low=0.0, high=1.0) for row in rows]
    return dict(zip(keys, values, strict=True))
