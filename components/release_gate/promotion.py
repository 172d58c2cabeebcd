"""Promotion and rollback: intent > verify digests > alias > read back > done.

The intent and the end are on the ledger, so whoever is killed between them can be run again by anybody and goes on
where it stopped; nothing on the way does harm when done twice. Of many promoters one appends the intent: the others
find it there. The champion changes, for everybody who asks the ledger, with the last step and not before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from components.release_gate.approvals import lapse, require_person
from components.release_gate.entries import Entry, LedgerView, Move
from components.release_gate.office import Office, open_office
from components.release_gate.registry import CHAMPION, PREVIOUS, RegistryError
from components.release_gate.signatures import counted_approvals, is_signed_approval
from components.release_gate.states import Event, IllegalMoveError, State, is_live, next_state
from components.shared.errors import ArtifactError, FetchError, PlumblineError

__all__ = ["Outcome", "PromotionError", "abandon", "break_glass", "promote", "rollback"]

_logger = logging.getLogger(__name__)


class PromotionError(PlumblineError):
    """A promotion or rollback that cannot go on."""


@dataclass(frozen=True)
class Outcome:
    """What a promotion or rollback came to.

    Attributes:
        model: Registered model.
        version: The version that was to be promoted, or that was rolled back.
        state: Its state now.
        champion: The live version now.
        changed: This very call made the change; False if it was done already, or waits for something.
        message: All this in a sentence.
        seconds: How long the call took.
    """

    model: str
    version: str
    state: State
    champion: str | None
    changed: bool
    message: str
    seconds: float


def promote(model: str, version: str, actor: str, *, office: Office | None = None) -> Outcome:
    """Makes an approved version the champion.

    A version that is champion already, or that still awaits approval, is left as it is; the message says so.

    Raises:
        PromotionError: Another promotion or a rollback is under way, or the verdict has expired or been superseded.
        IllegalMoveError: The version's state does not allow it.
        ArtifactError: Its files are not those that were judged; the version is then in state ERROR.
    """
    office = office or open_office()
    key = office.ledger.approval_key()

    def intent(view: LedgerView) -> list[Move]:
        state = view.state(version)
        if is_live(state) or state in (State.PROMOTING, State.AWAITING_APPROVAL):
            return []
        next_state(state, Event.PROMOTE, where=f"{model} version {version}")
        _refuse_while_promoting(view)
        _refuse_while_rolling_back(view)
        ended = lapse(view, version)
        if ended is not None:
            return [ended]
        _require_approvals(view, version)
        _require_todays_key(view, version, key)
        cleared = view.last(version, Event.CLEAR)
        details = {"replaces": view.champion, "binding": cleared.data["binding"] if cleared else ""}
        reason = cleared.reason if cleared else "Approved."
        return [Move(version, Event.PROMOTE, actor, reason, details=details)]

    return _switch(office, model, version, actor, intent)


def break_glass(model: str, version: str, actor: str, reason: str, *, office: Office | None = None) -> Outcome:
    """Puts a version live that the gate did not let through. Loud, on the ledger, and on whoever does it.

    Raises:
        ApprovalError: No actor or no reason.
        IllegalMoveError: The version's state does not allow it; a rejected version never goes live.
        PromotionError: Another promotion or a rollback is under way.
        ArtifactError: Its files are not those that were registered.
    """
    office = office or open_office()
    actor, reason = require_person(actor, reason)

    def intent(view: LedgerView) -> list[Move]:
        state = view.state(version)
        if is_live(state) or state is State.PROMOTING:
            return []
        next_state(state, Event.BREAK_GLASS, where=f"{model} version {version}")
        _refuse_while_promoting(view)
        _refuse_while_rolling_back(view)
        details = {"replaces": view.champion, "state_before": str(state)}
        return [Move(version, Event.BREAK_GLASS, actor, f"BREAK GLASS: {reason}", details=details)]

    _logger.warning("BREAK GLASS: %s puts %s version %s live against the gate: %s", actor, model, version, reason)
    return _switch(office, model, version, actor, intent)


def rollback(
    model: str, actor: str, reason: str, *, version: str | None = None, office: Office | None = None
) -> Outcome:
    """Takes the live version back and restores the champion that it replaced.

    Args:
        model: Registered model.
        actor: Who does it.
        reason: Why.
        version: The version to take back; if it was rolled back before, nothing is done. By default whichever is live.

    Raises:
        PromotionError: Nothing is live, the live version is the first champion and has no predecessor, a promotion is
            under way, or the ledger moved on before the rollback could end.
        IllegalMoveError: The version is not live.
        ArtifactError: The predecessor's files are not those that were registered.
    """
    started = time.monotonic()
    office = office or open_office()
    actor, reason = require_person(actor, reason)
    view = office.ledger.view(model)
    target = version or view.champion
    if target is None:
        raise PromotionError("nothing is live.", where=f"model {model}")
    if view.state(target) is State.ROLLED_BACK:
        office.sync_aliases(model)
        return _outcome(office, model, target, False, f"Version {target} was rolled back before.", started)
    view, _ = office.record(model, lambda now: _rollback_intent(now, target, actor, reason))
    restored = _predecessor(view, target)
    office.registry.verify(view.uri(restored), view.digest(restored))
    office.registry.set_alias(model, CHAMPION, restored)
    _read_back(office, model, restored)
    view, added = office.record(model, lambda now: _rollback_end(now, target, restored, actor, reason))
    office.sync_aliases(model)
    if view.state(target) is not State.ROLLED_BACK:
        raise PromotionError(
            f"the rollback did not end: the version is {view.state(target)} and version {view.champion} is champion.",
            where=f"{model} version {target}",
            hint="See `plumbline history`: somebody abandoned it or promoted another version meanwhile.",
        )
    message = f"Version {target} was rolled back; version {restored} is champion again."
    return _outcome(office, model, target, bool(added), message, started)


def abandon(model: str, version: str, actor: str, reason: str, *, office: Office | None = None) -> State:
    """Gives up a promotion or a rollback that was begun and cannot be ended; the champion stays.

    Raises:
        IllegalMoveError: The version is neither being promoted nor being rolled back.
    """
    office = office or open_office()
    actor, reason = require_person(actor, reason)

    def plan(view: LedgerView) -> list[Move]:
        if view.rolling_back == version:
            details = {"abandons": "rollback"}
            return [Move(version, Event.FAIL, actor, f"Rollback abandoned: {reason}", details=details)]
        state = view.state(version)
        if state is not State.PROMOTING:
            raise IllegalMoveError(
                f"is {state}: it is neither being promoted nor being rolled back, so there is nothing to abandon.",
                where=f"{model} version {version}",
            )
        return [Move(version, Event.FAIL, actor, f"Promotion abandoned: {reason}")]

    view, _ = office.record(model, plan)
    office.sync_aliases(model)
    return view.state(version)


def _switch(
    office: Office, model: str, version: str, actor: str, intent: Callable[[LedgerView], list[Move]]
) -> Outcome:
    """From the intent to the end; enters wherever an earlier run stopped."""
    started = time.monotonic()
    view, added = office.record(model, intent)
    state = view.state(version)
    lapsed = next((entry for entry in added if entry.event in (Event.EXPIRE, Event.SUPERSEDE)), None)
    if lapsed is not None:
        raise PromotionError(lapsed.reason, where=f"{model} version {version}")
    if state is not State.PROMOTING:
        office.sync_aliases(model)
        return _outcome(office, model, version, False, _nothing_to_do(view, version), started)
    begun = _intent_of(view, version)
    if begun.event == Event.PROMOTE:
        _require_approvals(view, version)  # whoever wrote that entry
    replaces = begun.data["replaces"]
    _verify_or_fail(office, view, version, actor)
    if replaces:
        office.registry.set_alias(model, PREVIOUS, replaces)
    office.registry.set_alias(model, CHAMPION, version)
    _read_back(office, model, version)
    view, added = office.record(model, lambda now: _promotion_end(now, version, actor))
    office.sync_aliases(model)
    changed = any(entry.event == Event.PROMOTED for entry in added)
    if not is_live(view.state(version)):
        raise PromotionError(
            f"the promotion ended in state {view.state(version)}; version {view.champion} is champion.",
            where=f"{model} version {version}",
            hint="See `plumbline history`.",
        )
    former = f"; version {replaces} is its predecessor" if replaces else ""
    return _outcome(office, model, version, changed, f"Version {version} is champion{former}.", started)


def _verify_or_fail(office: Office, view: LedgerView, version: str, actor: str) -> None:
    try:
        office.registry.verify(view.uri(version), view.digest(version))
    except FetchError:  # the registry failed, and nothing is known of the files: the same promotion goes on later
        raise
    except ArtifactError as error:
        reason = f"Promotion stopped, its files are not those that were judged: {error}"
        office.record(
            view.model,
            lambda now: [Move(version, Event.FAIL, actor, reason)] if now.state(version) is State.PROMOTING else [],
        )
        office.sync_aliases(view.model)
        raise


def _promotion_end(view: LedgerView, version: str, actor: str) -> list[Move]:
    """The switch itself: both entries become visible together. Nothing, if another run of it was faster."""
    if view.state(version) is not State.PROMOTING:
        return []
    entry = _intent_of(view, version)
    replaces = entry.data["replaces"]
    if view.champion != replaces:
        reason = f"Version {view.champion} became champion while this promotion was under way."
        return [Move(version, Event.SUPERSEDE, "gate", reason)]
    details = {"replaces": replaces, "intent": entry.sequence}
    moves = [Move(version, Event.PROMOTED, actor, entry.reason, details=details)]
    if replaces:
        moves.append(Move(replaces, Event.RETIRE, actor, f"Replaced by version {version}."))
    return moves


def _rollback_intent(view: LedgerView, version: str, actor: str, reason: str) -> list[Move]:
    if view.state(version) is State.ROLLED_BACK or view.rolling_back == version:
        return []
    next_state(view.state(version), Event.BEGIN_ROLLBACK, where=f"{view.model} version {version}")
    _refuse_while_promoting(view)
    restored = _predecessor(view, version)
    return [Move(version, Event.BEGIN_ROLLBACK, actor, reason, details={"restores": restored})]


def _rollback_end(view: LedgerView, version: str, restored: str, actor: str, reason: str) -> list[Move]:
    """The switch back. Nothing, if another run of it was faster, it was abandoned, or another version is live."""
    if view.rolling_back != version:
        return []
    return [
        Move(restored, Event.RESTORE, actor, f"Version {version} was rolled back: {reason}", details={"from": version}),
        Move(version, Event.ROLLED_BACK, actor, reason, details={"restored": restored}),
    ]


def _predecessor(view: LedgerView, version: str) -> str:
    restored = view.predecessor(version)
    if restored is None:
        raise PromotionError(
            f"version {version} is the first champion: there is none to restore.",
            where=f"model {view.model}",
            hint="Break the glass for another version if this one must go.",
        )
    return restored


def _require_approvals(view: LedgerView, version: str) -> None:
    """Counts again: rows that somebody wrote past the gate are no approvals."""
    asked = view.last(version, Event.AWAIT_APPROVAL)
    needed, given = (asked.data["approvals_required"] if asked else 0), counted_approvals(view, version)
    if len(given) < needed:
        raise PromotionError(
            f"it was cleared with {len(given)} of {needed} approvals that count.",
            where=f"{view.model} version {version}",
            hint="See `plumbline verify`: somebody wrote to the ledger past the gate. Reject it, or judge it again.",
        )


def _require_todays_key(view: LedgerView, version: str, key: str) -> None:
    """Approvals that were signed with a key that was replaced since, perhaps because it leaked, do not count."""
    asked = view.last(version, Event.AWAIT_APPROVAL)
    if asked is None or not any(is_signed_approval(asked, entry) for entry in counted_approvals(view, version)):
        return
    if asked.data["approval_key"] != key:
        raise PromotionError(
            "the review service's key was replaced since it was approved.",
            where=f"{view.model} version {version}",
            hint="Have the gate judge the release again, and approve it again.",
        )


def _refuse_while_promoting(view: LedgerView) -> None:
    if view.promoting is not None:
        raise PromotionError(
            f"version {view.promoting} is being promoted.",
            where=f"model {view.model}",
            hint="Run that promotion to its end, or abandon it.",
        )


def _refuse_while_rolling_back(view: LedgerView) -> None:
    if view.rolling_back is not None:
        raise PromotionError(
            f"version {view.rolling_back} is being rolled back.",
            where=f"model {view.model}",
            hint="Run that rollback again until it ends, or abandon it.",
        )


def _intent_of(view: LedgerView, version: str) -> Entry:
    entry = view.last(version, Event.PROMOTE, Event.BREAK_GLASS)
    if entry is None:
        raise PromotionError("was never to be promoted.", where=f"{view.model} version {version}")
    return entry


def _read_back(office: Office, model: str, version: str) -> None:
    found = office.registry.aliases(model).get(CHAMPION)
    if found != version:
        raise RegistryError(
            f"alias {CHAMPION} was set to version {version} and reads {found}.",
            where=f"model {model}",
            hint="Somebody else moves it. Run this again; the ledger decides.",
        )


def _nothing_to_do(view: LedgerView, version: str) -> str:
    state = view.state(version)
    if is_live(state):
        return f"Version {version} is champion already."
    asked = view.last(version, Event.AWAIT_APPROVAL)
    required = asked.data["approvals_required"] if asked else 0
    given = counted_approvals(view, version)
    return f"Version {version} passed the gate and awaits approval: {len(given)} of {required} given."


def _outcome(office: Office, model: str, version: str, changed: bool, message: str, started: float) -> Outcome:
    view = office.ledger.view(model)
    seconds = time.monotonic() - started
    return Outcome(model, version, view.state(version), view.champion, changed, message, round(seconds, 3))
