"""One comparison of two models by people: computed from its outcomes, at the confidence that the policy asks for.

What `statistics.json` says of a comparison is held against its outcomes and decides nothing: the run that wrote it
chose the error probability of its bounds, the gate goes by the policy's. Statistics that are not those of their
outcomes are an error, at whatever confidence they were computed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from components.release_gate.evidence import Case, Source
from components.release_gate.findings import Finding
from components.shared.statistics import BettingBounds, betting_confidence_sequence, betting_p_value

__all__ = [
    "AGAINST_CHAMPION",
    "AGAINST_REFERENCE",
    "Comparison",
    "SliceComparison",
    "percent",
    "read_comparison",
    "read_slices",
    "stated_alpha",
]

AGAINST_REFERENCE = "candidate_vs_reference"
AGAINST_CHAMPION = "candidate_vs_champion"

_STATISTICS = "statistics.json"
_OUTCOMES = "outcomes.jsonl"
_ROUNDING = 1e-4
_ALPHA_OF_OLD = 0.05
"""Error probability of the bounds in statistics that do not name it."""


@dataclass(frozen=True)
class Comparison:
    """Win rate of the first-named model, with its one-sided anytime-valid bounds at the policy's confidence.

    Attributes:
        name: Such as `candidate_vs_reference`.
        win_rate: Mean outcome over prompts; a tie is 0.5.
        lower: Lower bound of the confidence sequence.
        upper: Upper bound of the confidence sequence.
        outcomes: Outcome in [0, 1] by prompt id, in the order in which they came.
        decided: The bounds have shown, by now, that one of the two is preferred.
    """

    name: str
    win_rate: float
    lower: float
    upper: float
    outcomes: dict[str, float]
    decided: bool

    @property
    def n_prompts(self) -> int:
        return len(self.outcomes)


@dataclass(frozen=True)
class SliceComparison:
    """One slice of a comparison; `p_worse` is small when people prefer the other model there."""

    win_rate: float
    lower: float
    upper: float
    n_prompts: int
    p_worse: float


def read_comparison(case: Case, name: str, *, min_prompts: int) -> Comparison:
    """Reads a comparison.

    Raises:
        EvidenceFault: It is absent or has fewer prompts than `min_prompts` (HOLD); it is not finite, out of range, has
            a prompt twice, or its statistics are not those of its outcomes (ERROR).
    """
    human = case.human
    path = (_STATISTICS, "comparisons", name)
    n_prompts = human.count(*path, "n_prompts")
    stated = _Stated.read(human, *path)
    outcomes = {prompt: value for prompt, _, value in _outcomes(human, name)}
    stated.refuse_another(human, name, n_prompts, list(outcomes.values()))
    if n_prompts < min_prompts:
        raise human.refuse(
            f"{name} has {n_prompts} judged prompts, {min_prompts} are needed: collect votes on "
            f"{min_prompts - n_prompts} more.",
            *path,
            finding=Finding.HOLD,
        )
    bounds = _bounds(tuple(outcomes.values()), case.policy.bounds.alpha)
    decided = bounds.lower_path[-1] > 0.5 or bounds.upper_path[-1] < 0.5
    return Comparison(name, _mean(outcomes.values()), bounds.lower, bounds.upper, outcomes, decided)


def read_slices(case: Case, name: str, *, min_prompts: int) -> dict[str, SliceComparison]:
    """Reads the slices of a comparison, by name.

    Raises:
        EvidenceFault: As `read_comparison`; the statistics have other slices than the outcomes (ERROR).
    """
    human, path = case.human, (_STATISTICS, "comparisons", name, "slices")
    named = sorted(human.mapping(*path))
    if not named:
        raise human.refuse("The comparison has no slices.", *path, finding=Finding.HOLD)
    values: dict[str, list[float]] = defaultdict(list)
    for _, of_slice, value in _outcomes(human, name):
        values[of_slice].append(value)
    if named != sorted(values):
        raise human.refuse(f"{name} says slices {named}, its outcomes are of {sorted(values)}.", *path)
    found = {one: _read_slice(case, values[one], *path, one) for one in named}
    judged = sum(one.n_prompts for one in found.values())
    if judged < min_prompts:
        raise human.refuse(
            f"The slices have {judged} judged prompts, {min_prompts} are needed.", *path, finding=Finding.HOLD
        )
    return found


def stated_alpha(human: Source) -> float:
    """Error probability of each one-sided bound that the statistics state.

    Raises:
        EvidenceFault: It is no probability of one (ERROR).
    """
    if not human.has(_STATISTICS, "error_probability"):
        return _ALPHA_OF_OLD
    return human.number(_STATISTICS, "error_probability", low=1e-12, high=0.4999)


def percent(value: float) -> str:
    """A share for a sentence: 61.3 %."""
    return f"{100 * value:.1f} %"


@dataclass(frozen=True)
class _Stated:
    """What the statistics say at one place, and the error probability of the bounds that they say."""

    path: tuple[str, ...]
    win_rate: float
    lower: float
    upper: float
    alpha: float

    @classmethod
    def read(cls, human: Source, *path: str) -> _Stated:
        lower = human.number(*path, "lower", low=0.0, high=1.0)
        return cls(
            path=path,
            win_rate=human.number(*path, "win_rate", low=0.0, high=1.0),
            lower=lower,
            upper=human.number(*path, "upper", low=lower, high=1.0),
            alpha=stated_alpha(human),
        )

    def refuse_another(self, human: Source, what: str, n_prompts: int, values: list[float]) -> None:
        """Refuses statistics that are not those of the outcomes.

        Raises:
            EvidenceFault: ERROR.
        """
        if len(values) != n_prompts:
            raise human.refuse(f"{what} says {n_prompts} prompts, its outcomes are {len(values)}.", *self.path)
        if abs(_mean(values) - self.win_rate) > _ROUNDING:
            raise human.refuse(
                f"{what} says win rate {self.win_rate:.4f}, its outcomes say otherwise: {_mean(values):.4f}.",
                *self.path,
            )
        bounds = _bounds(tuple(values), self.alpha)
        if max(abs(bounds.lower - self.lower), abs(bounds.upper - self.upper)) > _ROUNDING:
            raise human.refuse(
                f"{what} says bounds {self.lower:.4f} to {self.upper:.4f}, its outcomes say otherwise: "
                f"{bounds.lower:.4f} to {bounds.upper:.4f} (error probability {self.alpha:g} each).",
                *self.path,
            )


def _read_slice(case: Case, values: list[float], *path: str) -> SliceComparison:
    human, what = case.human, f"{path[2]}, slice {path[-1]}"
    stated, p_stated = _Stated.read(human, *path), human.number(*path, "p_worse", low=0.0, high=1.0)
    stated.refuse_another(human, what, human.count(*path, "n_prompts"), values)
    p_worse = betting_p_value([1.0 - value for value in values])
    if abs(p_worse - p_stated) > _ROUNDING:
        raise human.refuse(f"{what} says p {p_stated:.4f} of harm, its outcomes say otherwise: {p_worse:.4f}.", *path)
    bounds = _bounds(tuple(values), case.policy.bounds.alpha)
    return SliceComparison(_mean(values), bounds.lower, bounds.upper, len(values), p_worse)


@lru_cache(maxsize=64)
def _bounds(values: tuple[float, ...], alpha: float) -> BettingBounds:
    """Of the same outcomes several criteria ask."""
    return betting_confidence_sequence(values, alpha=alpha)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def _outcomes(human: Source, name: str) -> list[tuple[str, str, float]]:
    """(prompt id, slice, outcome) of each prompt of a comparison."""
    rows: list[dict[str, Any]] = [row for row in human.rows(_OUTCOMES) if row.get("comparison") == name]
    if not rows:
        raise human.refuse(f"{name} has no outcomes.", _OUTCOMES, finding=Finding.HOLD)
    keys = [str(row.get("prompt_id")) for row in rows]
    human.refuse_duplicates(_OUTCOMES, keys)
    values = [human.row_number(row, _OUTCOMES, "outcome", low=0.0, high=1.0) for row in rows]
    return [(key, str(row.get("slice")), value) for key, row, value in zip(keys, rows, values, strict=True)]
