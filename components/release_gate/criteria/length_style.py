"""Length and style: is the candidate still preferred when longer answers earn nothing?"""

from __future__ import annotations

from components.release_gate.comparisons import AGAINST_REFERENCE, percent, read_comparison
from components.release_gate.evidence import Case
from components.release_gate.findings import Criterion, Finding, criterion

__all__ = ["length_style"]


def length_style(case: Case) -> list[Criterion]:
    """Length-controlled win rate against the reference."""
    return [_length_controlled(case)]


@criterion("length_style", threshold="lower bound of the length-controlled win rate")
def _length_controlled(case: Case) -> Criterion:
    rule = case.policy.length_style
    test = rule.live if case.live else rule.test
    needed = 0.5 if test == "superiority" else 0.5 - rule.margin
    n = read_comparison(case, AGAINST_REFERENCE, min_prompts=case.policy.human_preference.min_prompts).n_prompts
    path = ("statistics.json", "comparisons", AGAINST_REFERENCE, "length_controlled")
    win_rate = case.human.number(*path, "win_rate", low=0.0, high=1.0)
    lower = case.human.number(*path, "lower", low=0.0, high=1.0)
    upper = case.human.number(*path, "upper", low=lower, high=1.0)
    passed = lower > needed
    doubt = "length may explain the preference" if win_rate > 0.5 else "people do not prefer it"
    tail = f"above {percent(needed)}" if passed else f"not above {percent(needed)}: {doubt}"
    return Criterion(
        "length_style",
        Finding.PASS if passed else Finding.HOLD,
        f"At equal length, the win rate against {case.baseline_name} is {percent(win_rate)} "
        f"(lower bound {percent(lower)}): {tail}.",
        value=win_rate,
        interval=(lower, upper),
        threshold=f"lower bound > {needed:g}",
        n=n,
        source=case.human.cite(*path),
    )
