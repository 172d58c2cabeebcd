"""Past evidence under another policy: the same verdict under the same policy, and nothing is recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_release import MODEL, Evidence, make_evidence

from components.release_gate.office import Office
from components.release_gate.policy import GatePolicy, load_policy_file
from components.release_gate.rehearsal import (
    PastDecision,
    check_policy,
    index_artifacts,
    open_past_decision,
    rehearse,
    replay,
)
from components.release_gate.stage import run_gate
from components.shared.errors import ArtifactError, InputError


def _policy_file(root: Path, name: str, **sections: Any) -> str:
    values: dict[str, Any] = {"extends": "demo", "name": name, "divergence": {"bootstrap_draws": 200}}
    for section, thresholds in sections.items():
        values[section] = {**values.get(section, {}), **thresholds}
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def _policy(root: Path, name: str, **sections: Any) -> GatePolicy:
    return load_policy_file(_policy_file(root, name, **sections))


def _decide(root: Path, evidence: Evidence, name: str = "decision") -> PastDecision:
    """Judges evidence by the gate itself, then reads what it decided."""
    policy = _policy_file(root, "own")
    arguments = {"output": str(root / name), "mode": "candidate", "policy": policy, "model_name": MODEL, "seed": 0}
    run_gate(**evidence.as_arguments(**arguments))
    return open_past_decision(root / name, index_artifacts(evidence.__dict__.values()), run=name)


def _differences(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {one["name"]: (one["before"], one["after"]) for one in found["criteria"] if one["before"] != one["after"]}


def test_the_same_policy_says_the_same_of_every_criterion(office: Office, tmp_path: Path) -> None:
    past = _decide(tmp_path, make_evidence(tmp_path / "good", rater_kind="simulated"))
    entries = office.ledger.view(MODEL).entries
    found = rehearse(past, _policy(tmp_path, "own"))
    assert found["recorded"] == found["again"] == found["verdict"] == "PROMOTE"
    assert not found["changed"]
    assert _differences(found) == {}
    recorded = {one["name"]: (one["verdict"], one["value"]) for one in past.content["criteria"]}
    assert {one["name"]: (one["after"], one["value"]) for one in found["criteria"]} == recorded
    assert office.ledger.view(MODEL).entries == entries, "a rehearsal records nothing"


def test_a_stricter_policy_changes_the_verdict_and_says_why(office: Office, tmp_path: Path) -> None:
    past = _decide(tmp_path, make_evidence(tmp_path / "good", rater_kind="simulated"))
    found = rehearse(past, _policy(tmp_path, "strict", kl={"max_nats_per_sequence": 1.0}))
    assert (found["recorded"], found["verdict"], found["changed"]) == ("PROMOTE", "BLOCK", True)
    assert _differences(found) == {"kl.sequence": ("PASS", "BLOCK")}
    assert "above the ceiling of 1" in found["reasons"][0]


def test_a_replay_counts_the_verdicts_that_would_change(office: Office, tmp_path: Path) -> None:
    good = _decide(tmp_path, make_evidence(tmp_path / "good", rater_kind="simulated"), "one")
    bad = _decide(
        tmp_path, make_evidence(tmp_path / "bad", story="overoptimized", weights="b", rater_kind="simulated"), "two"
    )
    found = replay([bad, good], load_policy_file("production"))
    assert [one["run"] for one in found["decisions"]] == ["one", "two"], "oldest first"
    assert [(one["recorded"], one["verdict"]) for one in found["decisions"]] == [
        ("PROMOTE", "HOLD"),
        ("BLOCK", "BLOCK"),
    ]
    assert (found["judged"], found["changed"], found["not_judged"]) == (2, 1, 0)


def test_evidence_that_is_gone_is_named_and_never_judged(office: Office, tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "good", rater_kind="simulated")
    _decide(tmp_path, evidence)
    shutil.rmtree(evidence.evaluation)
    past = open_past_decision(tmp_path / "decision", index_artifacts(evidence.__dict__.values()))
    found = rehearse(past, load_policy_file("production"))
    assert found["verdict"] is None
    assert "evaluation" in found["problem"]
    assert replay([past], load_policy_file("production"))["not_judged"] == 1


def test_evidence_that_was_altered_is_an_error_and_no_pass(office: Office, tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "good", rater_kind="simulated")
    past = _decide(tmp_path, evidence)
    file = Path(evidence.evidence) / "outcomes.jsonl"
    file.write_text(file.read_text().replace('"outcome": 0.0', '"outcome": 1.0'))
    assert rehearse(past, _policy(tmp_path, "own"))["verdict"] == "ERROR"


def test_a_decision_that_was_altered_is_refused(office: Office, tmp_path: Path) -> None:
    _decide(tmp_path, make_evidence(tmp_path / "good", rater_kind="simulated"))
    file = tmp_path / "decision" / "decision.json"
    file.write_text(file.read_text().replace("PROMOTE", "BLOCK"))
    with pytest.raises(ArtifactError):
        open_past_decision(tmp_path / "decision", {})


def test_thresholds_that_this_version_cannot_read_leave_the_recorded_verdict_to_compare_with(
    office: Office, tmp_path: Path
) -> None:
    past = _decide(tmp_path, make_evidence(tmp_path / "good", rater_kind="simulated"))
    old = PastDecision(**{**past.__dict__, "own_policy": None})
    found = rehearse(old, load_policy_file("production"))
    assert (found["again"], found["recorded"], found["verdict"], found["changed"]) == (None, "PROMOTE", "HOLD", True)
    assert _differences(found)["raters.kind"] == ("PASS", "HOLD")


def test_a_policy_is_described_with_all_that_is_looser() -> None:
    assert check_policy("production")["looser_than_production"] == []
    assert any("simulated votes" in line for line in check_policy("demo")["looser_than_production"])
    assert json.dumps(check_policy("demo"))


def test_a_policy_that_is_not_valid_names_the_path(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("extends: production\nname: x\nkl: {max_nats_per_sequence: -1}\nsafety: {max_bad_rat: 1}")
    with pytest.raises(InputError, match=r"kl\.max_nats_per_sequence.*safety\.max_bad_rat: unknown setting"):
        check_policy(file)
