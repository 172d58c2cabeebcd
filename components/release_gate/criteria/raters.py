"""Raters: whose votes are these, and did those who gave them read what they judged?"""

from __future__ import annotations

from components.release_gate.comparisons import AGAINST_CHAMPION, AGAINST_REFERENCE, percent, read_comparison
from components.release_gate.evidence import Case
from components.release_gate.findings import Criterion, Finding, criterion
from components.shared.statistics import binomial_upper

__all__ = ["raters"]

_STATISTICS = "statistics.json"
_KINDS = {"human": "people", "simulated": "simulated raters", "ai": "AI judges"}


def raters(case: Case) -> list[Criterion]:
    """Who voted, whether the batch is complete, and whether each counted rater passes gold items and repeats."""
    return [_kinds(case), _complete(case), _quality(case)]


@criterion("raters.kind", threshold="votes of people")
def _kinds(case: Case) -> Criterion:
    rule = case.policy.raters
    accepted = {"human"}
    accepted |= {"simulated"} if rule.accept_simulated_votes else set()
    accepted |= {"ai"} if rule.accept_ai_votes else set()
    found = _rater_kinds(case)
    refused = sorted(found - accepted)
    if refused:
        who = ", ".join(_KINDS.get(kind, repr(kind)) for kind in refused)
        verdict, reason = Finding.HOLD, f"Votes of {who} do not count under this policy: collect votes of people."
    else:
        who = ", ".join(_KINDS[kind] for kind in sorted(found))
        verdict, reason = Finding.PASS, f"The votes are of {who}, which this policy accepts."
    return Criterion(
        "raters.kind",
        verdict,
        reason,
        threshold=f"only {', '.join(sorted(accepted))}",
        source=case.human.cite(_STATISTICS, "rater_kinds"),
    )


@criterion("raters.complete", threshold="the batch is complete")
def _complete(case: Case) -> Criterion:
    complete = case.human.value(_STATISTICS, "complete")
    verdict, reason = Finding.PASS, "The batch is complete."
    if complete is not True:
        verdict, reason = Finding.HOLD, "Pairs lack votes: let the raters finish an open batch."
    elif case.human.has(_STATISTICS, "stopped_early"):
        undecided = _undecided(case)
        reason = "The stopping rule closed the batch: each comparison of the candidate is decided."
        if undecided:
            verdict, sure = Finding.HOLD, case.policy.bounds
            reason = (
                f"The batch was closed as decided before every pair had its votes, but at {sure.in_words} it is not "
                f"({', '.join(undecided)}): judge more prompts, with human_eval.alpha at most {sure.alpha:g}."
            )
    source = case.human.cite(_STATISTICS, "complete")
    return Criterion("raters.complete", verdict, reason, threshold="complete", source=source)


def _undecided(case: Case) -> list[str]:
    """Comparisons of the candidate that are not decided by their outcomes, at the policy's confidence."""
    named = case.human.mapping(_STATISTICS, "comparisons")
    names = [AGAINST_REFERENCE, *(name for name in (AGAINST_CHAMPION,) if name in named)]
    return [name for name in names if not read_comparison(case, name, min_prompts=1).decided]


@criterion("raters.quality", threshold="gold items and repeats of each counted rater")
def _quality(case: Case) -> Criterion:
    rule = case.policy.raters
    names = sorted(case.human.mapping(_STATISTICS, "raters"))
    counted = [name for name in names if _is_counted(case, name)]
    faults = [fault for name in counted if (fault := _rater_fault(case, name))]
    if len(counted) < rule.min_raters:
        faults.append(f"{len(counted)} rater(s) count, {rule.min_raters} are needed")
    accuracies = [_gold_accuracy(case, name) for name in counted] if rule.min_gold_items else []
    value = min(accuracies, default=None)
    aside = len(names) - len(counted)
    figures = f"{len(counted)} raters count, the votes of {aside} are set aside. {_agreement(case)}"
    return Criterion(
        "raters.quality",
        Finding.HOLD if faults else Finding.PASS,
        f"{'; '.join(faults)}. {figures}" if faults else figures,
        value=value,
        threshold=f"at least {rule.min_raters} raters, gold accuracy >= {rule.min_gold_accuracy:g} "
        f"after {rule.min_gold_items} items",
        n=len(counted),
        source=case.human.cite(_STATISTICS, "raters"),
    )


def _rater_kinds(case: Case) -> set[str]:
    """Kinds that the statistics name, and those that the judgements themselves carry."""
    named = case.human.value(_STATISTICS, "rater_kinds")
    if not isinstance(named, list) or not named:
        raise case.human.refuse("It is not said who voted.", _STATISTICS, "rater_kinds", finding=Finding.HOLD)
    carried = {str(row.get("rater_kind")) for row in case.human.rows("judgements.jsonl")}
    return {str(kind) for kind in named} | carried


def _is_counted(case: Case, name: str) -> bool:
    path = (_STATISTICS, "raters", name, "counted")
    found = case.human.value(*path)
    if not isinstance(found, bool):
        raise case.human.refuse(f"whether {name} counts is {found!r}, not true or false.", *path)
    return found


def _rater_fault(case: Case, name: str) -> str | None:
    rule = case.policy.raters
    path = (_STATISTICS, "raters", name)
    gold = case.human.count(*path, "gold_n")
    if gold < rule.min_gold_items:
        return f"{name} counts after {gold} gold items, {rule.min_gold_items} are needed"
    if rule.min_gold_items and (accuracy := _gold_accuracy(case, name)) < rule.min_gold_accuracy:
        return f"{name} counts with {percent(accuracy)} on gold items, {percent(rule.min_gold_accuracy)} are needed"
    repeats = case.human.count(*path, "repeat_n")
    if repeats < rule.min_repeat_items:
        return None
    agreement = case.human.number(*path, "repeat_agreement", low=0.0, high=1.0)
    if binomial_upper(round(agreement * repeats), repeats) < rule.min_repeat_agreement:
        return (
            f"{name} counts but agrees with their own earlier votes on only {percent(agreement)} of {repeats} repeats"
        )
    return None


def _gold_accuracy(case: Case, name: str) -> float:
    if case.human.count(_STATISTICS, "raters", name, "gold_n") == 0:
        return 0.0
    return case.human.number(_STATISTICS, "raters", name, "gold_accuracy", low=0.0, high=1.0)


def _agreement(case: Case) -> str:
    """Alpha and position bias, reported only: alpha falls when two models are equally good."""
    words = []
    for key, title in (("alpha", "Krippendorff's alpha"), ("position_bias", "position bias")):
        if case.human.has(_STATISTICS, key):
            words.append(f"{title} {case.human.number(_STATISTICS, key):.2f}")
    return f"Reported: {', '.join(words)}." if words else "Alpha and position bias are not reported."
