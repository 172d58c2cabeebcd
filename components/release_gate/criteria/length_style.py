"""Length and style: is the candidate still preferred when longer answers earn nothing?

The statistics state the win rate at equal length with bounds at the run's error probability. They are normal bounds of
its log odds, so that the bounds at the policy's confidence follow from them.
"""

from __future__ import annotations

from scipy.special import expit, logit
from scipy.stats import norm

from components.release_gate.comparisons import AGAINST_REFERENCE, percent, read_comparison, stated_alpha
from components.release_gate.evidence import Case
from components.release_gate.findings import Criterion, Finding, criterion

__all__ = ["length_style"]

_PATH = ("statistics.json", "comparisons", AGAINST_REFERENCE, "length_controlled")
_ROUNDING = 1e-4


def length_style(case: Case) -> list[Criterion]:
    """Length-controlled win rate against the reference."""
    return [_length_controlled(case)]


@criterion("length_style", threshold="lower bound of the length-controlled win rate")
def _length_controlled(case: Case) -> Criterion:
    rule = case.policy.length_style
    test = rule.live if case.live else rule.test
    needed = 0.5 if test == "superiority" else 0.5 - rule.margin
    n = read_comparison(case, AGAINST_REFERENCE, min_prompts=case.policy.human_preference.min_prompts).n_prompts
    win_rate, lower, upper = _at_equal_length(case)
    passed = lower > needed
    doubt = "length may explain the preference" if win_rate > 0.5 else "people do not prefer it"
    tail = f"above {percent(needed)}" if passed else f"not above {percent(needed)}: {doubt}"
    return Criterion(
        "length_style",
        Finding.PASS if passed else Finding.HOLD,
        f"At equal length, the win rate against {case.baseline_name} is {percent(win_rate)} "
        f"({case.policy.bounds.in_words} lower bound {percent(lower)}): {tail}.",
        value=win_rate,
        interval=(lower, upper),
        threshold=f"lower bound > {needed:g}",
        n=n,
        source=case.human.cite(*_PATH),
    )


def _at_equal_length(case: Case) -> tuple[float, float, float]:
    """(win rate at equal length, lower bound, upper bound) at the policy's confidence.

    Raises:
        EvidenceFault: It is not known (HOLD); what is stated are no bounds of it (ERROR).
    """
    human = case.human
    win_rate = human.number(*_PATH, "win_rate", low=0.0, high=1.0)
    lower = human.number(*_PATH, "lower", low=0.0, high=1.0)
    upper = human.number(*_PATH, "upper", low=lower, high=1.0)
    if not 0.0 < win_rate < 1.0 or not lower < win_rate < upper:
        raise human.refuse(f"{win_rate:.4f} with bounds {lower:.4f} to {upper:.4f} is no win rate.", *_PATH)
    middle, half = logit(win_rate), logit(win_rate) - logit(lower)
    if abs(expit(middle + half) - upper) > _ROUNDING:
        raise human.refuse(
            f"Bounds {lower:.4f} to {upper:.4f} are not those of a win rate of {win_rate:.4f} at equal length.", *_PATH
        )
    half *= norm.ppf(case.policy.bounds.confidence) / norm.ppf(1.0 - stated_alpha(human))
    return win_rate, float(expit(middle - half)), float(expit(middle + half))
