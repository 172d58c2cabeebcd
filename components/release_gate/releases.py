"""A release from the gate's side: the version is registered, the verdict is put on the ledger.

One release is one version. The same weights with the same verdict on the same evidence are the same release, whoever
asks and however often; weights whose earlier release has ended come as a new version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from components.release_gate.entries import LedgerView, Move, is_anonymous
from components.release_gate.office import Office
from components.release_gate.policy import GatePolicy
from components.release_gate.states import Event, State, is_live
from components.release_gate.terms import terms_of
from components.release_gate.verdict import Verdict
from components.shared.artifacts import Artifact
from components.shared.files import digest_of
from components.shared.tracking import pipeline_run

__all__ = [
    "JudgedRelease",
    "binding_of",
    "find_release",
    "is_stale",
    "is_under_way",
    "record_live_verdict",
    "record_verdict",
    "register",
    "unknown_requester",
]

_ENDED = frozenset({State.EXPIRED, State.SUPERSEDED, State.ROLLED_BACK, State.RETIRED})
_VERDICT_EVENTS = (Event.AWAIT_APPROVAL, Event.HOLD, Event.BLOCK, Event.FAIL)
_CANDIDATE_EVENT = {
    Verdict.PROMOTE: Event.AWAIT_APPROVAL,
    Verdict.HOLD: Event.HOLD,
    Verdict.BLOCK: Event.BLOCK,
    Verdict.ERROR: Event.FAIL,
}
_LIVE_EVENT = {
    Verdict.KEEP: Event.KEEP,
    Verdict.HOLD: Event.HOLD,
    Verdict.ROLLBACK: Event.ALARM,
    Verdict.ERROR: Event.FAIL,
}
_TO_COLLECTING = {
    State.REGISTERED: [Event.VALIDATE, Event.COLLECT],
    State.ERROR: [Event.VALIDATE, Event.COLLECT],
    State.VALIDATING: [Event.COLLECT],
    State.HELD: [Event.COLLECT],
    State.AWAITING_APPROVAL: [Event.COLLECT],
    State.APPROVED: [Event.COLLECT],
    State.COLLECTING: [],
}


@dataclass(frozen=True)
class JudgedRelease:
    """What the gate decided, to be recorded.

    Attributes:
        verdict: The verdict.
        reason: Its first reasons, in words.
        digests: Digest of everything it rests on, by name: candidate, champion, policy and each evidence artifact.
        policy: The policy that decided.
        actor: Who ran the gate.
        requester: Who asked for the release, as far as the run knows; "" takes the actor.
        also_asked: Who else had it judged, in the requester's stead or again; none of them may approve this verdict.
        criteria: Digest of all criteria, with their numbers; so the ledger vouches for what the release page shows.
        baseline: Digest of what the model had to be compared with; "" where it is not known.
        seed: Of the bootstrap; with the baseline all that an audit needs beside the evidence.
        raters: Pseudonyms of the people whose judgements it rests on, as far as the review service knows who they are.
        importers: Logins of those who imported judgements that it rests on.
        win_rate: Share of prompts on which people prefer the model to the one that it is compared with; None: unknown.
        evidence_at: When the evidence of people was read (UTC, ISO 8601); "" if it is not known.
        alarm: Harm is seen on the live model, in evidence that cannot roll it back.
    """

    verdict: Verdict
    reason: str
    digests: Mapping[str, str]
    policy: GatePolicy
    actor: str
    criteria: str = ""
    requester: str = ""
    also_asked: tuple[str, ...] = ()
    baseline: str = ""
    seed: int = 0
    raters: tuple[str, ...] = ()
    importers: tuple[str, ...] = ()
    win_rate: float | None = None
    evidence_at: str = ""
    alarm: bool = False

    @property
    def binding(self) -> str:
        return binding_of(self.digests)


def binding_of(digests: Mapping[str, str]) -> str:
    """sha256(candidate, champion, policy, evidence): what an approval is bound to.

    Args:
        digests: By name; everything that is not candidate, champion or policy is evidence.
    """
    bound = {name: digests.get(name, "") for name in ("candidate", "champion", "policy")}
    evidence = {name: digest for name, digest in digests.items() if name not in bound}
    return digest_of({**bound, "evidence": digest_of(evidence)})


def find_release(view: LedgerView, digest: str, judged: JudgedRelease) -> str | None:
    """The version under which weights are already being released (or live, or rejected); None if a new one is due."""
    version = view.version_of(digest)
    if version is None or view.state(version) in _ENDED:
        return None
    if view.state(version) is State.BLOCKED and not _already_recorded(view, version, judged):
        return None
    return version


def is_under_way(state: State) -> bool:
    """Whether weights in this state are being released, so that a new verdict on them is one on the same release."""
    return state not in _ENDED and state is not State.BLOCKED


def register(office: Office, model: str, artifact: Artifact, judged: JudgedRelease) -> str:
    """Registers weights as a version, or finds the version under which they are registered already."""
    view = office.ledger.view(model)
    version = find_release(view, artifact.digest, judged)
    if version is not None:
        return version
    attempts = sum(view.digest(known) == artifact.digest for known in view.versions)
    made, uri = office.registry.register(model, artifact, request=f"{artifact.digest}:{attempts}")

    def plan(now: LedgerView) -> list[Move]:
        if made in now.versions or find_release(now, artifact.digest, judged) is not None:
            return []
        details = {
            "digest": artifact.digest,
            "uri": uri,
            "requester": judged.requester or judged.actor,
            "run": pipeline_run(),
        }
        reason = "The gate was asked to judge it."
        return [Move(made, Event.REGISTER, judged.actor, reason, {"candidate": artifact.digest}, details)]

    view, _ = office.record(model, plan)
    return find_release(view, artifact.digest, judged) or made


def record_verdict(office: Office, model: str, version: str, judged: JudgedRelease) -> State:
    """Puts a candidate's verdict on the ledger; returns the state that follows.

    A verdict that is there already changes nothing, nor does one on older evidence than that of the latest verdict. A
    version that is live, being promoted, or rejected stays as it is.
    """

    key = office.ledger.approval_key()

    def plan(view: LedgerView) -> list[Move]:
        state = view.state(version)
        known = _already_recorded(view, version, judged, key) or is_stale(view, version, judged)
        if state not in _TO_COLLECTING or known:
            return []
        events = [*_TO_COLLECTING[state], _CANDIDATE_EVENT[judged.verdict]]
        asked = replace(judged, reason=" ".join([judged.reason, *unknown_requester(view, version, judged)]))
        moves = [_move(version, event, asked, key) for event in events]
        return moves + ([_cleared_by_policy(version, judged)] if _needs_nobody(judged) else [])

    view, _ = office.record(model, plan)
    return view.state(version)


def record_live_verdict(office: Office, model: str, version: str, judged: JudgedRelease) -> State:
    """Puts the verdict on a live version on the ledger; returns its state."""

    def plan(view: LedgerView) -> list[Move]:
        last = view.last(version, *_LIVE_EVENT.values())
        known = last is not None and last.data.get("binding") == judged.binding
        if not is_live(view.state(version)) or (known and last and last.event == _LIVE_EVENT[judged.verdict]):
            return []
        if is_stale(view, version, judged):
            return []
        return [_move(version, _LIVE_EVENT[judged.verdict], judged)]

    view, _ = office.record(model, plan)
    return view.state(version)


def is_stale(view: LedgerView, version: str, judged: JudgedRelease) -> bool:
    """Whether the latest verdict rests on newer evidence of people: a run that was held up does not undo it."""
    last = view.last(version, *_VERDICT_EVENTS, *_LIVE_EVENT.values())
    mine, latest = _moment(judged.evidence_at), _moment(last.data.get("evidence_at", "")) if last else None
    return mine is not None and latest is not None and mine < latest


def unknown_requester(view: LedgerView, version: str, judged: JudgedRelease) -> list[str]:
    """A sentence for those who are asked to approve a release that nobody known asked for; else nothing."""
    awaits = judged.verdict is Verdict.PROMOTE and not _needs_nobody(judged)
    if not awaits or not is_anonymous(judged.requester or view.requester(version)):
        return []
    return [
        "The requester is not known (neither release_gate.requested_by nor PLUMBLINE_ACTOR was set), so the two-person "
        "rule cannot exclude them."
    ]


def _move(version: str, event: Event, judged: JudgedRelease, key: str = "") -> Move:
    if event in (Event.VALIDATE, Event.COLLECT):
        return Move(version, event, judged.actor, "The gate reads its evidence.")
    expires = datetime.now(UTC) + timedelta(days=judged.policy.release.approval_valid_days)
    details = {
        "verdict": str(judged.verdict),
        "binding": judged.binding,
        "policy": f"{judged.policy.name} {judged.policy.version}",
        "approval_key": key,
        **terms_of(judged.policy.release, judged.raters, judged.importers),
        "expires_at": expires.isoformat(),
        "champion": judged.digests.get("champion", ""),
        "criteria": judged.criteria,
        "requester": judged.requester,
        "also_asked": list(judged.also_asked),
        "baseline": judged.baseline,
        "seed": judged.seed,
        "run": pipeline_run(),
        "win_rate": judged.win_rate,
        "evidence_at": _not_after_now(judged.evidence_at),
        **({"alarm": True} if judged.alarm else {}),
    }
    return Move(version, event, judged.actor, judged.reason, dict(judged.digests), details)


def _moment(time: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(time)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else None


def _not_after_now(time: str) -> str:
    """A time that lies ahead would keep every later verdict off the ledger: no digest vouches for it."""
    found, now = _moment(time), datetime.now(UTC)
    return min(found, now).isoformat() if found else ""


def _needs_nobody(judged: JudgedRelease) -> bool:
    return judged.verdict is Verdict.PROMOTE and judged.policy.release.approvals_required == 0


def _cleared_by_policy(version: str, judged: JudgedRelease) -> Move:
    name = judged.policy.name
    reason = f"APPROVED BY POLICY {name}: it asks for no approval, no person looked at this release."
    details = {"binding": judged.binding, "approvers": []}
    return Move(version, Event.CLEAR, f"policy {name}", reason, dict(judged.digests), details)


def _already_recorded(view: LedgerView, version: str, judged: JudgedRelease, key: str | None = None) -> bool:
    """The verdict is there already; one that people approve under another key than today's `key` has to be anew."""
    last = view.last(version, *_VERDICT_EVENTS)
    if last is None or view.state(version) in (State.REGISTERED, State.VALIDATING, State.COLLECTING):
        return False
    asked = last.event == Event.AWAIT_APPROVAL and bool(last.data.get("approvals_required"))
    awaits = asked and view.state(version) in (State.AWAITING_APPROVAL, State.APPROVED)
    if awaits and key is not None and last.data.get("approval_key") != key:
        return False
    return last.data.get("binding") == judged.binding and last.data.get("verdict") == judged.verdict
