"""The gate from artifacts to champion, over a real MLflow registry and ledger."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tiny_office import KEY
from tiny_release import MODEL, Evidence, digest_of_policy, make_evidence

from components.release_gate import component as shells
from components.release_gate import operations
from components.release_gate.approvals import ApprovalError, reject
from components.release_gate.live import resolve_live_models
from components.release_gate.office import open_office
from components.release_gate.promotion import PromotionError
from components.release_gate.stage import run_gate, run_keep_champion, run_promote, run_rollback
from components.shared.artifacts import read_artifact
from components.shared.champion import resolve_champion
from components.shared.errors import ArtifactError, InputError, PlumblineError
from components.shared.files import read_json
from components.shared.ledger_table import database_url, open_engine
from components.shared.notices import open_outbox
from components.shared.review_key import register_key


@pytest.fixture(autouse=True)
def services(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", f"sqlite:///{tmp_path / 'plumbline.db'}")
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", str(tmp_path / "anchor"))
    register_key(open_engine(database_url()), KEY)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    monkeypatch.delenv("PLUMBLINE_ACTOR", raising=False)


def _write_policy(root: Path, **sections: Any) -> str:
    """The demo policy with few bootstrap draws and some thresholds replaced."""
    values: dict[str, Any] = {"extends": "demo", "name": "test", "divergence": {"bootstrap_draws": 200}}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    path = root / ("-".join(["policy", *sections]) + ".yaml")
    path.write_text(yaml.safe_dump(values))
    return str(path)


def _gate(root: Path, given: Evidence, name: str = "decision", **overrides: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "output": str(root / name),
        "mode": "candidate",
        "policy": _write_policy(root),
        "model_name": MODEL,
        "seed": 0,
    }
    return run_gate(**given.as_arguments(**{**arguments, **overrides}))


def _promote_first(root: Path) -> str:
    """Makes a first champion; returns its digest."""
    evidence = make_evidence(root / "first", weights="first")
    _gate(root, evidence, "first-decision")
    run_promote(decision=str(root / "first-decision"))
    return digest_of_policy(evidence.candidate)


def _decision(root: Path, name: str = "decision") -> dict[str, Any]:
    return read_json(read_artifact(root / name, "decision").file("decision.json"))


def test_a_good_candidate_is_promoted_and_the_decision_says_why(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "good", rater_kind="simulated")
    result = _gate(tmp_path, evidence)
    assert (result["verdict"], result["promote"], result["roll_back"]) == ("PROMOTE", True, False)
    assert (result["version"], result["state"], result["champion"]) == ("1", "APPROVED", "")
    decision = _decision(tmp_path)
    assert {
        "verdict",
        "mode",
        "reasons",
        "criteria",
        "model_name",
        "version",
        "digests",
        "policy",
        "divergence",
    } <= set(decision)
    assert decision["digests"]["candidate"] == digest_of_policy(evidence.candidate)
    assert not any("NOT checked" in reason for reason in decision["reasons"])
    assert "raters: simulated votes are accepted: yes (production: no)" in decision["policy"]["looser_than_production"]
    assert set(decision["divergence"]) == {
        *("reward_win_rate", "human_win_rate", "gap", "ci95", "slope", "human_ci95", "decided_share")
    }
    promoted = run_promote(decision=str(tmp_path / "decision"))
    assert promoted["promoted"]
    champion = resolve_champion(MODEL)
    assert champion is not None
    assert champion.digest == digest_of_policy(evidence.candidate)
    assert run_promote(decision=str(tmp_path / "decision"))["changed"] is False


def test_a_candidate_compared_with_another_policy_than_it_was_trained_from_is_never_promoted(tmp_path: Path) -> None:
    result = _gate(tmp_path, make_evidence(tmp_path / "weak", trained_from="s" * 64))
    assert (result["verdict"], result["promote"], result["state"]) == ("ERROR", False, "ERROR")
    assert "it is compared with another one" in _decision(tmp_path)["reasons"][0]


def test_a_candidate_that_does_not_name_what_it_was_trained_from_is_judged_and_that_is_said(tmp_path: Path) -> None:
    result = _gate(tmp_path, make_evidence(tmp_path / "good", trained_from=None))
    assert result["verdict"] == "PROMOTE"
    reason = _decision(tmp_path)["reasons"][-1]
    assert reason.startswith("NOT checked: whether the reference is the policy that the candidate was trained from")
    asked = next(entry for entry in operations.history(MODEL) if entry["event"] == "await_approval")
    assert reason in asked["reason"]


def test_production_holds_simulated_votes_and_asks_for_people(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "good", rater_kind="simulated")
    result = _gate(tmp_path, evidence, policy="production", requested_by="max")
    assert (result["verdict"], result["promote"], result["state"]) == ("HOLD", False, "HELD")
    assert _decision(tmp_path)["reasons"] == [
        "Evidence missing (raters, kind): Votes of simulated raters do not count under this policy: "
        "collect votes of people."
    ]


def test_production_passes_people_and_then_waits_for_two_of_them(tmp_path: Path) -> None:
    result = _gate(tmp_path, make_evidence(tmp_path / "good"), policy="production", requested_by="max")
    assert (result["verdict"], result["state"]) == ("PROMOTE", "AWAITING_APPROVAL")
    waiting = run_promote(decision=str(tmp_path / "decision"))
    assert waiting["promoted"] is False
    assert "awaits approval: 0 of 2" in waiting["message"]
    operations.approve(MODEL, "1", actor="alice", reason="good", key=KEY, signed_in=True)
    operations.approve(MODEL, "1", actor="bob", reason="good", key=KEY, signed_in=True)
    assert run_promote(decision=str(tmp_path / "decision"))["promoted"]


@pytest.mark.parametrize(
    ("actor", "release", "said"),
    [
        (None, {"approvals_required": 2, "require_known_requester": False}, True),
        ("carol", {"approvals_required": 2, "require_known_requester": False}, False),
        (None, {"approvals_required": 0}, False),
    ],
)
def test_that_the_requester_is_unknown_is_said_where_people_are_asked_to_approve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, actor: str | None, release: dict[str, Any], said: bool
) -> None:
    if actor:
        monkeypatch.setenv("PLUMBLINE_ACTOR", actor)
    _gate(tmp_path, make_evidence(tmp_path / "good"), policy=_write_policy(tmp_path, release=release))
    words = "The requester is not known (neither release_gate.requested_by nor PLUMBLINE_ACTOR was set)"
    assert (words in " ".join(_decision(tmp_path)["reasons"])) is said
    asked = next(entry for entry in operations.history(MODEL) if entry["event"] == "await_approval")
    assert (words in asked["reason"]) is said


def test_production_does_not_pass_over_a_requester_whom_nobody_knows(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "good")
    nobody = _gate(tmp_path, evidence, policy="production")
    assert (nobody["verdict"], nobody["promote"], nobody["state"]) == ("HOLD", False, "HELD")
    (reason,) = _decision(tmp_path)["reasons"]
    assert "Nobody is known to have asked for this release" in reason
    assert _decision(tmp_path)["checkpoint_offer"] is None, "the candidate is not what is wrong"
    told = _gate(tmp_path, evidence, "told", policy="production", requested_by="max@example.com")
    assert (told["verdict"], told["version"], told["state"]) == ("PROMOTE", "1", "AWAITING_APPROVAL")
    assert _decision(tmp_path, "told")["requester"] == "max@example.com"
    again = _gate(tmp_path, make_evidence(tmp_path / "more", seed=4), "again", policy="production")
    assert again["verdict"] == "PROMOTE", "the ledger knows who asked, also where a later run does not"
    with pytest.raises(ApprovalError, match="max asked for this release"):
        operations.approve(MODEL, "1", actor="max", reason="mine", key=KEY, signed_in=True)


def test_whoever_ran_the_gate_for_somebody_else_does_not_approve_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUMBLINE_ACTOR", "eve")
    _gate(tmp_path, make_evidence(tmp_path / "good"), policy="production", requested_by="max")
    for name in ("eve", "max"):
        with pytest.raises(ApprovalError, match=f"{name} asked for this release"):
            operations.approve(MODEL, "1", actor=name, reason="mine", key=KEY, signed_in=True)


def test_whoever_has_a_release_of_somebody_elses_judged_again_does_not_approve_it(tmp_path: Path) -> None:
    _gate(tmp_path, make_evidence(tmp_path / "good"), policy="production", requested_by="max")
    _gate(tmp_path, make_evidence(tmp_path / "more", seed=4), "again", policy="production", requested_by="eve")
    for name in ("eve", "max"):
        with pytest.raises(ApprovalError, match=f"{name} asked for this release"):
            operations.approve(MODEL, "1", actor=name, reason="mine", key=KEY, signed_in=True)
    assert operations.approve(MODEL, "1", actor="ann", reason="read it", key=KEY, signed_in=True)["state"]


def test_an_overoptimised_candidate_is_blocked_and_the_champion_stays(tmp_path: Path) -> None:
    champion = _promote_first(tmp_path)
    evidence = make_evidence(tmp_path / "bad", story="overoptimized", weights="bad", champion_digest=champion)
    result = _gate(tmp_path, evidence)
    assert (result["verdict"], result["promote"], result["version"], result["champion"]) == ("BLOCK", False, "2", "1")
    reasons = _decision(tmp_path)["reasons"]
    assert any("learned to please the reward and not people" in reason for reason in reasons)
    assert "Earlier checkpoint step-0010" in reasons[-1]
    kept = run_keep_champion(decision=str(tmp_path / "decision"))
    assert kept["message"].startswith("BLOCK. Version 2 of tiny: Version 1 stays champion.")
    with pytest.raises(PromotionError, match="the verdict is BLOCK"):
        run_promote(decision=str(tmp_path / "decision"))
    live = resolve_champion(MODEL)
    assert live is not None
    assert live.digest == champion


def test_forced_live_the_soak_evidence_rolls_it_back(tmp_path: Path) -> None:
    champion = _promote_first(tmp_path)
    bad = make_evidence(tmp_path / "bad", story="overoptimized", weights="bad", champion_digest=champion)
    _gate(tmp_path, bad)
    operations.break_glass(MODEL, "2", actor="demo-operator", reason="because I can")
    soak = make_evidence(
        tmp_path / "soak", story="overoptimized", weights="bad", reference_digest=champion, rater_kind="simulated"
    )
    result = _gate(tmp_path, soak, "soak-decision", candidate="", history="", mode="live")
    assert (result["verdict"], result["roll_back"], result["version"], result["state"]) == (
        "ROLLBACK",
        True,
        "2",
        "SOAKING",
    )
    assert _decision(tmp_path, "soak-decision")["reasons"][0].startswith("Harm shown")
    done = run_rollback(decision=str(tmp_path / "soak-decision"))
    assert (done["rolled_back"], done["version"], done["champion"]) == (True, "2", "1")
    assert done["seconds"] > 0.0
    again = run_rollback(decision=str(tmp_path / "soak-decision"))
    assert (again["rolled_back"], again["changed"], again["champion"]) == (True, False, "1")
    assert operations.verify(MODEL)["ok"]
    events = [(entry["event"], entry["version"]) for entry in operations.history(MODEL)]
    assert events[-5:] == [
        ("retire", "1"),
        ("alarm", "2"),
        ("begin_rollback", "2"),
        ("restore", "1"),
        ("rolled_back", "2"),
    ]


def test_the_first_champion_is_soaked_against_the_reference_that_it_was_trained_from(tmp_path: Path) -> None:
    _promote_first(tmp_path)
    found = resolve_live_models(MODEL)
    assert (found.live_version, found.predecessor_version, found.predecessor_uri) == ("1", "", "")
    soak = make_evidence(tmp_path / "soak", weights="first", seed=3)
    assert _gate(tmp_path, soak, "soak-decision", candidate="", history="", mode="live")["verdict"] == "KEEP"
    decision = _decision(tmp_path, "soak-decision")
    assert decision["compared_with"] == "the reference"
    assert not any("NOT checked" in reason for reason in decision["reasons"])
    other = make_evidence(tmp_path / "other", weights="first", seed=4, reference_digest="q" * 64)
    result = _gate(tmp_path, other, "other-decision", candidate="", history="", mode="live")
    assert result["verdict"] == "ERROR", "compared with another reference"


def test_a_first_champion_that_harms_stays_and_the_alarm_says_that_nothing_can_be_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _promote_first(tmp_path)
    soak = make_evidence(tmp_path / "soak", weights="first", story="overoptimized")
    result = _gate(tmp_path, soak, "soak-decision", candidate="", history="", mode="live")
    assert (result["verdict"], result["roll_back"], result["champion"]) == ("ROLLBACK", False, "1")
    assert _decision(tmp_path, "soak-decision")["reasons"][0].startswith("HARM IS SHOWN AND THERE IS NO PREDECESSOR")
    assert any(record.levelname == "ERROR" and "NO PREDECESSOR" in record.message for record in caplog.records)
    entry = open_office().ledger.view(MODEL).entries[-1]
    assert entry.event == "alarm"
    assert "NO PREDECESSOR" in entry.reason
    kept = run_keep_champion(decision=str(tmp_path / "soak-decision"))
    assert "Version 1 stays champion" in kept["message"]
    assert operations.verify(MODEL)["ok"]


def test_a_policy_may_leave_the_rollback_to_people(tmp_path: Path) -> None:
    champion = _promote_first(tmp_path)
    bad = make_evidence(tmp_path / "bad", story="overoptimized", weights="bad", champion_digest=champion)
    _gate(tmp_path, bad)
    operations.break_glass(MODEL, "2", actor="demo-operator", reason="because I can")
    soak = make_evidence(tmp_path / "soak", story="overoptimized", weights="bad", reference_digest=champion)
    policy = _write_policy(tmp_path, release={"auto_rollback": False})
    result = _gate(tmp_path, soak, "soak-decision", candidate="", mode="live", policy=policy)
    assert (result["verdict"], result["roll_back"]) == ("ROLLBACK", False)


def test_votes_that_the_policy_does_not_accept_roll_nothing_back_and_people_are_told(tmp_path: Path) -> None:
    champion = _promote_first(tmp_path)
    bad = make_evidence(tmp_path / "bad", story="overoptimized", weights="bad", champion_digest=champion)
    _gate(tmp_path, bad)
    operations.break_glass(MODEL, "2", actor="demo-operator", reason="because I can")
    soak = make_evidence(
        tmp_path / "soak", story="overoptimized", weights="bad", reference_digest=champion, rater_kind="simulated"
    )
    result = _gate(tmp_path, soak, "soak-decision", candidate="", mode="live", policy="production")
    assert (result["verdict"], result["roll_back"], result["champion"]) == ("HOLD", False, "2")
    assert _decision(tmp_path, "soak-decision")["reasons"][0].startswith("ALARM: HARM IS SEEN")
    entry = open_office().ledger.view(MODEL).entries[-1]
    assert (entry.event, entry.data["alarm"]) == ("hold", True)
    notice = open_outbox().undelivered()[-1]
    assert notice.kind == "live_alarm"
    assert "roll back by hand" in str(notice.body["text"])
    assert operations.rollback(MODEL, actor="max", reason="I looked at it")["version"] == "1"


def test_good_soak_evidence_confirms_the_champion(tmp_path: Path) -> None:
    _promote_first(tmp_path)
    soak = make_evidence(tmp_path / "soak", weights="first", seed=3)
    result = _gate(tmp_path, soak, "soak-decision", candidate="", history="", mode="live")
    assert (result["verdict"], result["promote"], result["roll_back"]) == ("KEEP", False, False)
    assert result["state"] == "CHAMPION"
    head = open_office().ledger.view(MODEL).head
    _gate(tmp_path, soak, "again", candidate="", history="", mode="live")
    assert open_office().ledger.view(MODEL).head == head, "the same evidence twice is on the ledger once"


def test_soak_evidence_about_another_model_is_an_error_and_moves_nothing(tmp_path: Path) -> None:
    _promote_first(tmp_path)
    soak = make_evidence(tmp_path / "soak", weights="somebody else", story="overoptimized")
    result = _gate(tmp_path, soak, "soak-decision", candidate="", mode="live")
    assert (result["verdict"], result["roll_back"]) == ("ERROR", False)
    assert resolve_champion(MODEL) is not None


def test_with_nothing_live_there_is_nothing_to_soak(tmp_path: Path) -> None:
    with pytest.raises(PlumblineError, match="nothing is live"):
        _gate(tmp_path, make_evidence(tmp_path / "e"), candidate="", mode="live")


def test_the_champion_judged_again_is_judged_as_usual_and_promoted_already(tmp_path: Path) -> None:
    _promote_first(tmp_path)
    result = _gate(tmp_path, make_evidence(tmp_path / "again", weights="first", seed=2))
    assert (result["verdict"], result["version"], result["state"]) == ("PROMOTE", "1", "SOAKING")
    outcome = run_promote(decision=str(tmp_path / "decision"))
    assert (outcome["promoted"], outcome["changed"]) == (True, False)
    assert "champion already" in outcome["message"]


def test_the_same_judgement_run_again_appends_nothing_and_decides_the_same(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "good")
    first = _gate(tmp_path, evidence)
    head = open_office().ledger.view(MODEL).head
    second = _gate(tmp_path, evidence, "decision-again")
    assert second == first
    assert open_office().ledger.view(MODEL).head == head


def test_a_rejected_model_stays_rejected_whatever_the_evidence(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "good")
    _gate(tmp_path, evidence, policy="production")
    reject(MODEL, "1", "carol", "it is rude")
    result = _gate(tmp_path, make_evidence(tmp_path / "more", seed=4), "second")
    assert (result["verdict"], result["state"], result["version"]) == ("BLOCK", "REJECTED", "1")
    assert "carol" in " ".join(_decision(tmp_path, "second")["reasons"])


def test_a_decision_that_newer_evidence_overtook_promotes_nothing(tmp_path: Path) -> None:
    for name, seed in (("old", 0), ("new", 4)):
        evidence = make_evidence(tmp_path / f"evidence-{name}", seed=seed)
        _gate(tmp_path, evidence, name, policy="production", requested_by="max")
    with pytest.raises(PromotionError, match="not the latest verdict"):
        run_promote(decision=str(tmp_path / "old"))


def test_a_run_that_was_held_up_says_neither_promote_nor_roll_back(tmp_path: Path) -> None:
    older = make_evidence(tmp_path / "older")
    _gate(tmp_path, make_evidence(tmp_path / "newer", seed=4), "new")
    late = _gate(tmp_path, older, "old")
    assert "NOT RECORDED" in " ".join(_decision(tmp_path, "old")["reasons"])
    assert (late["verdict"], late["promote"], late["roll_back"]) == ("PROMOTE", False, False)


@pytest.mark.parametrize("gone", ["evaluation", "evidence", "reward_model", "heldout_reward_model"])
def test_missing_evidence_never_promotes(tmp_path: Path, gone: str) -> None:
    evidence = make_evidence(tmp_path / "good")
    result = _gate(tmp_path, evidence, **{gone: str(tmp_path / "nowhere")})
    assert result["verdict"] in ("HOLD", "ERROR")
    assert result["promote"] is False


def test_an_unreadable_candidate_stops_the_gate_before_anything_is_written(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "good")
    (Path(evidence.candidate) / "model.safetensors").write_text("altered")
    with pytest.raises(ArtifactError, match="altered"):
        _gate(tmp_path, evidence)
    assert not (tmp_path / "decision").exists()
    assert open_office().ledger.view(MODEL).entries == []


def test_who_acts_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_ACTOR", "trainer@cluster")
    evidence = make_evidence(tmp_path / "good")
    _gate(tmp_path, evidence)
    assert operations.history(MODEL)[0]["actor"] == "trainer@cluster"
    monkeypatch.setenv("PLUMBLINE_ACTOR", " ")
    with pytest.raises(InputError, match="PLUMBLINE_ACTOR"):
        _gate(tmp_path, evidence, "second")


def test_the_shells_pass_everything_on(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "good")
    decision = SimpleNamespace(path=str(tmp_path / "decision"), metadata={})
    inputs = {
        name: SimpleNamespace(path=getattr(evidence, name), uri=f"s3://bucket/{name}")
        for name in evidence.as_arguments()
        if name != "history"
    }
    verdict, promoted, rolled_back = shells.release_gate.python_func(
        **inputs,
        history=None,
        decision=decision,
        model_name=MODEL,
        policy=_write_policy(tmp_path),
        seed=0,
        code_digest="c",
    )
    assert (verdict, promoted, rolled_back) == ("PROMOTE", True, False)
    assert decision.metadata["version"] == "1"
    assert shells.promote.python_func(decision=decision, code_digest="c") is True
    assert "Version 1 stays champion" in shells.keep_champion.python_func(decision=decision, code_digest="c")
    inputs["evidence"].metadata = {"digest": "0" * 64}  # as human_eval told it: somebody has put other votes there
    with pytest.raises(ArtifactError, match=r"evidence, .*it was replaced"):
        shells.release_gate.python_func(
            **inputs, decision=decision, model_name=MODEL, policy=_write_policy(tmp_path), seed=0, code_digest="c"
        )
    decision.metadata = {"digest": "0" * 64}
    for act in (shells.promote, shells.roll_back):
        with pytest.raises(ArtifactError, match=r"decision, .*it was replaced"):
            act.python_func(decision=decision, code_digest="c")


def _approved_by_two(root: Path) -> str:
    """A champion that two people approved under production; returns its digest."""
    evidence = make_evidence(root / "first", weights="first")
    _gate(root, evidence, "first-decision", policy="production", requested_by="max")
    for actor in ("alice", "bob"):
        operations.approve(MODEL, "1", actor=actor, reason="good", key=KEY, signed_in=True)
    return digest_of_policy(evidence.candidate)


def test_a_run_that_names_a_policy_which_asks_nobody_does_not_get_past_those_who_approved_the_champion(
    tmp_path: Path,
) -> None:
    champion = _approved_by_two(tmp_path)
    evidence = make_evidence(tmp_path / "better", weights="better", champion_digest=champion)
    sly = _gate(tmp_path, evidence)  # by a policy of zero approvals, as whoever starts a run may name one
    assert (sly["verdict"], sly["promote"], sly["state"], sly["champion"]) == ("HOLD", False, "HELD", "1")
    (reason,) = _decision(tmp_path)["reasons"]
    assert "0 approvals, and the champion had 2" in reason
    with pytest.raises(PromotionError, match="the verdict is HOLD"):
        run_promote(decision=str(tmp_path / "decision"))
    for release in ({"approvals_required": 2, "command_line_may_approve": True}, {"approvals_required": 1}):
        sly = _gate(tmp_path, evidence, "again", policy=_write_policy(tmp_path, release=release))
        assert sly["verdict"] == "HOLD", release
    honest = _gate(tmp_path, evidence, "honest", policy="production", requested_by="max")
    assert (honest["verdict"], honest["state"]) == ("PROMOTE", "AWAITING_APPROVAL")


def test_asking_less_of_people_from_now_on_takes_breaking_the_glass_once(tmp_path: Path) -> None:
    champion = _approved_by_two(tmp_path)
    second = make_evidence(tmp_path / "second", weights="second", champion_digest=champion)
    assert _gate(tmp_path, second)["verdict"] == "HOLD"
    operations.break_glass(MODEL, "2", actor="the chief", reason="we are too few")
    third = make_evidence(tmp_path / "third", weights="third", champion_digest=digest_of_policy(second.candidate))
    assert _gate(tmp_path, third, "third-decision")["verdict"] == "PROMOTE"
