"""What a person does with releases, as plain functions that return JSON values: the door of command line and service.

Every function opens ledger and registry from the environment; `actor` is who acts, and stays on the ledger beside the
account and machine under which it was written.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from components.release_gate import approvals, office, promotion
from components.release_gate.drill import run_drill
from components.release_gate.promotion import Outcome
from components.release_gate.rehearsal import cleared_on_other_terms
from components.release_gate.states import Event, State
from components.shared.errors import InputError
from components.shared.review_key import ReviewKey

__all__ = [
    "abandon",
    "approve",
    "break_glass",
    "drill",
    "history",
    "last_rollback",
    "reject",
    "repair",
    "rollback",
    "verify",
]


def history(model: str) -> list[dict[str, Any]]:
    """Every entry of a model's ledger, oldest first.

    Raises:
        InputError: The ledger does not know the model.
    """
    opened = office.open_office()
    _require_known(opened, model)
    return office.history(model, office=opened)


def verify(model: str) -> dict[str, Any]:
    """Replays a model's ledger: `ok`, `entries`, `head` (sequence and hash), `problems`.

    Of each release that was cleared, the approvals that its verdict asked for are compared with the policy and the
    evidence that were kept beside the version.

    Raises:
        InputError: Neither the ledger nor its anchors know the model.
    """
    opened = office.open_office()
    report = office.verify(model, office=opened)
    if not report.entries and report.sound:  # had it been wiped, the anchors would know
        _require_known(opened, model)
    problems = report.problems + cleared_on_other_terms(opened.registry, opened.ledger.view(model))
    head = {"sequence": report.head[0], "hash": report.head[1]}
    return {"ok": not problems, "entries": report.entries, "head": head, "problems": problems}


def repair(model: str) -> dict[str, Any]:
    """Makes MLflow's aliases what the ledger says: `changed`, a line an alias."""
    opened = office.open_office()
    _require_known(opened, model)
    return {"changed": office.repair(model, office=opened)}


def approve(
    model: str,
    version: str,
    *,
    actor: str,
    reason: str,
    binding: str | None = None,
    key: ReviewKey | None = None,
    signed_in: bool = False,
) -> dict[str, Any]:
    """Approves a release; with the last approval that its policy asks for, it is promoted.

    Args:
        model: Registered model.
        version: The version that awaits approval.
        actor: Who approves.
        reason: Why.
        binding: Of the verdict that the actor looked at; another one by now is an error.
        key: Of the review service: who rated the evidence, under a name made of it, does not approve the release.
        signed_in: The actor is signed in at that service; else the name was merely typed.
    """
    opened = office.open_office()
    _require_known(opened, model, version)
    desk = approvals.Desk(key, signed_in)
    approvals.approve(model, version, actor, reason, binding=binding, desk=desk, office=opened)
    return _as_dict(promotion.promote(model, version, actor, office=opened))


def reject(model: str, version: str, *, actor: str, reason: str) -> dict[str, Any]:
    """Rejects a release, for good."""
    opened = office.open_office()
    _require_known(opened, model, version)
    state = approvals.reject(model, version, actor, reason, office=opened)
    return {"model": model, "version": version, "state": str(state), "message": f"Version {version} is rejected."}


def break_glass(model: str, version: str, *, actor: str, reason: str) -> dict[str, Any]:
    """Puts a version live against the gate."""
    opened = office.open_office()
    _require_known(opened, model, version)
    return _as_dict(promotion.break_glass(model, version, actor, reason, office=opened))


def rollback(model: str, *, actor: str, reason: str, version: str | None = None) -> dict[str, Any]:
    """Takes the live version back. `version` is the one that is champion again, `taken_back` the one that was.

    Args:
        model: Registered model.
        actor: Who does it.
        reason: Why.
        version: The version to take back; by default whichever is live.
    """
    opened = office.open_office()
    _require_known(opened, model, version)
    outcome = promotion.rollback(model, actor, reason, version=version, office=opened)
    return _as_dict(outcome) | {"version": outcome.champion, "taken_back": outcome.version}


def drill(model: str, *, actor: str) -> dict[str, Any]:
    """Promotes and rolls back on a scratch model beside `model`, and measures it (see `release_gate.drill`)."""
    opened = office.open_office()
    _require_known(opened, model)
    return run_drill(model, actor=actor, office=opened)


def abandon(model: str, version: str, *, actor: str, reason: str) -> dict[str, Any]:
    """Gives up a promotion, or a rollback of the live version, that cannot be ended."""
    opened = office.open_office()
    _require_known(opened, model, version)
    state: State = promotion.abandon(model, version, actor, reason, office=opened)
    return {"model": model, "version": version, "state": str(state), "message": f"The move of {version} is given up."}


def last_rollback(model: str) -> dict[str, Any] | None:
    """The latest rollback by the ledger: `version` restored, `taken_back`, `seconds` from intent to end, `reason`."""
    view = office.open_office().ledger.view(model)
    ended = next((entry for entry in reversed(view.entries) if entry.event == Event.ROLLED_BACK), None)
    if ended is None:
        return None
    begun = next(
        entry
        for entry in reversed(view.entries)
        if entry.event == Event.BEGIN_ROLLBACK and entry.version == ended.version and entry.sequence < ended.sequence
    )
    seconds = (datetime.fromisoformat(ended.time) - datetime.fromisoformat(begun.time)).total_seconds()
    return {
        "version": ended.data["restored"],
        "taken_back": ended.version,
        "seconds": seconds,
        "reason": ended.reason,
        "actor": ended.actor,
    }


def _require_known(opened: office.Office, model: str, version: str | None = None) -> None:
    """Tells a mistyped name from a model or version that is there."""
    versions = opened.ledger.view(model).versions
    if not versions:
        known = ", ".join(opened.ledger.models()) or "none"
        raise InputError(f"the ledger does not know model {model!r}.", where="ledger", hint=f"Models there: {known}.")
    if version is not None and version not in versions:
        known = ", ".join(f"{number} ({state})" for number, state in versions.items())
        raise InputError(f"has no version {version!r}.", where=f"model {model}", hint=f"Its versions: {known}.")


def _as_dict(outcome: Outcome) -> dict[str, Any]:
    return {**outcome.__dict__, "state": str(outcome.state)}
