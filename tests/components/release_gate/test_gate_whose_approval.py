"""Whose approval is it? What somebody tries who wants a model live alone, and has a shell on the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tiny_office import KEY, SIGNED_IN, judge_weights
from tiny_release import MODEL

from components.release_gate.approvals import ApprovalError, Desk, approvals, approve
from components.release_gate.entries import Move
from components.release_gate.office import Office, verify
from components.release_gate.promotion import PromotionError, promote, rollback
from components.release_gate.states import Event, State
from components.release_gate.verdict import Verdict
from components.shared.accounts import account
from components.shared.errors import InputError
from components.shared.files import canonical_json
from components.shared.ledger_table import database_url, open_engine
from components.shared.notices import open_outbox
from components.shared.review_key import ReviewKey, register_key, registered_key

OWN_KEY = ReviewKey("a secret that somebody made up to be nobody's rater")


@pytest.fixture
def another_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate ran under another account than the commands of this test."""
    monkeypatch.setattr("components.release_gate.ledger.account", lambda: "pipeline-runner@cluster")


def _now_i_am(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    for where in ("ledger", "approvals"):
        monkeypatch.setattr(f"components.release_gate.{where}.account", lambda: found)


def test_production_takes_no_approval_of_the_command_line(office: Office, tmp_path: Path) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=2)
    for desk in (Desk(), Desk(KEY)):
        with pytest.raises(ApprovalError, match=r"takes approvals on the release's page only"):
            approve(MODEL, version, "alice", "good", desk=desk, office=office)
    assert approvals(office.ledger.view(MODEL), version) == []


def test_one_account_is_one_person_whatever_names_it_gives(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _now_i_am(monkeypatch, "runner@cluster")
    version = judge_weights(office, tmp_path, "one", approvals=2, command_line=True)
    _now_i_am(monkeypatch, "eve@laptop")
    assert approve(MODEL, version, "alice", "good", office=office) is State.AWAITING_APPROVAL
    _now_i_am(monkeypatch, "Eve@another-machine")
    with pytest.raises(ApprovalError, match="approved this release before, as alice: an account is one person"):
        approve(MODEL, version, "bob", "good", office=office)
    _now_i_am(monkeypatch, "bob@laptop")
    assert approve(MODEL, version, "bob", "good", office=office) is State.APPROVED
    assert promote(MODEL, version, "pipeline", office=office).changed


def test_the_account_that_asked_for_a_release_does_not_approve_it_under_another_name(
    office: Office, tmp_path: Path
) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=1, command_line=True)
    with pytest.raises(ApprovalError, match="asked for this release before, as pipeline"):
        approve(MODEL, version, "somebody else", "good", office=office)
    assert approve(MODEL, version, "mia", "good", desk=SIGNED_IN, office=office) is State.APPROVED


@pytest.mark.usefixtures("another_account")
def test_a_rater_with_a_key_of_his_own_is_told_that_it_is_another(office: Office, tmp_path: Path) -> None:
    version = judge_weights(
        office, tmp_path, "one", approvals=1, command_line=True, raters=(KEY.pseudonym("eve"), "rater-x")
    )
    with pytest.raises(ApprovalError, match="eve rated the evidence"):
        approve(MODEL, version, "eve", "good", desk=Desk(KEY), office=office)
    for desk in (Desk(OWN_KEY), Desk(OWN_KEY, signed_in=True)):
        with pytest.raises(ApprovalError, match=f"key at hand is {OWN_KEY.public[:16]}.*{KEY.public[:16]}"):
            approve(MODEL, version, "eve", "good", desk=desk, office=office)
    with pytest.raises(ApprovalError, match="cannot be told whether eve rated"):
        approve(MODEL, version, "eve", "good", office=office)


@pytest.mark.parametrize("signature", [None, "", "00" * 64, "no hex", OWN_KEY])
def test_rows_written_past_the_gate_are_no_approvals(office: Office, tmp_path: Path, signature: object) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=2)
    asked = office.ledger.view(MODEL).last(version, Event.AWAIT_APPROVAL)
    assert asked is not None

    def forged(actor: str) -> Move:
        details = {"binding": asked.data["binding"]}
        if signature is OWN_KEY:
            statement = {"verdict": asked.hash, "version": version, "actor": actor, "reason": "good"}
            details["signature"] = OWN_KEY.sign(statement)
        elif signature is not None:
            details["signature"] = str(signature)
        return Move(version, Event.APPROVE, actor, "good", details=details)

    clear = Move(version, Event.CLEAR, "bob", "2 of 2.", details={"binding": asked.data["binding"]})
    office.record(MODEL, lambda _: [forged("alice"), forged("bob"), clear])
    with pytest.raises(PromotionError, match="cleared with 0 of 2 approvals that count"):
        promote(MODEL, version, "bob", office=office)
    assert verify(MODEL, office=office).problems == [
        f"entry {asked.sequence + 3} clears version {version} with 0 of 2 approvals that count."
    ]


def test_a_signature_counts_for_its_verdict_and_its_person_only(office: Office, tmp_path: Path) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=2)
    approve(MODEL, version, "alice", "good", desk=SIGNED_IN, office=office)
    genuine = office.ledger.view(MODEL).last(version, Event.APPROVE)
    assert genuine is not None
    copied = Move(version, Event.APPROVE, "bob", "good", details=genuine.data)
    office.record(MODEL, lambda _: [copied])
    assert approvals(office.ledger.view(MODEL), version) == ["alice"]
    judge_weights(office, tmp_path, "one", approvals=2, evidence="new")
    office.record(MODEL, lambda _: [Move(version, Event.APPROVE, "alice", "good", details=genuine.data)])
    assert approvals(office.ledger.view(MODEL), version) == []


def test_names_that_only_look_different_are_one_person(office: Office, tmp_path: Path) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=2)
    for name in ("alice", " ALICE", "ａｌｉｃｅ"):
        assert approve(MODEL, version, name, "good", desk=SIGNED_IN, office=office) is State.AWAITING_APPROVAL
    assert approvals(office.ledger.view(MODEL), version) == ["alice"]


def test_every_entry_says_under_which_account_of_which_machine_it_was_written(office: Office, tmp_path: Path) -> None:
    for weights in ("one", "two"):
        version = judge_weights(office, tmp_path, weights)
        promote(MODEL, version, "pipeline", office=office)
    rollback(MODEL, "the chief", "as I say", office=office)
    entries = office.ledger.view(MODEL).entries
    assert {entry.data["written_by"] for entry in entries} == {account()}
    assert entries[-1].actor == "the chief"


def test_a_service_with_another_secret_does_not_start_unless_it_says_why_and_everybody_hears(office: Office) -> None:
    engine = open_engine(database_url())
    with pytest.raises(InputError, match="Raters would be strangers who vote again"):
        register_key(engine, OWN_KEY)
    assert registered_key(engine) == KEY.public
    register_key(engine, OWN_KEY, replace="the secret was in a chat")
    register_key(engine, OWN_KEY)
    assert registered_key(engine) == OWN_KEY.public
    (told,) = open_outbox().undelivered()
    assert told.kind == "review_key_replaced"
    assert "the secret was in a chat" in told.body["text"]


def test_after_a_change_of_key_a_release_is_judged_again_and_old_approvals_do_not_count(
    office: Office, tmp_path: Path
) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=2)
    approve(MODEL, version, "alice", "good", desk=SIGNED_IN, office=office)
    register_key(open_engine(database_url()), OWN_KEY, replace="the old one leaked")
    with pytest.raises(ApprovalError, match="Have the gate judge the release again"):
        approve(MODEL, version, "bob", "good", desk=Desk(OWN_KEY, signed_in=True), office=office)
    assert judge_weights(office, tmp_path, "one", approvals=2) == version
    assert approvals(office.ledger.view(MODEL), version) == []
    assert approve(MODEL, version, "bob", "good", desk=Desk(OWN_KEY, signed_in=True), office=office) is (
        State.AWAITING_APPROVAL
    )


def test_a_release_that_was_judged_before_any_service_was_started_is_judged_again(
    office: Office, tmp_path: Path
) -> None:
    engine = open_engine(database_url())
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE review_keys"))  # as a database of an earlier version has none
    version = judge_weights(office, tmp_path, "one", approvals=1)
    register_key(engine, KEY)
    with pytest.raises(ApprovalError, match="no review service had been started"):
        approve(MODEL, version, "alice", "good", desk=SIGNED_IN, office=office)
    judge_weights(office, tmp_path, "one", approvals=1)
    assert approve(MODEL, version, "alice", "good", desk=SIGNED_IN, office=office) is State.APPROVED


def test_where_names_may_be_typed_an_approval_of_the_page_counts_without_a_known_key_too(
    office: Office, tmp_path: Path
) -> None:
    with open_engine(database_url()).begin() as connection:
        connection.execute(text("DROP TABLE review_keys"))
    version = judge_weights(office, tmp_path, "one", approvals=1, command_line=True)
    assert approve(MODEL, version, "alice", "good", desk=SIGNED_IN, office=office) is State.APPROVED
    assert promote(MODEL, version, "alice", office=office).changed
    assert verify(MODEL, office=office).problems == []


def _written_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger's rows are as a gate wrote them that knew neither keys nor accounts."""

    def without_account(value: dict[str, Any]) -> str:
        return canonical_json({name: part for name, part in value.items() if name != "written_by"})

    monkeypatch.setattr("components.release_gate.ledger.canonical_json", without_account)


def _forgotten_key(office: Office, version: str) -> None:
    """Somebody writes a verdict that names no key, and the approvals of two invented people."""
    old = {"binding": "b", "approvals_required": 2, "champion": "", "expires_at": "2999-01-01T00:00:00+00:00"}
    given = [Move(version, Event.APPROVE, name, "good", details={"binding": "b"}) for name in ("alice", "bob")]
    moves = [
        Move(version, Event.COLLECT, "gate", "again"),
        Move(version, Event.AWAIT_APPROVAL, "gate", "good", details=old),
        *given,
        Move(version, Event.CLEAR, "bob", "2 of 2.", details={"binding": "b"}),
    ]
    office.record(MODEL, lambda _: moves)


def test_a_verdict_of_today_that_names_no_key_opens_nothing(office: Office, tmp_path: Path) -> None:
    version = judge_weights(office, tmp_path, "one", verdict=Verdict.HOLD)
    _forgotten_key(office, version)
    assert "0 of 2 approvals" in verify(MODEL, office=office).problems[0]
    with pytest.raises(PromotionError, match="0 of 2 approvals"):
        promote(MODEL, version, "bob", office=office)


def test_a_promotion_that_was_begun_past_the_gate_is_not_ended(office: Office, tmp_path: Path) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=2)
    moves = [
        Move(version, Event.CLEAR, "bob", "2 of 2.", details={"binding": "b"}),
        Move(version, Event.PROMOTE, "bob", "approved", details={"binding": "b", "replaces": None}),
    ]
    office.record(MODEL, lambda _: moves)
    with pytest.raises(PromotionError, match="0 of 2 approvals"):
        promote(MODEL, version, "bob", office=office)


def test_what_was_approved_under_a_key_that_leaked_is_neither_approved_further_nor_promoted(
    office: Office, tmp_path: Path
) -> None:
    one, two = (judge_weights(office, tmp_path, name, approvals=1) for name in ("one", "two"))
    approve(MODEL, one, "alice", "good", desk=SIGNED_IN, office=office)
    register_key(open_engine(database_url()), OWN_KEY, replace="the old one leaked")
    with pytest.raises(PromotionError, match="key was replaced"):
        promote(MODEL, one, "alice", office=office)
    with pytest.raises(ApprovalError, match="key was replaced"):
        approve(MODEL, two, "ghost", "good", desk=SIGNED_IN, office=office)
    assert verify(MODEL, office=office).problems == [], "it was right when it was done"
    judge_weights(office, tmp_path, "one", approvals=1)
    assert office.ledger.view(MODEL).state(one) is State.AWAITING_APPROVAL
    approve(MODEL, one, "alice", "good", desk=Desk(OWN_KEY, signed_in=True), office=office)
    assert promote(MODEL, one, "alice", office=office).changed


def test_who_rated_before_a_change_of_key_cannot_be_told_and_so_nobody_approves(office: Office, tmp_path: Path) -> None:
    raters = (KEY.pseudonym("bob"),)
    judge_weights(office, tmp_path, "one", approvals=1, raters=raters)
    register_key(open_engine(database_url()), OWN_KEY, replace="lost")
    version = judge_weights(office, tmp_path, "one", approvals=1, raters=raters)
    with pytest.raises(ApprovalError, match="cannot be told"):
        approve(MODEL, version, "bob", "good", desk=Desk(OWN_KEY, signed_in=True), office=office)


def test_a_login_is_the_person_whose_name_was_typed(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another_account: None
) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=2, command_line=True)
    with pytest.raises(ApprovalError, match="asked for this release"):
        approve(MODEL, version, "pipeline@example.com", "good", desk=SIGNED_IN, office=office)
    approve(MODEL, version, "mia@example.com", "good", desk=SIGNED_IN, office=office)
    _now_i_am(monkeypatch, "mia@laptop")
    with pytest.raises(ApprovalError, match="this is the account of mia"):
        approve(MODEL, version, "invented", "good", office=office)


def test_every_change_of_key_is_told(office: Office) -> None:
    engine = open_engine(database_url())
    for key in (OWN_KEY, KEY, OWN_KEY):
        register_key(engine, key, replace="lost")
    assert len(open_outbox().undelivered()) == 3


def test_approvals_of_a_gate_that_knew_no_keys_still_count(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _written_long_ago(patch)
        version = judge_weights(office, tmp_path, "one", verdict=Verdict.HOLD)
        _forgotten_key(office, version)
    assert verify(MODEL, office=office).problems == []
    assert promote(MODEL, version, "bob", office=office).changed


def test_who_imported_the_votes_does_not_approve_what_they_say(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another_account: None
) -> None:
    version = judge_weights(office, tmp_path, "one", approvals=1, command_line=True, importers=("Mia@example.com",))
    for actor, desk in (("mia@example.com", SIGNED_IN), (" MIA", SIGNED_IN), ("mia", Desk())):
        with pytest.raises(ApprovalError, match=r"Mia@example\.com imported judgements"):
            approve(MODEL, version, actor, "good", desk=desk, office=office)
    _now_i_am(monkeypatch, "mia@laptop")
    with pytest.raises(ApprovalError, match="imported judgements"):
        approve(MODEL, version, "invented", "good", office=office)
    assert approve(MODEL, version, "max", "good", desk=SIGNED_IN, office=office) is State.APPROVED
