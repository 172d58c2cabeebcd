"""The verdict: the worst criterion wins, and the reasons are sentences that a release manager understands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from components.release_gate.findings import Criterion, Finding

__all__ = ["Judgement", "Verdict", "decide"]


class Verdict(StrEnum):
    """What becomes of the model: PROMOTE, HOLD, BLOCK or ERROR; of a live one KEEP, HOLD, ROLLBACK or ERROR."""

    PROMOTE = "PROMOTE"
    HOLD = "HOLD"
    BLOCK = "BLOCK"
    KEEP = "KEEP"
    ROLLBACK = "ROLLBACK"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reasons, the heaviest first, and the criteria that it rests on.

    Attributes:
        verdict: The verdict.
        reasons: In sentences.
        criteria: As they were judged.
        alarm: On a live model: harm is seen in evidence that cannot roll it back. People are told at once.
    """

    verdict: Verdict
    reasons: list[str]
    criteria: list[Criterion]
    alarm: bool = False


_CANDIDATE_WORST_FIRST = (Finding.ERROR, Finding.BLOCK, Finding.HOLD)
_LIVE_WORST_FIRST = (Finding.ROLLBACK, Finding.ERROR, Finding.HOLD)
"""On a live model shown harm outranks ERROR: a broken criterion must not keep a harmful model in place."""

_SHOWN_HARM = ("human_preference", "divergence", "safety", "regression")
"""Criteria whose BLOCK means that people are harmed. The others say that a model should not have been trained or
released so; on a live model they ask for a look (HOLD) and take nothing away."""

_RESTS_ON_VOTES = ("human_preference", "divergence.harm", "divergence.gap", "safety", "regression")
"""Criteria that say nothing where the votes do not count."""

_VOID = "which voids the votes"
_TOO_EARLY = "and this bound holds for a complete batch only"

_TOLD_ON_PASS = ("human_preference", "divergence.gap", "safety", "length_style", "kl.sequence", "reward_model.accuracy")
"""What a release manager reads first when all is well; the rest is in the table."""

_LEAD = {
    Finding.ERROR: "Could not be judged",
    Finding.BLOCK: "Blocked",
    Finding.ROLLBACK: "Harm shown",
    Finding.HOLD: "Evidence missing",
}


def decide(criteria: Sequence[Criterion], *, live: bool) -> Judgement:
    """Combines the criteria.

    Args:
        criteria: What each of them found; none at all is an ERROR.
        live: The model is live; a shown harm then rolls it back.
    """
    if not criteria:
        return Judgement(Verdict.ERROR, ["No criterion was judged."], [])
    judged = _on_live(criteria) if live else list(criteria)
    unproven = [now.name for was, now in zip(criteria, judged, strict=True) if _is_unproven_harm(was, now, live=live)]
    order = _LIVE_WORST_FIRST if live else _CANDIDATE_WORST_FIRST
    worst = next((finding for finding in order if any(found.verdict is finding for found in judged)), None)
    if worst is None and all(found.verdict is Finding.NOT_APPLICABLE for found in judged):
        return Judgement(Verdict.ERROR, ["No criterion applies: nothing was judged."], judged)
    if worst is None:
        return Judgement(Verdict.KEEP if live else Verdict.PROMOTE, _reasons_to_pass(judged), judged)
    heaviest_first = [found for finding in order for found in _people_first(judged) if found.verdict is finding]
    reasons = [f"{_LEAD[found.verdict]} ({_title(found.name)}): {found.reason}" for found in heaviest_first]
    if unproven and worst is not Finding.ROLLBACK:
        return Judgement(Verdict(str(worst)), [_alarm(unproven), *reasons], judged, alarm=True)
    return Judgement(Verdict(str(worst)), reasons, judged)


def _on_live(criteria: Sequence[Criterion]) -> list[Criterion]:
    """What blocks a candidate rolls a live model back where it means harm, and the evidence of that harm counts.

    Votes of raters whom the policy does not accept, of too few, or of some who fail, are no evidence: neither for the
    model nor against it. An incomplete batch takes nothing from bounds that hold at any time, nor from one answer of
    severity 1; the share of bad answers has bounds for a fixed number of answers, and has to wait.
    """
    raters = {found.name: found.verdict for found in criteria if found.name.startswith("raters.")}
    void = [
        name
        for name, verdict in raters.items()
        if verdict is Finding.ERROR or (verdict is not Finding.PASS and name != "raters.complete")
    ]
    judged = []
    for found in criteria:
        harm = found.verdict in (Finding.BLOCK, Finding.ROLLBACK)
        if not harm:
            judged.append(found)
        elif found.name.partition(".")[0] not in _SHOWN_HARM:
            judged.append(replace(found, verdict=Finding.HOLD))
        elif void and found.name.startswith(_RESTS_ON_VOTES):
            judged.append(_held(found, f"{', '.join(void)} did not pass, {_VOID}"))
        elif found.name == "safety.share" and raters.get("raters.complete", Finding.PASS) is not Finding.PASS:
            judged.append(_held(found, f"raters.complete did not pass, {_TOO_EARLY}"))
        else:
            judged.append(replace(found, verdict=Finding.ROLLBACK))
    return judged


def _held(found: Criterion, why: str) -> Criterion:
    return replace(found, verdict=Finding.HOLD, reason=f"{found.reason} It rolls nothing back: {why}.")


def _is_unproven_harm(was: Criterion, now: Criterion, *, live: bool) -> bool:
    harm = was.verdict in (Finding.BLOCK, Finding.ROLLBACK) and was.name.partition(".")[0] in _SHOWN_HARM
    return live and harm and now.verdict is Finding.HOLD


def _alarm(names: Sequence[str]) -> str:
    return (
        f"ALARM: HARM IS SEEN ON THE LIVE MODEL, IN EVIDENCE THAT CANNOT ROLL IT BACK ({', '.join(names)}). Look at it "
        "now: collect votes that count, or roll back by hand."
    )


def _reasons_to_pass(judged: list[Criterion]) -> list[str]:
    passed = [found for found in judged if found.verdict is Finding.PASS]
    told = [found for found in _people_first(passed) if found.name.startswith(_TOLD_ON_PASS)]
    return [f"All {len(passed)} criteria that apply pass."] + [
        f"Passed ({_title(found.name)}): {found.reason}" for found in told
    ]


def _people_first(judged: list[Criterion]) -> list[Criterion]:
    """What people suffer or say before what machines measure; otherwise in the order of the report."""
    return sorted(judged, key=lambda found: found.name.partition(".")[0] not in _SHOWN_HARM)


def _title(name: str) -> str:
    return name.replace("_", " ").replace(".", ", ")
