"""People decide: approvals bound to what they looked at, a rejection that is final.

An approval is bound to sha256(candidate, champion, policy, evidence). It counts while the verdict it was given on is
the latest and not expired, and the champion is still the one that the candidate was compared with. The person who asked
for the release does not approve it.
"""

from __future__ import annotations

from datetime import UTC, datetime

from components.release_gate.entries import Entry, LedgerView, Move
from components.release_gate.office import Office, open_office
from components.release_gate.states import Event, State, next_state
from components.shared.errors import PlumblineError
from components.shared.pseudonyms import PSEUDONYM_KEY

__all__ = ["ApprovalError", "approvals", "approve", "lapse", "reject", "require_person"]


class ApprovalError(PlumblineError):
    """An approval that does not count."""


def approve(
    model: str,
    version: str,
    actor: str,
    reason: str,
    *,
    binding: str | None = None,
    pseudonym: str | None = None,
    office: Office | None = None,
) -> State:
    """Approves a release.

    Args:
        model: Registered model.
        version: The version that awaits approval.
        actor: Who approves.
        reason: Why.
        binding: Of the verdict that the actor looked at; None approves the latest one.
        pseudonym: The name under which the actor would judge pairs; None if it is not known.

    Returns:
        The state after it: APPROVED when it was the last approval needed.

    Raises:
        ApprovalError: The actor asked for the release, rated its evidence, looked at another verdict, or the verdict
            has expired or been superseded.
        IllegalMoveError: The version does not await approval.
    """
    office = office or open_office()
    actor, reason = require_person(actor, reason)

    def plan(view: LedgerView) -> list[Move]:
        given = approvals(view, version)
        if _same_person(actor, given) and view.state(version) in (State.AWAITING_APPROVAL, State.APPROVED):
            return []
        next_state(view.state(version), Event.APPROVE, where=f"{model} version {version}")
        asked = _verdict(view, version)
        ended = lapse(view, version)
        if ended is not None:
            return [ended]
        if binding is not None and binding != asked.data["binding"]:
            raise ApprovalError(
                "the verdict has changed since you looked at it; nothing was approved.",
                where=f"{model} version {version}",
                hint="Look at the new evidence first.",
            )
        if _same_person(actor, [view.requester(version)]):
            raise ApprovalError(
                f"{actor} asked for this release and cannot approve it.",
                where=f"{model} version {version}",
                hint="Ask somebody else.",
            )
        _require_no_rater(asked, actor, pseudonym, where=f"{model} version {version}")
        details = {"binding": asked.data["binding"]}
        moves = [Move(version, Event.APPROVE, actor, reason, asked.evidence_digests, details)]
        return moves + _clear_if_enough(version, asked, [*given, actor])

    view, added = office.record(model, plan)
    _refuse_if_lapsed(model, version, added)
    return view.state(version)


def reject(model: str, version: str, actor: str, reason: str, *, office: Office | None = None) -> State:
    """Rejects a release: final for these weights, whatever approvals there are.

    Raises:
        IllegalMoveError: The version is not held, awaiting approval, or approved.
    """
    office = office or open_office()
    actor, reason = require_person(actor, reason)

    def plan(view: LedgerView) -> list[Move]:
        if view.state(version) is State.REJECTED:
            return []
        return [Move(version, Event.REJECT, actor, reason)]

    view, _ = office.record(model, plan)
    office.sync_aliases(model)
    return view.state(version)


def approvals(view: LedgerView, version: str) -> list[str]:
    """Who approved the latest verdict on a version."""
    return [entry.actor for entry in view.since(version, Event.AWAIT_APPROVAL) if entry.event == Event.APPROVE]


def lapse(view: LedgerView, version: str) -> Move | None:
    """The move that ends a release whose verdict may no longer be acted on; None while it may."""
    asked = _verdict(view, version)
    champion = view.champion
    compared, present = asked.data["champion"], view.digest(champion) if champion else ""
    if compared != present:
        reason = (
            f"The champion is now version {champion or 'none'}; this release was judged against another one."
            " Judge it again."
        )
        return Move(version, Event.SUPERSEDE, "gate", reason)
    expires = asked.data["expires_at"]
    if datetime.now(UTC) > datetime.fromisoformat(expires):
        return Move(version, Event.EXPIRE, "gate", f"The verdict was valid until {expires}. Judge it again.")
    return None


def require_person(actor: str, reason: str) -> tuple[str, str]:
    """Actor and reason without outer blanks.

    Raises:
        ApprovalError: One of them is empty.
    """
    actor, reason = actor.strip(), reason.strip()
    if not actor:
        raise ApprovalError("nobody is named as the one who does this.", hint="Give your name.")
    if not reason:
        raise ApprovalError("no reason is given.", hint="Say why; it stays on the ledger.")
    return actor, reason


def _verdict(view: LedgerView, version: str) -> Entry:
    entry = view.last(version, Event.AWAIT_APPROVAL)
    if entry is None:
        raise ApprovalError("has no verdict that could be acted on.", where=f"{view.model} version {version}")
    return entry


def _require_no_rater(asked: Entry, actor: str, pseudonym: str | None, *, where: str) -> None:
    """Separation of duties: who judged the pairs does not approve the release, unless the policy says so."""
    raters = asked.data.get("raters", [])
    if not raters:
        return
    if pseudonym is None:
        raise ApprovalError(
            f"it cannot be told whether {actor} rated the evidence, and who did may not approve it.",
            where=where,
            hint=f"Approve on the release's page, or set {PSEUDONYM_KEY} to the review service's.",
        )
    if pseudonym in raters:
        raise ApprovalError(
            f"{actor} rated the evidence of this release and cannot approve it too.",
            where=where,
            hint="Ask somebody who did not rate; or let the policy say release.raters_may_approve.",
        )


def _same_person(actor: str, others: list[str]) -> bool:
    return actor.casefold() in {other.strip().casefold() for other in others}


def _clear_if_enough(version: str, asked: Entry, approvers: list[str]) -> list[Move]:
    required = asked.data["approvals_required"]
    if len(approvers) < required:
        return []
    reason = f"{len(approvers)} of {required} approvals: {', '.join(approvers)}."
    details = {"binding": asked.data["binding"], "approvers": approvers}
    return [Move(version, Event.CLEAR, approvers[-1], reason, asked.evidence_digests, details)]


def _refuse_if_lapsed(model: str, version: str, added: list[Entry]) -> None:
    for entry in added:
        if entry.event in (Event.EXPIRE, Event.SUPERSEDE):
            raise ApprovalError(entry.reason, where=f"{model} version {version}")
