"""What is judged, and against whom; and what a reader must be told of that beside the criteria."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from components.release_gate.entries import LedgerView, is_anonymous
from components.release_gate.findings import Criterion, Finding
from components.release_gate.policy import ReleaseRule
from components.release_gate.states import Event, State
from components.release_gate.terms import fewer_people
from components.release_gate.verdict import Judgement, Verdict
from components.shared.artifacts import Artifact
from components.shared.errors import PlumblineError

__all__ = [
    "BASELINE_NOT_CHECKED",
    "POLICY",
    "REQUESTER",
    "Subject",
    "asked_by_nobody",
    "candidate_subject",
    "live_subject",
    "nowhere_to_go_back",
    "rejected_before",
    "unchecked_baseline",
    "weaker_policy",
    "with_notes",
]

_logger = logging.getLogger(__name__)

BASELINE_NOT_CHECKED = (
    "NOT checked: whether the reference is the policy that the candidate was trained from; the candidate's artifact "
    "names no input `policy`."
)
_LIVE_BASELINE_NOT_CHECKED = (
    "NOT checked: whether the reference is the policy that the first champion was trained from; the ledger does not "
    "name it."
)
REQUESTER = "requester"
"""The criterion that somebody known asked for the release."""

POLICY = "policy"
"""The criterion that the policy asks as much of people as the champion's did."""

_NO_PREDECESSOR = (
    "HARM IS SHOWN AND THERE IS NO PREDECESSOR TO ROLL BACK TO: version {version} is the first champion and stays "
    "champion. Take it out of service by hand now, then promote another version, by broken glass if need be."
)


@dataclass(frozen=True)
class Subject:
    """What is judged, and against whom.

    Attributes:
        digest: Digest of the policy under judgement.
        version: Its version, if it is registered.
        artifact: Its artifact; None for a live model.
        champion: The version that it would replace; None if there is none.
        champion_digest: Its digest.
        no_champion_reason: Why `champion` is None.
        baseline: Digest of what it must have been compared with: the policy that a candidate (or the first champion)
            was trained from, the version that a live model replaced. None where it is not known.
        predecessor: The version that a live model replaced; None for the first champion and for a candidate.
    """

    digest: str
    version: str | None
    artifact: Artifact | None
    champion: str | None
    champion_digest: str | None
    no_champion_reason: str
    baseline: str | None
    predecessor: str | None = None


def candidate_subject(view: LedgerView, artifact: Artifact) -> Subject:
    """A candidate, against the champion that it would replace."""
    champion, version = view.champion, view.version_of(artifact.digest)
    reason = "There is no champion yet: the reference is the baseline."
    if champion is not None and view.digest(champion) == artifact.digest:
        champion, version, reason = None, view.champion, f"The candidate is the champion (version {champion}) already."
    champion_digest = view.digest(champion) if champion else None
    trained_from = artifact.manifest.get("inputs", {}).get("policy") or None
    return Subject(artifact.digest, version, artifact, champion, champion_digest, reason, trained_from)


def live_subject(view: LedgerView) -> Subject:
    """The live model, against the version that it replaced.

    Raises:
        PlumblineError: Nothing is live.
    """
    live = view.champion
    if live is None:
        raise PlumblineError("nothing is live that could be judged.", where=f"model {view.model}")
    predecessor = view.predecessor(live)
    reason = "The live model is judged against its predecessor."
    if predecessor is None:
        reason = "The live model is the first champion: the reference is the baseline."
        return Subject(view.digest(live), live, None, None, None, reason, _trained_from(view, live))
    return Subject(view.digest(live), live, None, None, None, reason, view.digest(predecessor), predecessor)


def _trained_from(view: LedgerView, version: str) -> str | None:
    """Digest of the reference that a version was judged against as a candidate; None if the ledger does not know."""
    judged = view.last(version, Event.AWAIT_APPROVAL) or view.last(version, Event.BLOCK)
    return (judged.data.get("baseline") or None) if judged else None


def rejected_before(view: LedgerView, subject: Subject) -> list[Criterion]:
    """One rejection is final for the weights: evidence does not undo it."""
    if subject.version is None or view.state(subject.version) is not State.REJECTED:
        return []
    entry = view.last(subject.version, Event.REJECT)
    said = f" by {entry.actor}: {entry.reason}" if entry else ""
    reason = f"These weights were rejected as version {subject.version}{said} A rejection is final."
    return [Criterion("rejection", Finding.BLOCK, reason, source=f"ledger of {view.model}")]


def asked_by_nobody(rules: ReleaseRule, requester: str) -> list[Criterion]:
    """Nobody can be kept from approving what nobody is known to have asked for; where nobody approves, it is as well.

    Args:
        rules: Of the policy.
        requester: Who asked for the release; "" if nobody is known.
    """
    if not rules.require_known_requester or not rules.approvals_required or not is_anonymous(requester):
        return []
    reason = (
        "Nobody is known to have asked for this release, so that its requester could approve it. Start the run again "
        "with release_gate.requested_by in its settings (or PLUMBLINE_ACTOR): training and votes are taken as they are."
    )
    return [Criterion(REQUESTER, Finding.HOLD, reason, threshold="a known requester")]


def weaker_policy(rules: ReleaseRule, view: LedgerView) -> list[Criterion]:
    """Whoever starts a run names its policy; it does not ask less of people than the champion's release did."""
    live = view.verdict_before_live(view.champion) if view.champion else None
    less = fewer_people(rules, live.data) if live is not None else []
    if live is None or not less:
        return []
    reason = (
        f"This policy asks less of people than {live.data.get('policy')}, by which version {view.champion} went live: "
        f"{'; '.join(less)}. Name a policy that asks for as much. To ask for less from now on takes plumbline "
        "break-glass once, which everybody is told of."
    )
    return [Criterion(POLICY, Finding.HOLD, reason, threshold="as much as the champion's", source="ledger")]


def unchecked_baseline(subject: Subject) -> list[str]:
    """What to say of a candidate whose artifact does not tell what it was trained from."""
    if subject.baseline is not None:
        return []
    return [BASELINE_NOT_CHECKED if subject.artifact else _LIVE_BASELINE_NOT_CHECKED]


def nowhere_to_go_back(judgement: Judgement, subject: Subject) -> Judgement:
    """Says first, and loudly, that a rollback is due and nothing is there that it could restore."""
    if judgement.verdict is not Verdict.ROLLBACK or subject.predecessor is not None:
        return judgement
    alarm = _NO_PREDECESSOR.format(version=subject.version)
    _logger.error("%s", alarm)
    return replace(judgement, reasons=[alarm, *judgement.reasons])


def with_notes(judgement: Judgement, notes: list[str]) -> Judgement:
    """The judgement with what a reader must know beside its reasons."""
    return replace(judgement, reasons=judgement.reasons + notes)
