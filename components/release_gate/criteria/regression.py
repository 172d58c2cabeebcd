"""Regression: has any slice become worse, though the whole has not?"""

from __future__ import annotations

from components.release_gate.comparisons import (
    AGAINST_CHAMPION,
    AGAINST_REFERENCE,
    SliceComparison,
    percent,
    read_slices,
)
from components.release_gate.evidence import Case
from components.release_gate.findings import Criterion, Finding, criterion
from components.shared.statistics import holm

__all__ = ["regression"]


def regression(case: Case) -> list[Criterion]:
    """Harm by slice (Holm), and non-inferiority in the slices that the policy calls critical."""
    if not case.live and case.champion is None:
        why = f"{case.no_champion_reason} There is nothing that could have become worse."
        return [Criterion("regression", Finding.NOT_APPLICABLE, why)]
    return [_harm(case), _critical(case)]


@criterion("regression.harm", threshold="Holm-adjusted p of harm in each slice")
def _harm(case: Case) -> Criterion:
    alpha = case.policy.regression.alpha
    slices = _slices(case)
    adjusted = dict(zip(slices, holm([found.p_worse for found in slices.values()]), strict=True))
    harmed = [name for name, p in adjusted.items() if p < alpha and slices[name].win_rate < 0.5]
    worst = min(adjusted, key=lambda name: adjusted[name])
    shown = ", ".join(f"{name} ({percent(slices[name].win_rate)} of {slices[name].n_prompts})" for name in harmed)
    return Criterion(
        "regression.harm",
        Finding.BLOCK if harmed else Finding.PASS,
        f"Shown to be worse in: {shown}."
        if harmed
        else f"No slice is shown to be worse; closest is {worst} (win rate {percent(slices[worst].win_rate)}, "
        f"adjusted p {adjusted[worst]:.2f}).",
        value=adjusted[worst],
        threshold=f"adjusted p >= {alpha:g} in each of {len(slices)} slices",
        n=sum(found.n_prompts for found in slices.values()),
        source=case.human.cite("statistics.json", "comparisons", _comparison(case), "slices"),
    )


@criterion("regression.critical", threshold="lower bound of the win rate in each critical slice")
def _critical(case: Case) -> Criterion:
    rule = case.policy.regression
    if not rule.critical_slices:
        return Criterion("regression.critical", Finding.NOT_APPLICABLE, "The policy names no critical slice.")
    needed = 0.5 - rule.margin
    slices = _slices(case)
    missing = [name for name in rule.critical_slices if name not in slices]
    if missing:
        raise case.human.refuse(
            f"No votes in critical slice(s) {', '.join(missing)}: collect them.", "slices", finding=Finding.HOLD
        )
    worst = min(rule.critical_slices, key=lambda name: slices[name].lower)
    short = [name for name in rule.critical_slices if slices[name].lower <= needed]
    return Criterion(
        "regression.critical",
        Finding.HOLD if short else Finding.PASS,
        f"Not shown to be no worse in critical slice(s) {', '.join(short)}: collect more votes there."
        if short
        else f"No critical slice is worse by more than {100 * rule.margin:g} points.",
        value=slices[worst].win_rate,
        interval=(slices[worst].lower, slices[worst].upper),
        threshold=f"lower bound > {needed:g} in {', '.join(rule.critical_slices)}",
        n=slices[worst].n_prompts,
        source=case.human.cite("statistics.json", "comparisons", _comparison(case), "slices", worst),
    )


def _comparison(case: Case) -> str:
    return AGAINST_REFERENCE if case.live else AGAINST_CHAMPION


def _slices(case: Case) -> dict[str, SliceComparison]:
    if not case.live:
        case.require_champion()
    return read_slices(case, _comparison(case), min_prompts=case.policy.human_preference.min_prompts)
