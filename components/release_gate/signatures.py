"""Which approvals count: told from the ledger alone, by everybody, at any time.

The verdict that asks for approvals names the public key of the review service. An approval that was given there, by
somebody who was signed in, carries the service's signature over the verdict's hash, the actor and the reason: whoever
has another key, or writes rows into the ledger, cannot make one. An approval of the command line has none; it says
under which account it was given, and counts where the policy says so (`release.command_line_may_approve`).
"""

from __future__ import annotations

import unicodedata

from components.release_gate.entries import Entry, LedgerView
from components.release_gate.states import Event
from components.shared.accounts import user_of
from components.shared.review_key import is_signed

__all__ = ["approval_problems", "counted_approvals", "is_signed_approval", "same_name", "statement_of", "written_under"]


def statement_of(asked: Entry, actor: str, reason: str) -> dict[str, str]:
    """What the review service signs: this person, for this reason, this very verdict."""
    return {"verdict": asked.hash, "version": asked.version, "actor": actor, "reason": reason}


def counted_approvals(view: LedgerView, version: str) -> list[Entry]:
    """The approvals of a version's latest verdict that count, one a person."""
    asked = view.last(version, Event.AWAIT_APPROVAL)
    if asked is None:
        return []
    given = [entry for entry in view.since(version, Event.AWAIT_APPROVAL) if entry.event == Event.APPROVE]
    return _counted(view, asked, given)


def is_signed_approval(asked: Entry, entry: Entry) -> bool:
    """Whether an approval was given at the review service whose key the verdict names."""
    signature = str(entry.data.get("signature", ""))
    return is_signed(asked.data.get("approval_key", ""), statement_of(asked, entry.actor, entry.reason), signature)


def written_under(entry: Entry) -> str:
    """User of the account under which an entry was written; "" if the ledger does not know."""
    return user_of(entry.data.get("written_by", "")).casefold()


def same_name(one: str, other: str) -> bool:
    """Whether two names are one, whatever their case, blanks or form of Unicode."""
    return _folded(one) == _folded(other)


def approval_problems(view: LedgerView) -> list[str]:
    """Releases that were cleared without the approvals that their verdict asked for; empty if there is none."""
    problems = []
    for version in view.versions:
        asked: Entry | None = None
        given: list[Entry] = []
        for entry in (entry for entry in view.entries if entry.version == version):
            if entry.event == Event.AWAIT_APPROVAL:
                asked, given = entry, []
            elif entry.event == Event.APPROVE:
                given.append(entry)
            elif entry.event == Event.CLEAR and asked is not None:
                needed, counted = asked.data.get("approvals_required", 0), len(_counted(view, asked, given))
                if counted < needed:
                    which = f"entry {entry.sequence} clears version {version}"
                    problems.append(f"{which} with {counted} of {needed} approvals that count.")
    return problems


def _counted(view: LedgerView, asked: Entry, given: list[Entry]) -> list[Entry]:
    found: list[Entry] = []
    for entry in given:
        if _counts(view, asked, entry) and not any(same_name(entry.actor, other.actor) for other in found):
            found.append(entry)
    return found


def _counts(view: LedgerView, asked: Entry, entry: Entry) -> bool:
    if "approval_key" not in asked.data:
        return _knew_no_keys(view, asked)
    if entry.data.get("signature") and asked.data["approval_key"]:
        return is_signed_approval(asked, entry)
    return bool(asked.data.get("command_line_may_approve", False))


def _knew_no_keys(view: LedgerView, asked: Entry) -> bool:
    """Whether a verdict is of a gate before there were keys; one that was written since may not leave its key out."""
    return not any("written_by" in entry.data for entry in view.entries if entry.sequence <= asked.sequence)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().casefold()
