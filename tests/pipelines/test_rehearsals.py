"""Which past decisions of a workspace a policy is tried on, and what the command line says of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "components" / "release_gate"))

from tiny_release import MODEL, make_evidence

from components.release_gate.entries import Entry, Move
from components.release_gate.evidence import Source
from components.release_gate.findings import EvidenceFault, Finding
from components.release_gate.office import open_office
from components.release_gate.rehearsal import broken_terms, open_kept_decision
from components.release_gate.stage import run_gate
from components.release_gate.states import Event
from components.shared.artifacts import content_digest
from components.shared.errors import InputError
from components.shared.files import sha256_file, write_json
from components.shared.review_key import ReviewKey
from pipelines.cli import cli
from pipelines.rehearsals import audit_model, replay_policy, try_policy


@pytest.fixture
def workspace(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two runs: a good one whose evidence is its own, and one that was killed."""
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", f"sqlite:///{tmp_path / 'plumbline.db'}")
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", str(tmp_path / "anchor"))
    root = tmp_path / "runs"
    run = root / "good-1"
    evidence = make_evidence(run / "steps", rater_kind="simulated")
    arguments = {"output": str(run / "steps" / "decision"), "mode": "candidate", "policy": "demo", "model_name": MODEL}
    run_gate(**evidence.as_arguments(**arguments, seed=3))
    write_json(run / "artifacts.json", {**evidence.__dict__, "decision": arguments["output"]})
    (run / "settings.yaml").write_text(f"name: good\nmodel_name: {MODEL}\nseed: 3\n")
    (root / "killed-1").mkdir()
    (root / "killed-1" / "settings.yaml").write_text("name: killed\n")
    return str(root)


def test_every_decision_on_the_model_is_judged_again(workspace: str) -> None:
    found = replay_policy("production", MODEL, workspace=workspace)
    assert [(one["run"], one["recorded"], one["again"], one["verdict"]) for one in found["decisions"]] == [
        ("good-1", "PROMOTE", "PROMOTE", "HOLD")
    ]
    assert found["unreadable"] == []


def test_a_model_that_nothing_was_decided_on_is_named_with_those_that_are_there(workspace: str) -> None:
    with pytest.raises(InputError, match=MODEL):
        replay_policy("production", "other", workspace=workspace)


def test_a_decision_that_was_altered_is_told_and_the_others_are_judged(workspace: str) -> None:
    copy = Path(workspace) / "altered-1"
    shutil.copytree(Path(workspace) / "good-1", copy)
    write_json(copy / "artifacts.json", {"decision": str(copy / "steps" / "decision")})
    file = copy / "steps" / "decision" / "decision.json"
    file.write_text(file.read_text() + " ")
    found = replay_policy("production", MODEL, workspace=workspace)
    assert [one["run"] for one in found["decisions"]] == ["good-1"]
    assert [one["run"] for one in found["unreadable"]] == ["altered-1"]


def test_a_run_and_its_decision_are_the_same_rehearsal(workspace: str) -> None:
    by_run = try_policy("production", run_id="good-1", workspace=workspace)["rehearsal"]
    by_folder = try_policy("production", decision=str(Path(workspace) / "good-1" / "steps" / "decision"))["rehearsal"]
    assert by_run == by_folder
    assert by_run["verdict"] == "HOLD"
    assert try_policy("production")["rehearsal"] is None
    with pytest.raises(InputError, match="no decision"):
        try_policy("production", run_id="killed-1", workspace=workspace)


def test_the_command_line_says_what_would_change_and_why(workspace: str) -> None:
    told = CliRunner().invoke(cli, ["replay", "--policy", "production", "--model", MODEL, "--workspace", workspace])
    assert told.exit_code == 0
    assert "PROMOTE by demo 1, HOLD by this policy: CHANGES" in told.output
    assert "collect votes of people" in " ".join(told.output.split())
    checked = CliRunner().invoke(cli, ["policy", "check", "demo", "--run", "good-1", "--workspace", workspace])
    assert "looser than production: raters: simulated votes are accepted" in checked.output
    assert "human_preference.reference" in checked.output
    as_json = CliRunner().invoke(cli, ["policy", "check", "demo", "--json"])
    assert json.loads(as_json.output)["name"] == "demo"


def _forget_runs(workspace: str) -> None:
    """The runs and their artifacts are gone; ledger and registry are elsewhere."""
    shutil.rmtree(workspace)
    Path(workspace).mkdir()


def test_replay_and_audit_need_the_ledger_and_the_dossiers_alone(workspace: str) -> None:
    before = replay_policy("production", MODEL, workspace=workspace)["decisions"][0]
    _forget_runs(workspace)
    found = replay_policy("production", MODEL, workspace=workspace)
    after = found["decisions"][0]
    assert (found["judged"], found["changed"], found["unreadable"]) == (1, 1, [])
    told = ("recorded", "again", "verdict", "reasons", "criteria")
    assert {key: after[key] for key in told} == {key: before[key] for key in told}
    audited = audit_model(MODEL, workspace=workspace)
    assert audited["ok"], audited
    assert [(one["recorded"], one["again"]) for one in audited["verdicts"]] == [("PROMOTE", "PROMOTE")]
    told = CliRunner().invoke(cli, ["audit", MODEL, "--workspace", workspace])
    assert told.exit_code == 0, told.output
    assert "the ledger is intact; 1 of 1 verdicts follow from their evidence." in told.output


def test_a_dossier_that_was_altered_is_found_by_the_audit_and_never_judged(workspace: str, tmp_path: Path) -> None:
    _forget_runs(workspace)
    file = next(tmp_path.glob("mlflow-models/**/dossiers/**/outcomes.jsonl"))
    file.write_text(file.read_text().replace('"outcome": 0.0', '"outcome": 1.0', 1))
    audited = audit_model(MODEL, workspace=workspace)
    assert not audited["ok"]
    assert "outcomes.jsonl: was altered" in audited["verdicts"][0]["problem"]
    replayed = replay_policy("production", MODEL, workspace=workspace)
    assert (replayed["judged"], replayed["not_judged"]) == (0, 1)
    assert CliRunner().invoke(cli, ["audit", MODEL, "--workspace", workspace]).exit_code == 1


def test_a_decision_whose_criteria_were_altered_is_found_by_the_audit(workspace: str, tmp_path: Path) -> None:
    """Forged with its own hashes, it still does not have the digest of the criteria that is on the ledger."""
    folder = next(tmp_path.glob("mlflow-models/**/dossiers/*/*/decision"))
    file, manifest = folder / "decision.json", folder / "manifest.json"
    file.write_text(file.read_text().replace('"PASS"', '"HOLD"', 1))
    content = json.loads(manifest.read_text())
    content["files"]["decision.json"] = sha256_file(file)
    content["digest"] = content_digest("decision", content["files"])
    manifest.write_text(json.dumps(content))
    audited = audit_model(MODEL, workspace=workspace)
    assert "its criteria were altered" in audited["verdicts"][0]["problem"]


def test_a_dossier_of_an_older_gate_says_which_file_it_does_not_have(workspace: str, tmp_path: Path) -> None:
    _forget_runs(workspace)
    next(tmp_path.glob("mlflow-models/**/dossiers/*/*/reward_model/predictions.jsonl")).unlink()
    replayed = replay_policy("production", MODEL, workspace=workspace)
    assert replayed["decisions"][0]["verdict"] is None
    assert "predictions.jsonl of reward_model" in replayed["decisions"][0]["problem"]


def test_an_audit_of_a_model_that_the_ledger_does_not_know_names_those_that_it_does(workspace: str) -> None:
    with pytest.raises(InputError, match=f"Models there: {MODEL}"):
        audit_model("other", workspace=workspace)


def test_a_policy_that_is_not_valid_ends_with_its_path(workspace: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("extends: production\nname: x\nkl: {max_nats_per_sequence: -1}\n")
    told = CliRunner().invoke(cli, ["policy", "check", str(tmp_path / "p.yaml")])
    assert isinstance(told.exception, InputError)
    assert "kl.max_nats_per_sequence" in str(told.exception)


@pytest.fixture
def asked_for(workspace: str, tmp_path: Path) -> Entry:
    """A verdict that asks two people for their approval, of whom one rated."""
    policy = tmp_path / "people.yaml"
    rules = "release: {approvals_required: 2, command_line_may_approve: false}"
    policy.write_text(f"extends: demo\nname: people\nversion: 1\n{rules}\n")
    rated = [{"judgement_id": "j", "rater": ReviewKey("a secret").pseudonym("eve"), "rater_kind": "human"}]
    evidence = make_evidence(tmp_path / "asked", weights="asked", edits={"judgements.jsonl": lambda _: rated})
    arguments = {"output": str(tmp_path / "asked-decision"), "mode": "candidate", "policy": str(policy), "seed": 0}
    version = run_gate(**evidence.as_arguments(**arguments, model_name=MODEL, requested_by="max"))["version"]
    asked = open_office().ledger.view(MODEL).last(version, Event.AWAIT_APPROVAL)
    assert asked is not None
    return asked


@pytest.mark.parametrize("honest", [True, False])
def test_that_raters_cannot_be_compared_is_told_where_the_evidence_is_gone(asked_for: Entry, honest: bool) -> None:
    """Nobody is accused, and nobody passes: neither the entry as it was, nor one that names no raters."""
    office = open_office()
    past = open_kept_decision(office.registry, asked_for)
    gone = Source("human_evidence", fault=EvidenceFault(Finding.ERROR, "it is gone", source="human_evidence"))
    past = dataclasses.replace(past, sources={**past.sources, "human_evidence": lambda: gone})
    entry = asked_for if honest else _with_terms(asked_for, raters=[])

    (problem,) = broken_terms(past, entry)

    assert problem.startswith("Its human evidence cannot be read")
    assert len(broken_terms(past, _with_terms(asked_for, approvals_required=0))) == 2
    without = json.dumps({name: digest for name, digest in entry.evidence_digests.items() if name != "human_evidence"})
    assert broken_terms(past, dataclasses.replace(entry, evidence=without)) == [problem], "no PROMOTE goes without it"


def _with_terms(entry: Entry, **terms: Any) -> Entry:
    return dataclasses.replace(entry, details=json.dumps(entry.data | terms))


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"approvals_required": 0}, "approvals needed: 0; by its policy and evidence: 2"),
        (
            {"command_line_may_approve": True},
            "of the command line count: yes; by its policy and evidence: no",
        ),
        ({"raters": []}, "raters who may not approve: none; by its policy and evidence: rater-"),
        ({"importers": ["max"]}, "importers who may not approve: max; by its policy and evidence: none"),
    ],
)
def test_terms_that_its_policy_does_not_have_are_told_by_audit_and_verify(
    workspace: str, asked_for: Entry, terms: dict[str, Any], words: str
) -> None:
    """Somebody adds rows to the ledger, rightly chained and anchored: the same verdict, cleared on terms of his own."""
    assert audit_model(MODEL, workspace=workspace)["ok"]
    version, forged = asked_for.version, asked_for.data | {"approvals_required": 0} | terms
    moves = [
        Move(version, Event.COLLECT, "gate", "again"),
        Move(version, Event.AWAIT_APPROVAL, "gate", "good", asked_for.evidence_digests, forged),
        Move(version, Event.CLEAR, "gate", "enough", details={"binding": forged["binding"]}),
    ]
    _, added = open_office().record(MODEL, lambda _: moves)
    audited = audit_model(MODEL, workspace=workspace)
    assert not audited["ok"]
    assert words in audited["verdicts"][-1]["problem"]
    told = CliRunner().invoke(cli, ["verify", MODEL, "--workspace", workspace, "--json"])
    assert told.exit_code == 1
    problems = json.loads(told.output)["problems"]
    assert any(f"entry {added[1].sequence}: " in one and words in one for one in problems), problems
