"""What people are told of a ledger's entry; the ledger writes it in the transaction that appends the entry."""

from __future__ import annotations

from components.release_gate.entries import Entry
from components.release_gate.states import Event
from components.shared.files import digest_of
from components.shared.model_names import SCRATCH_SUFFIX
from components.shared.notices import Notice

__all__ = ["notice_of"]

_LONGEST_REASON = 1500


def notice_of(entry: Entry) -> Notice | None:
    """The notice of an entry; None for an entry that nobody needs to hear of."""
    found = _say(entry)
    if found is None or entry.model.endswith(SCRATCH_SUFFIX):
        return None
    kind, what = found
    return Notice(
        id=digest_of([entry.model, entry.sequence, entry.hash])[:32],
        kind=kind,
        text=f"{what} {entry.reason[:_LONGEST_REASON]}".strip(),
        details={"model_name": entry.model, "version": entry.version, "actor": entry.actor, "state": entry.to_state},
    )


def _say(entry: Entry) -> tuple[str, str] | None:
    name = f"{entry.model} version {entry.version}"
    match entry.event:
        case Event.AWAIT_APPROVAL if entry.data.get("approvals_required", 0):
            return "approval_needed", f"{name} awaits {entry.data['approvals_required']} approval(s)."
        case Event.PROMOTED:
            return "promoted", f"{name} is live."
        case Event.ROLLED_BACK:
            restored = entry.data.get("restored")
            return "rolled_back", f"{name} was rolled back by {entry.actor}; version {restored} is champion again."
        case Event.HOLD | Event.FAIL if entry.data.get("alarm"):
            return "live_alarm", f"{name} is live."
        case Event.FAIL:
            return "gate_error", f"{name} could not be judged or promoted."
    return None
