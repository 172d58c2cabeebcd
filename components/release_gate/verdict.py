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
    """A verdict with its reasons, the heaviest first, and the criteria that it rests on."""

    verdict: Verdict
    reasons: list[str]
    criteria: list[Criterion]


_CANDIDATE_WORST_FIRST = (Finding.ERROR, Finding.BLOCK, Finding.HOLD)
_LIVE_WORST_FIRST = (Finding.ROLLBACK, Finding.ERROR, Finding.HOLD)
"""On a live model shown harm outranks ERROR: a broken criterion must not keep a harmful model in place."""

_SHOWN_HARM = ("human_preference", "divergence", "safety", "regression")
"""Criteria whose BLOCK means that people are harmed. The others say that a model should not have been trained or
released so; on a live model they ask for a look (HOLD) and take nothing away."""

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
    judged = [_on_live(found) for found in criteria] if live else list(criteria)
    order = _LIVE_WORST_FIRST if live else _CANDIDATE_WORST_FIRST
    worst = next((finding for finding in order if any(found.verdict is finding for found in judged)), None)
    if worst is None and all(found.verdict is Finding.NOT_APPLICABLE for found in judged):
        return Judgement(Verdict.ERROR, ["No criterion applies: nothing was judged."], judged)
    if worst is None:
        return Judgement(Verdict.KEEP if live else Verdict.PROMOTE, _reasons_to_pass(judged), judged)
    heaviest_first = [found for finding in order for found in _people_first(judged) if found.verdict is finding]
    reasons = [f"{_LEAD[found.verdict]} ({_title(found.name)}): {found.reason}" for found in heaviest_first]
    return Judgement(Verdict(str(worst)), reasons, judged)


def _on_live(found: Criterion) -> Criterion:
    if found.verdict is not Finding.BLOCK:
        return found
    harm = found.name.partition(".")[0] in _SHOWN_HARM
    return replace(found, verdict=Finding.ROLLBACK if harm else Finding.HOLD)


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
