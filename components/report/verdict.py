"""The outcome of a run in plain words: verdict, reasons, and one paragraph that a newcomer understands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.report.parts import Parts, dig
from components.report.settings import RunInfo
from components.shared.report import format_number

__all__ = ["STAGES", "Outcome", "judge"]

STAGES: tuple[tuple[str, str], ...] = (
    ("data validation", "dataset"),
    ("supervised fine-tuning", "sft"),
    ("preference collection", "preferences"),
    ("reward model", "reward_model"),
    ("policy training", "candidate"),
    ("evaluation", "evaluation"),
    ("human evaluation", "evidence"),
    ("release gate", "decision"),
)
"""Stage -> the role of the artifact that it leaves, in order."""

_HEADLINES = {
    "HOLD": "The evidence is not enough to release the candidate. The champion stays.",
    "BLOCK": "The candidate must not be released. The champion stays.",
    "ERROR": "The candidate could not be judged. Nothing was released.",
}
_LIVE_HEADLINES = {
    "KEEP": "The live model holds up under fresh evidence and stays.",
    "HOLD": "Fresh evidence on the live model is not enough to decide. It stays for now.",
    "ERROR": "The live model could not be judged.",
}
"""What a verdict means that moves nothing. PROMOTE and ROLLBACK ask for a move: what is live now decides the words."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        verdict: The gate's, or BLOCK when the reward model's checks stopped the run, or ERROR when a step failed; None
            when the run ended without a verdict and without a failure.
        headline: One sentence on what it means.
        reasons: Why, most important first.
        reached: The last stage that left its artifact, in words; None when none did.
        stopped_at: The stage that stopped the run, in words; None when the gate was reached.
    """

    verdict: str | None
    headline: str
    reasons: list[str]
    reached: str | None
    stopped_at: str | None


def judge(parts: Parts, run: RunInfo) -> Outcome:
    """The outcome of a run, also of one that failed or was blocked half-way.

    The gate's verdict stands even if a later step failed: what it released is live. A reward model that failed its
    checks is a BLOCK, though the pipeline stops there with an error.
    """
    reached, following = _progress(parts)
    failed = run.failure is not None or run.status.upper() in ("FAILED", "CANCELLED")
    if parts.decision is not None:
        return _judged(parts, run, reached, failed=failed)
    if (parts.reward_model or {}).get("passed") is False:
        return _blocked_at_reward_model(parts, reached)
    if failed:
        stage = (run.failure.stage if run.failure else None) or following
        headline = f"The run failed at {_words(stage)}. Nothing was released; the champion is unchanged."
        return Outcome("ERROR", headline, [f"Failed at {_words(stage)}: {_cause(run)}"], reached, _words(stage))
    return Outcome(None, "The run ended without a verdict.", [f"Not reached: {following}."], reached, following)


def _progress(parts: Parts) -> tuple[str | None, str]:
    """The last stage whose artifact is there, and the stage after it."""
    done = [index for index, (_, role) in enumerate(STAGES) if role in parts.manifests]
    if not done:
        return None, STAGES[0][0]
    return STAGES[done[-1]][0], STAGES[min(done[-1] + 1, len(STAGES) - 1)][0]


def _judged(parts: Parts, run: RunInfo, reached: str | None, *, failed: bool) -> Outcome:
    verdict = str(dig(parts.decision, "verdict") or "ERROR").upper()
    reasons = [str(reason) for reason in dig(parts.decision, "reasons") or []]
    stopped_at = None
    if failed:
        stopped_at = _words(run.failure.stage if run.failure and run.failure.stage else "a step after the gate")
        reasons.append(f"After the verdict the run failed at {stopped_at}: {_cause(run)} Check what is live.")
    return Outcome(verdict, _headline(verdict, parts, run), reasons, reached, stopped_at)


def _headline(verdict: str, parts: Parts, run: RunInfo) -> str:
    if verdict == "PROMOTE":
        return _promotion(parts, run)
    if verdict == "ROLLBACK":
        return _rollback(parts, run)
    return (_LIVE_HEADLINES if parts.live else _HEADLINES).get(verdict, "The gate gave its verdict.")


def _promotion(parts: Parts, run: RunInfo) -> str:
    """What became of a candidate that may go live: it did, it awaits approval, or its promotion broke off."""
    if _judged_is_champion(parts, run):
        return "The candidate is better where it counts, and it is the champion now."
    needed = dig(parts.decision, "policy", "approvals_required") or 0
    if needed > 0 and not (run.failure and run.failure.stage == "promote"):
        return f"The candidate passed the gate. It is not live yet: it awaits approval ({needed} needed)."
    return "The candidate passed the gate. It is not live: its promotion did not complete."


def _rollback(parts: Parts, run: RunInfo) -> str:
    """What became of a live model that does harm; that the predecessor is back is said only when it is seen."""
    harm = "Fresh evidence shows harm from the live model."
    if run.champion is None or run.champion.version is None:
        return f"{harm} Which version is live now is not known."
    if _judged_is_champion(parts, run):
        return f"{harm} It is still live: it was not rolled back."
    return f"{harm} It is not live any more: version {run.champion.version} is champion."


def _judged_is_champion(parts: Parts, run: RunInfo) -> bool:
    """Whether the version that the gate judged is the live one."""
    judged = dig(parts.decision, "version")
    return judged is not None and run.champion is not None and run.champion.version == str(judged)


def _cause(run: RunInfo) -> str:
    return run.failure.message if run.failure else f"the pipeline ended as {run.status}."


def _words(stage: str) -> str:
    return {"ppo": "PPO", "sft": "supervised fine-tuning"}.get(stage, stage.replace("_", " "))


def _blocked_at_reward_model(parts: Parts, reached: str | None) -> Outcome:
    failed = [check for check in dig(parts.reward_model, "checks") or [] if not check.get("passed")]
    reasons = [check.get("reason") or _describe_check(check) for check in failed]
    headline = "The reward model failed its own checks, so no policy was trained against it. The champion stays."
    return Outcome(
        "BLOCK",
        headline,
        reasons or ["The reward model did not pass its checks."],
        reached,
        "the reward model's checks",
    )


def _describe_check(check: dict[str, Any]) -> str:
    value, threshold = format_number(check.get("value")), format_number(check.get("threshold"))
    return f"{check.get('name')}: {value}, threshold {threshold}."
