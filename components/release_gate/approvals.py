"""People decide: approvals bound to what they looked at, a rejection that is final.

An approval is bound to sha256(candidate, champion, policy, evidence). It counts while the verdict it was given on is
the latest and not expired, and the champion is still the one that the candidate was compared with. The person who asked
for the release does not approve it, nor does who rated its evidence or imported it.

Who somebody is, the review service knows: it signs what it is told by people who are signed in. The command line knows
a name that was typed, and the account under which it was typed. `signatures` says what of that counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from components.release_gate.entries import Entry, LedgerView, Move
from components.release_gate.office import Office, open_office
from components.release_gate.signatures import (
    counted_approvals,
    same_name,
    statement_of,
    written_under,
)
from components.release_gate.states import Event, IllegalMoveError, State, next_state
from components.shared.accounts import account, user_of
from components.shared.errors import PlumblineError
from components.shared.pseudonyms import PSEUDONYM_KEY
from components.shared.review_key import ReviewKey, fingerprint

__all__ = ["ApprovalError", "Desk", "approvals", "approve", "lapse", "reject", "require_person"]


class ApprovalError(PlumblineError):
    """An approval that does not count."""


@dataclass(frozen=True)
class Desk:
    """Where an approval is given.

    Attributes:
        key: Of the review service, if it is at hand.
        signed_in: The actor is signed in at that service, which vouches for the name; else it was merely typed.
    """

    key: ReviewKey | None = None
    signed_in: bool = False


_COMMAND_LINE = Desk()


def approve(
    model: str,
    version: str,
    actor: str,
    reason: str,
    *,
    binding: str | None = None,
    desk: Desk = _COMMAND_LINE,
    office: Office | None = None,
) -> State:
    """Approves a release.

    Args:
        model: Registered model.
        version: The version that awaits approval.
        actor: Who approves.
        reason: Why.
        binding: Of the verdict that the actor looked at; None approves the latest one.
        desk: Where it is given.

    Returns:
        The state after it: APPROVED when it was the last approval needed.

    Raises:
        ApprovalError: The actor asked for the release, rated or imported its evidence, looked at another verdict, the
            verdict has expired or been superseded, the key is another one than the release was opened under, or the
            policy takes no approval that is given in this way.
        IllegalMoveError: The version does not await approval.
    """
    office = office or open_office()
    actor, reason = require_person(actor, reason)
    known, replaced_at = office.ledger.approval_key(), office.ledger.approval_key_replaced_at()

    def plan(view: LedgerView) -> list[Move]:
        given = counted_approvals(view, version)
        mine = any(same_name(actor, entry.actor) for entry in given)
        if mine and view.state(version) in (State.AWAITING_APPROVAL, State.APPROVED):
            return []
        _require_awaiting(view, version)
        asked = _verdict(view, version)
        ended = lapse(view, version)
        if ended is not None:
            return [ended]
        where = f"{model} version {version}"
        if binding is not None and binding != asked.data["binding"]:
            problem = "the verdict has changed since you looked at it; nothing was approved."
            raise ApprovalError(problem, where=where, hint="Look at the new evidence first.")
        _require_standing(asked, desk, known, where=where)
        _require_another(view, version, actor, given, desk, where=where)
        _require_known_raters(view, asked, replaced_at, where=where)
        _require_no_rater(asked, actor, desk.key, where=where)
        _require_no_importer(asked, actor, desk, where=where)
        moves = [_approval(asked, actor, reason, desk)]
        return moves + _clear_if_enough(version, asked, [*(entry.actor for entry in given), actor])

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
    """Who approved the latest verdict on a version, as far as it counts."""
    return [entry.actor for entry in counted_approvals(view, version)]


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


def _require_awaiting(view: LedgerView, version: str) -> None:
    """That it awaits approval; of a release that is held, what it waits for."""
    state, held, where = view.state(version), view.last(version, Event.HOLD), f"{view.model} version {version}"
    if state is State.HELD and held is not None:
        raise IllegalMoveError(
            f"{Event.APPROVE} is not possible in state {state}, for the gate waits for evidence: {held.reason}",
            where=where,
            hint="It is judged again when that is there; `plumbline status` shows what awaits votes.",
        )
    next_state(state, Event.APPROVE, where=where)


def _verdict(view: LedgerView, version: str) -> Entry:
    entry = view.last(version, Event.AWAIT_APPROVAL)
    if entry is None:
        raise ApprovalError("has no verdict that could be acted on.", where=f"{view.model} version {version}")
    return entry


def _approval(asked: Entry, actor: str, reason: str, desk: Desk) -> Move:
    details = {"binding": asked.data["binding"], "given_at": "review service" if desk.signed_in else "command line"}
    if desk.signed_in and desk.key:
        details["signature"] = desk.key.sign(statement_of(asked, actor, reason))
    return Move(asked.version, Event.APPROVE, actor, reason, asked.evidence_digests, details)


def _require_standing(asked: Entry, desk: Desk, known: str, *, where: str) -> None:
    """The way in which it is given is one that counts: what is refused here would not be counted either."""
    if "approval_key" not in asked.data:  # of a gate that knew no keys
        return
    opened_under = asked.data["approval_key"]
    if opened_under and known != opened_under:  # it may be the very secret that leaked which asks
        raise ApprovalError(
            f"the review service's key was replaced since the gate judged this release: {fingerprint(opened_under)} "
            f"then, {fingerprint(known)} now.",
            where=where,
            hint="Have the gate judge the release again.",
        )
    if desk.key and opened_under and desk.key.public != opened_under:
        raise ApprovalError(
            f"the key at hand is {fingerprint(desk.key.public)}, and this release was opened under that of the review "
            f"service, {fingerprint(opened_under)}: the approval would not count.",
            where=where,
            hint=f"Set {PSEUDONYM_KEY} to the service's.",
        )
    if asked.data["command_line_may_approve"]:
        return
    if not desk.signed_in:
        raise ApprovalError(
            f"policy {asked.data['policy']} takes approvals on the release's page only, where people are signed in.",
            where=where,
            hint="Approve there (`plumbline review`); or let the policy say release.command_line_may_approve.",
        )
    if not opened_under:
        raise ApprovalError(
            "no review service had been started when the gate judged it, so no key is there that an approval could be "
            "checked against.",
            where=where,
            hint="Have the gate judge it again, now that the service's key is known.",
        )


def _require_another(view: LedgerView, version: str, actor: str, given: list[Entry], desk: Desk, *, where: str) -> None:
    """Whoever approves did not ask for the release, nor approve it before under another name."""
    mine, registered = user_of(account()).casefold(), view.last(version, Event.REGISTER)
    asking = [view.requester(version), *([registered.actor] if registered else [])]
    asking += _verdict(view, version).data.get("also_asked", [])  # no verdict of an earlier gate tells it
    if any(_is_one_person(actor, name) for name in asking):
        raise ApprovalError(
            f"{actor} asked for this release and cannot approve it.", where=where, hint="Ask somebody else."
        )
    if desk.signed_in:
        return
    for entry in given:
        if entry.data.get("signature") and _is_one_person(mine, entry.actor):
            raise ApprovalError(
                f"{entry.actor} approved it on its page, and this is the account of {mine}.",
                where=where,
                hint="Ask somebody else.",
            )
    typed = [entry for entry in given if not entry.data.get("signature")]
    for entry, did in [*((entry, "approved") for entry in typed), *([(registered, "asked for")] if registered else [])]:
        if written_under(entry) == mine:
            raise ApprovalError(
                f"{account()} {did} this release before, as {entry.actor}: an account is one person here, whatever "
                "name is given.",
                where=where,
                hint="Approve on the release's page, where people are signed in (`plumbline review`).",
            )


def _is_one_person(one: str, other: str) -> bool:
    """Whether two names may be one person's: equal, or equal before the @. A typed name has often no domain."""
    return same_name(one.partition("@")[0], other.partition("@")[0])


def _require_known_raters(view: LedgerView, asked: Entry, replaced_at: str, *, where: str) -> None:
    """Pseudonyms are made by the service's key: after a change nobody can tell who rated before it."""
    registered = view.last(asked.version, Event.REGISTER)
    if asked.data.get("raters") and registered is not None and registered.time < replaced_at:
        raise ApprovalError(
            f"the review service's key was replaced on {replaced_at[:16]} UTC, with this release under way: it "
            "cannot be told whether who approves has rated its evidence.",
            where=where,
            hint="Run its human evaluation anew, as a new candidate; or let the policy say release.raters_may_approve.",
        )


def _require_no_rater(asked: Entry, actor: str, key: ReviewKey | None, *, where: str) -> None:
    """Separation of duties: who judged the pairs does not approve the release, unless the policy says so."""
    raters = asked.data.get("raters", [])
    if not raters:
        return
    if key is None:
        raise ApprovalError(
            f"it cannot be told whether {actor} rated the evidence, and who did may not approve it.",
            where=where,
            hint=f"Approve on the release's page, or set {PSEUDONYM_KEY} to the review service's.",
        )
    if key.pseudonym(actor) in raters:
        raise ApprovalError(
            f"{actor} rated the evidence of this release and cannot approve it too.",
            where=where,
            hint="Ask somebody who did not rate; or let the policy say release.raters_may_approve.",
        )


def _require_no_importer(asked: Entry, actor: str, desk: Desk, *, where: str) -> None:
    """Who brought judgements in vouches for them alone, whatever raters the file names: another person looks at it."""
    for importer in asked.data.get("importers", []):
        if _is_one_person(actor, importer) or (not desk.signed_in and _is_one_person(user_of(account()), importer)):
            raise ApprovalError(
                f"{importer} imported judgements that this release rests on, and cannot approve it too.",
                where=where,
                hint="Ask somebody who did not import them.",
            )


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
