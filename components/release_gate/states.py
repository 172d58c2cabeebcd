"""The states of a release and the events that move it: one table, and no other way.

    REGISTERED > VALIDATING > COLLECTING > AWAITING_APPROVAL > APPROVED > PROMOTING > SOAKING > CHAMPION > RETIRED

A release is one model version. SOAKING and CHAMPION are both *live*: a version holds the champion alias from the end
of its promotion on; SOAKING says that fresh evidence has not confirmed it yet. At most one version of a model is live,
and once one was, one always is: a promotion retires the old champion, a rollback restores it, each in one transaction
of the ledger. EXPIRED, SUPERSEDED, ROLLED_BACK and RETIRED end a release; the same weights may come again as a new
version. REJECTED is final for the weights too. BLOCKED ends it unless somebody breaks the glass.
"""

from __future__ import annotations

from enum import StrEnum

from components.shared.errors import PlumblineError
from components.shared.ledger_table import LIVE_STATES

__all__ = ["NEW", "TRANSITIONS", "Event", "IllegalMoveError", "State", "is_live", "legal_events", "next_state"]


class State(StrEnum):
    """Where a release stands."""

    NEW = "NEW"
    REGISTERED = "REGISTERED"
    VALIDATING = "VALIDATING"
    COLLECTING = "COLLECTING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    APPROVED = "APPROVED"
    PROMOTING = "PROMOTING"
    SOAKING = "SOAKING"
    CHAMPION = "CHAMPION"
    RETIRED = "RETIRED"
    HELD = "HELD"
    BLOCKED = "BLOCKED"
    ERROR = "ERROR"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    SUPERSEDED = "SUPERSEDED"
    ROLLED_BACK = "ROLLED_BACK"


NEW = State.NEW
"""Not on the ledger yet."""


class Event(StrEnum):
    """What happens to a release."""

    REGISTER = "register"
    VALIDATE = "validate"
    COLLECT = "collect"
    AWAIT_APPROVAL = "await_approval"
    HOLD = "hold"
    BLOCK = "block"
    FAIL = "fail"
    APPROVE = "approve"
    CLEAR = "clear"
    REJECT = "reject"
    EXPIRE = "expire"
    SUPERSEDE = "supersede"
    PROMOTE = "promote"
    BREAK_GLASS = "break_glass"
    PROMOTED = "promoted"
    KEEP = "keep"
    ALARM = "alarm"
    BEGIN_ROLLBACK = "begin_rollback"
    ROLLED_BACK = "rolled_back"
    RETIRE = "retire"
    RESTORE = "restore"


class IllegalMoveError(PlumblineError):
    """An event that the release's state does not allow."""


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.NEW, Event.REGISTER): State.REGISTERED,
    # The gate judges. New evidence brings a release back to COLLECTING and voids its approvals.
    (State.REGISTERED, Event.VALIDATE): State.VALIDATING,
    (State.ERROR, Event.VALIDATE): State.VALIDATING,
    (State.VALIDATING, Event.COLLECT): State.COLLECTING,
    (State.HELD, Event.COLLECT): State.COLLECTING,
    (State.AWAITING_APPROVAL, Event.COLLECT): State.COLLECTING,
    (State.APPROVED, Event.COLLECT): State.COLLECTING,
    (State.COLLECTING, Event.AWAIT_APPROVAL): State.AWAITING_APPROVAL,
    (State.COLLECTING, Event.HOLD): State.HELD,
    (State.VALIDATING, Event.BLOCK): State.BLOCKED,
    (State.COLLECTING, Event.BLOCK): State.BLOCKED,
    (State.VALIDATING, Event.FAIL): State.ERROR,
    (State.COLLECTING, Event.FAIL): State.ERROR,
    (State.PROMOTING, Event.FAIL): State.ERROR,
    # People decide.
    (State.AWAITING_APPROVAL, Event.APPROVE): State.AWAITING_APPROVAL,
    (State.AWAITING_APPROVAL, Event.CLEAR): State.APPROVED,
    (State.HELD, Event.REJECT): State.REJECTED,
    (State.AWAITING_APPROVAL, Event.REJECT): State.REJECTED,
    (State.APPROVED, Event.REJECT): State.REJECTED,
    # Time passes, or another version becomes champion.
    (State.HELD, Event.EXPIRE): State.EXPIRED,
    (State.AWAITING_APPROVAL, Event.EXPIRE): State.EXPIRED,
    (State.APPROVED, Event.EXPIRE): State.EXPIRED,
    (State.HELD, Event.SUPERSEDE): State.SUPERSEDED,
    (State.AWAITING_APPROVAL, Event.SUPERSEDE): State.SUPERSEDED,
    (State.APPROVED, Event.SUPERSEDE): State.SUPERSEDED,
    (State.PROMOTING, Event.SUPERSEDE): State.SUPERSEDED,
    # The switch. Breaking the glass skips verdict and approvals, never a rejection.
    (State.APPROVED, Event.PROMOTE): State.PROMOTING,
    (State.HELD, Event.BREAK_GLASS): State.PROMOTING,
    (State.BLOCKED, Event.BREAK_GLASS): State.PROMOTING,
    (State.ERROR, Event.BREAK_GLASS): State.PROMOTING,
    (State.AWAITING_APPROVAL, Event.BREAK_GLASS): State.PROMOTING,
    (State.ROLLED_BACK, Event.BREAK_GLASS): State.PROMOTING,
    (State.PROMOTING, Event.PROMOTED): State.SOAKING,
    # A live model is watched: evidence on it confirms it, says nothing, or raises the alarm.
    (State.SOAKING, Event.KEEP): State.CHAMPION,
    (State.CHAMPION, Event.KEEP): State.CHAMPION,
    (State.SOAKING, Event.HOLD): State.SOAKING,
    (State.CHAMPION, Event.HOLD): State.CHAMPION,
    (State.SOAKING, Event.FAIL): State.SOAKING,
    (State.CHAMPION, Event.FAIL): State.CHAMPION,
    (State.SOAKING, Event.ALARM): State.SOAKING,
    (State.CHAMPION, Event.ALARM): State.CHAMPION,
    # And it goes: replaced, or taken back in favour of its predecessor.
    (State.SOAKING, Event.RETIRE): State.RETIRED,
    (State.CHAMPION, Event.RETIRE): State.RETIRED,
    (State.SOAKING, Event.BEGIN_ROLLBACK): State.SOAKING,
    (State.CHAMPION, Event.BEGIN_ROLLBACK): State.CHAMPION,
    (State.SOAKING, Event.ROLLED_BACK): State.ROLLED_BACK,
    (State.CHAMPION, Event.ROLLED_BACK): State.ROLLED_BACK,
    (State.RETIRED, Event.RESTORE): State.CHAMPION,
}


def is_live(state: State) -> bool:
    """Whether a version in this state serves (holds the champion alias)."""
    return state in LIVE_STATES


def legal_events(state: State) -> list[Event]:
    """The events that `state` allows, in the order of the table."""
    return [event for (source, event) in TRANSITIONS if source is state]


def next_state(state: State, event: Event, *, where: str | None = None) -> State:
    """The state after `event`.

    Args:
        state: The release's present state.
        event: What happens.
        where: Model and version, for the error.

    Raises:
        IllegalMoveError: `state` does not allow `event`; the error lists what it allows.
    """
    target = TRANSITIONS.get((state, event))
    if target is None:
        legal = ", ".join(legal_events(state)) or "none; this state is final"
        raise IllegalMoveError(
            f"{event} is not possible in state {state}.", where=where, hint=f"Legal events here: {legal}."
        )
    return target
