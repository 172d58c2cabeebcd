"""People decide: approvals, rejections, and the glass."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tiny_office import KEY, SIGNED_IN, check_agreement, judge_weights, release_weights
from tiny_release import MODEL

from components.release_gate import operations
from components.release_gate.approvals import ApprovalError, approvals, approve, reject
from components.release_gate.office import Office
from components.release_gate.promotion import break_glass, promote, rollback
from components.release_gate.states import IllegalMoveError, State
from components.release_gate.verdict import Verdict
from components.shared.errors import InputError
from components.shared.ledger_table import open_engine


def test_two_people_approve_and_not_the_one_who_asked(office: Office, tmp_path: Path) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=2)
    waiting = promote(MODEL, version, "pipeline", office=office)
    assert (waiting.changed, waiting.state) == (False, State.AWAITING_APPROVAL)
    assert "0 of 2" in waiting.message
    with pytest.raises(ApprovalError, match="asked for this release"):
        approve(MODEL, version, "Pipeline ", "mine", desk=SIGNED_IN, office=office)
    assert approve(MODEL, version, "alice", "good", desk=SIGNED_IN, office=office) is State.AWAITING_APPROVAL
    assert approve(MODEL, version, "Alice", "good again", desk=SIGNED_IN, office=office) is State.AWAITING_APPROVAL
    assert approve(MODEL, version, "bob", "good too", desk=SIGNED_IN, office=office) is State.APPROVED
    assert approve(MODEL, version, "bob", "good too", desk=SIGNED_IN, office=office) is State.APPROVED
    assert promote(MODEL, version, "pipeline", office=office).changed
    check_agreement(office, "1")


def test_with_no_approval_needed_the_ledger_says_that_nobody_looked(office: Office, tmp_path: Path) -> None:
    version = judge_weights(office, tmp_path, "one")
    cleared = office.ledger.view(MODEL).last(version)
    assert cleared is not None
    assert cleared.actor == "policy production"
    assert "no person looked" in cleared.reason
    assert "APPROVED BY POLICY" in cleared.reason


def test_new_evidence_voids_the_approvals(office: Office, tmp_path: Path) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=2)
    approve(MODEL, version, "alice", "good", desk=SIGNED_IN, office=office)
    assert judge_weights(office, tmp_path, "one", approvals=2, evidence="new") == version
    assert approve(MODEL, version, "bob", "good", desk=SIGNED_IN, office=office) is State.AWAITING_APPROVAL


EARLIER, LATER = "2026-01-01T10:00:00+00:00", "2026-01-01T12:00:00+00:00"


def test_a_run_that_was_held_up_does_not_undo_a_verdict_on_newer_evidence(office: Office, tmp_path: Path) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=2, evidence_at=LATER, evidence="all votes")
    approve(MODEL, version, "alice", "good", desk=SIGNED_IN, office=office)
    late = {"verdict": Verdict.HOLD, "approvals": 2, "evidence_at": EARLIER, "evidence": "few votes"}
    assert judge_weights(office, tmp_path, "one", **late) == version
    view = office.ledger.view(MODEL)
    assert (view.state(version), approvals(view, version)) == (State.AWAITING_APPROVAL, ["alice"])
    judge_weights(office, tmp_path, "one", **{**late, "evidence_at": LATER})
    assert office.ledger.view(MODEL).state(version) is State.HELD, "as new as the last one: judged anew"


@pytest.mark.parametrize("malformed", ["", "yesterday", "2999-01-01T00:00:00+00:00", "2026-01-01T10:00:00"])
def test_a_time_of_the_evidence_that_says_nothing_keeps_no_later_verdict_off_the_ledger(
    office: Office, tmp_path: Path, malformed: str
) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=1, evidence_at=malformed)
    now = datetime.now(UTC).isoformat()
    judge_weights(office, tmp_path, "one", verdict=Verdict.BLOCK, approvals=1, evidence_at=now, evidence="new")
    assert office.ledger.view(MODEL).state(version) is State.BLOCKED


def test_an_approval_for_another_champion_is_superseded(office: Office, tmp_path: Path) -> None:
    release_weights(office, tmp_path, "one")
    version = judge_weights(office, tmp_path, "late", approvals=1)
    release_weights(office, tmp_path, "two")
    with pytest.raises(ApprovalError, match="another one"):
        approve(MODEL, version, "alice", "good", desk=SIGNED_IN, office=office)
    assert office.ledger.view(MODEL).state(version) is State.SUPERSEDED


def test_an_old_verdict_expires(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=1)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz or UTC) + timedelta(days=15)

    monkeypatch.setattr("components.release_gate.approvals.datetime", Later)
    with pytest.raises(ApprovalError, match="valid until"):
        approve(MODEL, version, "alice", "good", desk=SIGNED_IN, office=office)
    assert office.ledger.view(MODEL).state(version) is State.EXPIRED


def test_one_rejection_is_final(office: Office, tmp_path: Path) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=2)
    approve(MODEL, version, "alice", "good", desk=SIGNED_IN, office=office)
    assert reject(MODEL, version, "carol", "rude", office=office) is State.REJECTED
    assert reject(MODEL, version, "carol", "rude", office=office) is State.REJECTED
    with pytest.raises(IllegalMoveError, match="final"):
        approve(MODEL, version, "bob", "but", desk=SIGNED_IN, office=office)
    with pytest.raises(IllegalMoveError, match="final"):
        break_glass(MODEL, version, "bob", "but", office=office)
    assert judge_weights(office, tmp_path, "one", approvals=2, evidence="new") == version
    assert office.ledger.view(MODEL).state(version) is State.REJECTED


@pytest.mark.parametrize(("actor", "reason"), [("", "why"), ("bob", ""), ("  ", "why"), ("bob", " ")])
def test_breaking_the_glass_and_rolling_back_need_a_name_and_a_reason(
    office: Office, tmp_path: Path, actor: str, reason: str
) -> None:
    blocked = judge_weights(office, tmp_path, "one", verdict=Verdict.BLOCK)
    with pytest.raises(ApprovalError):
        break_glass(MODEL, blocked, actor, reason, office=office)
    with pytest.raises(ApprovalError):
        rollback(MODEL, actor, reason, office=office)
    check_agreement(office, None)


def test_operations_answer_as_the_command_line_needs(office: Office, tmp_path: Path) -> None:
    release_weights(office, tmp_path, "one")
    version = judge_weights(office, tmp_path, "two", approvals=2)
    first = operations.approve(MODEL, version, actor="alice", reason="good", key=KEY, signed_in=True)
    assert "1 of 2" in first["message"]
    second = operations.approve(MODEL, version, actor="bob", reason="good", key=KEY, signed_in=True)
    assert second["message"] == "Version 2 is champion; version 1 is its predecessor."
    back = operations.rollback(MODEL, actor="alice", reason="harm")
    assert (back["version"], back["taken_back"]) == ("1", "2")
    assert operations.verify(MODEL)["ok"]
    assert {"sequence", "time", "version", "event", "from_state", "to_state", "actor", "reason"} <= set(
        operations.history(MODEL)[0]
    )


def test_a_mistyped_model_or_version_is_told_from_one_that_is_there(office: Office, tmp_path: Path) -> None:
    version = release_weights(office, tmp_path, "one")
    for act in (operations.history, operations.verify, operations.repair):
        with pytest.raises(InputError, match=f"does not know model 'typo'. Models there: {MODEL}"):
            act("typo")
    person = {"actor": "alice", "reason": "because"}
    for act in (operations.approve, operations.reject, operations.break_glass, operations.abandon):
        with pytest.raises(InputError, match=r"has no version '9'. Its versions: 1 \(SOAKING\)"):
            act(MODEL, "9", **person)
    with pytest.raises(InputError, match="does not know model"):
        operations.rollback("typo", **person)
    with pytest.raises(InputError, match="does not know model"):
        operations.drill("typo", actor="alice")
    with pytest.raises(IllegalMoveError, match="is SOAKING: it is neither being promoted nor being rolled back"):
        operations.abandon(MODEL, version, **person)


def test_a_ledger_that_was_wiped_is_no_mistyped_name(office: Office, tmp_path: Path) -> None:
    release_weights(office, tmp_path, "one")
    engine = open_engine(f"sqlite:///{tmp_path / 'plumbline.db'}")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM release_ledger"))
    assert not operations.verify(MODEL)["ok"]


def test_an_approval_of_a_held_release_says_what_it_waits_for(office: Office, tmp_path: Path) -> None:
    version = judge_weights(office, tmp_path, "one", verdict=Verdict.HOLD)
    with pytest.raises(IllegalMoveError, match=r"state HELD, for the gate waits for evidence: because.*awaits votes"):
        approve(MODEL, version, "alice", "good", office=office)
