"""What a verdict comes to in writing: what the ledger records of it, and `decision.json`."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from components.release_gate.divergence import DIVERGENCE_KEYS, measure_gap
from components.release_gate.evidence import Case
from components.release_gate.findings import Criterion, Finding
from components.release_gate.offer import Offer, offer_checkpoint
from components.release_gate.overoptimization import measure_overoptimization
from components.release_gate.policy import PRODUCTION, load_policy_file
from components.release_gate.releases import JudgedRelease, binding_of
from components.release_gate.subject import BASELINE_NOT_CHECKED, POLICY, REQUESTER, Subject
from components.release_gate.terms import importers_of, people_of
from components.release_gate.verdict import Judgement, Verdict
from components.shared.errors import PlumblineError
from components.shared.files import digest_of
from components.shared.tracking import pipeline_run

__all__ = ["decision_of", "judged_release"]

_logger = logging.getLogger(__name__)

_PEOPLES_WORD = "human_preference.reference"


def judged_release(
    case: Case, subject: Subject, judgement: Judgement, *, actor: str, asking: Sequence[str] = ()
) -> JudgedRelease:
    """What the ledger records of a verdict; `asking`: who asked for it, the requester first."""
    judgements = case.human.tables.get("judgements.jsonl") or []
    return JudgedRelease(
        judgement.verdict,
        _in_short(judgement),
        _digests(case, subject),
        case.policy,
        actor,
        digest_of([criterion.as_dict() for criterion in judgement.criteria]),
        requester=next(iter(asking), ""),
        also_asked=tuple(asking[1:]),
        baseline=subject.baseline or "",
        seed=case.seed,
        raters=tuple(sorted(people_of(judgements))),
        importers=tuple(sorted(importers_of(judgements))),
        win_rate=_win_rate(judgement.criteria),
        evidence_at=case.human.finished_at,
        alarm=judgement.alarm,
    )


def decision_of(case: Case, judgement: Judgement, judged: JudgedRelease, model: str, version: str) -> dict[str, Any]:
    """`decision.json`."""
    rules = case.policy
    offer = _offer(case, judgement)
    return {
        "verdict": str(judgement.verdict),
        "mode": case.mode,
        "compared_with": case.baseline_name,
        "reasons": judgement.reasons + ([offer.reason] if offer and offer.step is not None else []),
        "criteria": [found.as_dict() for found in judgement.criteria],
        "requester": judged.requester,
        "model_name": model,
        "version": version,
        "digests": dict(judged.digests),
        "binding": binding_of(judged.digests),
        "policy": {
            "name": rules.name,
            "version": rules.version,
            "digest": rules.digest,
            "approvals_required": rules.release.approvals_required,
            "looser_than_production": rules.looser_than(load_policy_file(PRODUCTION)),
        },
        "checkpoint_offer": offer.as_dict() if offer else None,
        "divergence": _divergence(case),
        "overoptimization": measure_overoptimization(case),
    }


def _offer(case: Case, judgement: Judgement) -> Offer | None:
    """An earlier checkpoint for a candidate that fails; None where there is nothing to offer one for."""
    passing = (Finding.PASS, Finding.NOT_APPLICABLE)
    failed = {found.name for found in judgement.criteria if found.verdict not in passing}
    if case.live or judgement.verdict not in (Verdict.BLOCK, Verdict.HOLD) or failed <= {POLICY, REQUESTER}:
        return None
    return offer_checkpoint(case, judgement.criteria, run=pipeline_run())


def _divergence(case: Case) -> dict[str, Any]:
    try:
        return measure_gap(case).as_dict()
    except PlumblineError as error:
        _logger.debug("No divergence to report: %s", error)  # the criteria say why
        return dict.fromkeys(DIVERGENCE_KEYS)


def _in_short(judgement: Judgement) -> str:
    """The first reasons, for the ledger; that the baseline was not checked is never cut off."""
    first, rest = judgement.reasons[:3], judgement.reasons[3:]
    return " ".join(first + [reason for reason in rest if reason == BASELINE_NOT_CHECKED])


def _digests(case: Case, subject: Subject) -> dict[str, str]:
    """Everything the verdict rests on; "" for what could not be read."""
    sources = (case.evaluation, case.human, case.reward_model, case.heldout, case.history)
    return {
        "candidate": subject.digest,
        "champion": case.champion_digest or "",
        "policy": case.policy.digest,
        **{source.name: source.digest for source in sources},
    }


def _win_rate(criteria: list[Criterion]) -> float | None:
    """What people say of the model against its reference (of a live one: its predecessor)."""
    value = next((found.value for found in criteria if found.name == _PEOPLES_WORD), None)
    return value if value is not None and math.isfinite(value) else None
