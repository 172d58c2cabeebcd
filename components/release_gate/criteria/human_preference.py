"""Human preference: do people prefer the candidate? One outcome a prompt, anytime-valid bounds."""

from __future__ import annotations

from components.release_gate.comparisons import (
    AGAINST_CHAMPION,
    AGAINST_REFERENCE,
    percent,
    read_comparison,
)
from components.release_gate.evidence import Case
from components.release_gate.findings import Criterion, Finding, criterion
from components.release_gate.policy import Test

__all__ = ["human_preference"]


def human_preference(case: Case) -> list[Criterion]:
    """Against the reference, and against the champion where there is one."""
    rule = case.policy.human_preference
    if case.live:
        return [_against_reference(case, rule.live)]
    return [_against_reference(case, rule.against_reference), _against_champion(case, rule.against_champion)]


@criterion("human_preference.reference", threshold="lower bound of the win rate")
def _against_reference(case: Case, test: Test) -> Criterion:
    return _judge(case, "human_preference.reference", AGAINST_REFERENCE, case.baseline_name, test)


@criterion("human_preference.champion", threshold="lower bound of the win rate")
def _against_champion(case: Case, test: Test) -> Criterion:
    name = "human_preference.champion"
    if case.champion is None:
        return Criterion(name, Finding.NOT_APPLICABLE, case.no_champion_reason)
    case.require_champion()
    return _judge(case, name, AGAINST_CHAMPION, f"the champion (version {case.champion})", test)


def _judge(case: Case, name: str, comparison: str, baseline: str, test: Test) -> Criterion:
    rule = case.policy.human_preference
    found = read_comparison(case, comparison, min_prompts=rule.min_prompts)
    needed = rule.threshold(test)
    subject = "the live model" if case.live else "the candidate"
    figures = f"People prefer {subject} to {baseline} in {percent(found.win_rate)} of {found.n_prompts} prompts"
    bounds = f"({case.policy.bounds.in_words} bounds {percent(found.lower)} to {percent(found.upper)})"
    if found.upper < 0.5:
        verdict, tail = Finding.BLOCK, "they prefer the other one"
    elif found.lower > needed:
        verdict, tail = Finding.PASS, f"the lower bound is above {percent(needed)}"
    else:
        verdict, tail = Finding.HOLD, f"the lower bound is not above {percent(needed)}: more judged prompts are needed"
    return Criterion(
        name,
        verdict,
        f"{figures} {bounds}: {tail}.",
        value=found.win_rate,
        interval=(found.lower, found.upper),
        threshold=f"lower bound > {needed:g} ({test.replace('_', '-')}); upper bound >= 0.5",
        n=found.n_prompts,
        source=case.human.cite("statistics.json", "comparisons", comparison),
    )
