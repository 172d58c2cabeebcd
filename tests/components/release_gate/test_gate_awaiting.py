"""A candidate that waits for people: HOLD, an order to judge it again, and notices of what happens to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_office import SIGNED_IN, judge_weights, release_weights
from tiny_release import MODEL, Evidence, make_evidence

from components.release_gate.approvals import approve
from components.release_gate.drill import run_drill
from components.release_gate.office import Office
from components.release_gate.opening import open_release
from components.release_gate.promotion import promote, rollback
from components.release_gate.stage import run_gate
from components.release_gate.verdict import Verdict
from components.report.notice import finish_run
from components.shared.artifacts import MANIFEST, read_artifact, write_artifact
from components.shared.errors import ArtifactError
from components.shared.files import write_text
from components.shared.notices import Outbox, open_outbox
from components.shared.release_orders import OrderTakenError, ReleaseOrder, open_orders


def _nobody_has_judged(statistics: dict[str, Any]) -> dict[str, Any]:
    nothing = {"win_rate": None, "n_prompts": 0, "lower": None, "upper": None, "n_votes": 0, "slices": {}}
    comparisons = {name: {**found, **nothing} for name, found in statistics["comparisons"].items()}
    return {**statistics, "complete": False, "comparisons": comparisons}


def _make_waiting(root: Path, **about: Any) -> Evidence:
    """Evidence of people who have not begun yet, as the human_eval step leaves it."""
    evidence = make_evidence(root, edits={"statistics.json": _nobody_has_judged})
    with write_artifact(root / "dataset", "dataset", stage="data_validation") as draft:
        write_text(draft.path / "prompts.jsonl", "")
    path = Path(evidence.evidence) / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["inputs"]["dataset"] = read_artifact(root / "dataset", "dataset").digest
    manifest["settings"] = {"panel": "people", "n_prompts": 5}
    manifest["metadata"] = {
        "batch_id": "batch-1",
        "complete": False,
        "panel": "people",
        "seed": 7,
        "deadline": "2026-03-01T12:00:00+00:00",
        "closed": False,
        "locations": {"evaluation": evidence.evaluation, "dataset": str(root / "dataset")},
        **about,
    }
    path.write_text(json.dumps(manifest))
    return evidence


def _gate(root: Path, evidence: Evidence, **overrides: Any) -> tuple[dict[str, Any], list[str]]:
    arguments: dict[str, Any] = {"mode": "candidate", "policy": "demo", "model_name": MODEL, "seed": 0}
    result = run_gate(**evidence.as_arguments(output=str(root / "decision"), **{**arguments, **overrides}))
    decision = json.loads((root / "decision" / "decision.json").read_text())
    return result, decision["reasons"]


def test_evidence_that_is_still_to_come_holds_and_leaves_an_order(office: Office, tmp_path: Path) -> None:
    evidence = _make_waiting(tmp_path / "run")
    result, reasons = _gate(tmp_path, evidence)
    assert (result["verdict"], result["state"]) == ("HOLD", "HELD")
    assert reasons[0].startswith("Awaiting evidence: people judge batch batch-1 until 2026-03-01T12:00 UTC.")
    order = open_orders().find(MODEL)
    assert (order.batch_id, order.version, order.mode) == ("batch-1", result["version"], "candidate")
    assert (order.policy, order.seed, order.settings["n_prompts"]) == ("demo", 7, 5)
    kinds = {
        "candidate": "policy",
        "evaluation": "evaluation",
        "dataset": "dataset",
        "reward_model": "reward_model",
        "heldout_reward_model": "reward_model",
        "history": "training_history",
    }
    assert order.digests == {role: read_artifact(order.uris[role], kind).digest for role, kind in kinds.items()}


def test_the_order_names_where_a_cluster_keeps_the_artifacts(office: Office, tmp_path: Path) -> None:
    where = {"dataset": "s3://bucket/dataset", "evaluation": "s3://bucket/evaluation"}
    evidence = _make_waiting(tmp_path / "run", locations=where)
    roles = ("candidate", "evaluation", "reward_model", "heldout_reward_model", "history")
    _gate(tmp_path, evidence, locations={role: f"s3://bucket/{role}" for role in roles})
    assert open_orders().find(MODEL).uris == {role: f"s3://bucket/{role}" for role in (*roles, "dataset")}


def test_a_policy_file_is_found_from_another_folder(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("{extends: demo, name: mine, version: 1}")
    monkeypatch.chdir(tmp_path)
    _gate(tmp_path, _make_waiting(tmp_path / "run"), policy="mine.yaml")
    assert open_orders().find(MODEL).policy == str(tmp_path / "mine.yaml")


def test_judging_it_twice_is_one_order(office: Office, tmp_path: Path) -> None:
    evidence = _make_waiting(tmp_path / "run")
    _gate(tmp_path, evidence)
    _gate(tmp_path, evidence)
    assert len(open_orders().all()) == 1


def test_a_batch_that_was_closed_too_early_says_that_nothing_more_will_come(office: Office, tmp_path: Path) -> None:
    _, reasons = _gate(tmp_path, _make_waiting(tmp_path / "run", closed=True))
    assert "no more will come" in reasons[0]


@pytest.mark.parametrize("about", [{"panel": "my_raters:Panel"}, {"complete": True}])
def test_evidence_that_waits_for_nobody_leaves_no_order(office: Office, tmp_path: Path, about: dict[str, Any]) -> None:
    _, reasons = _gate(tmp_path, _make_waiting(tmp_path / "run", **about))
    assert "Awaiting evidence" not in " ".join(reasons)
    assert open_orders().all() == []


def _started(order: ReleaseOrder) -> tuple[ReleaseOrder, int]:
    attempt = open_orders().start(order.order_id, "service")
    assert attempt is not None
    return order, attempt


def test_a_release_run_opens_once_on_the_artifacts_that_were_ordered(office: Office, tmp_path: Path) -> None:
    _gate(tmp_path, _make_waiting(tmp_path / "run"))
    order, attempt = _started(open_orders().find(MODEL))
    given: dict[str, Any] = {"folders": order.uris, "digests": order.digests, "order": order.order_id}
    open_release(**given, attempt=attempt, holder="run-1")
    with pytest.raises(OrderTakenError):
        open_release(**given, attempt=attempt, holder="its double")


@pytest.mark.parametrize("role", ["candidate", "evaluation", "dataset", "reward_model", "history"])
def test_an_artifact_that_was_made_anew_is_refused(office: Office, tmp_path: Path, role: str) -> None:
    _gate(tmp_path, _make_waiting(tmp_path / "run"))
    order = open_orders().find(MODEL)
    kind = json.loads((Path(order.uris[role]) / MANIFEST).read_text())["kind"]
    with write_artifact(order.uris[role], kind, stage="test") as draft:
        write_text(draft.path / "other", "content")
    with pytest.raises(ArtifactError, match=f"the {role} has digest"):
        open_release(folders=order.uris, digests=order.digests, order="", attempt=0, holder="run-1")


def test_an_artifact_that_is_gone_or_whose_manifest_was_altered_is_refused(office: Office, tmp_path: Path) -> None:
    _gate(tmp_path, _make_waiting(tmp_path / "run"))
    order = open_orders().find(MODEL)
    path = Path(order.uris["evaluation"]) / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "files": {**manifest["files"], "models.json": "0" * 64}}))
    given: dict[str, Any] = {"digests": order.digests, "order": "", "attempt": 0, "holder": "run-1"}
    with pytest.raises(ArtifactError, match="does not match its own digest"):
        open_release(folders=order.uris, **given)
    path.unlink()
    with pytest.raises(ArtifactError, match="not there any more"):
        open_release(folders=order.uris, **given)


@pytest.mark.parametrize(("state", "status"), [("SUCCEEDED", "ended"), ("FAILED", "failed"), ("CANCELLED", "failed")])
def test_the_exit_handler_ends_the_order(office: Office, tmp_path: Path, state: str, status: str) -> None:
    _gate(tmp_path, _make_waiting(tmp_path / "run"))
    order, attempt = _started(open_orders().find(MODEL))
    open_orders().begin(order.order_id, attempt, "job-1")
    finish: dict[str, Any] = {"state": state, "error_message": None, "resource_name": "r", "model_name": MODEL}
    finish_run(**finish, order=order.order_id, attempt=attempt, holder="its double")
    assert open_orders().state(order.order_id).status == "running"
    finish_run(**finish, order=order.order_id, attempt=attempt, holder="job-1")
    assert open_orders().state(order.order_id).status == status


def _told(outbox: Outbox) -> list[str]:
    return [notice.kind for notice in outbox.undelivered()]


def test_people_are_told_of_approval_promotion_and_rollback(office: Office, tmp_path: Path) -> None:
    outbox = open_outbox()
    release_weights(office, tmp_path, "first")
    assert _told(outbox) == ["promoted"]
    version = judge_weights(office, tmp_path, "second", approvals=1)
    assert _told(outbox)[1:] == ["approval_needed"]
    approve(MODEL, version, "mia", "better", desk=SIGNED_IN, office=office)
    promote(MODEL, version, "mia", office=office)
    rollback(MODEL, "max", "complaints", office=office)
    assert _told(outbox)[2:] == ["promoted", "rolled_back"]
    text = outbox.undelivered()[-1].body["text"]
    assert "version 2 was rolled back by max; version 1 is champion again. complaints" in text
    promote_again = rollback(MODEL, "max", "complaints", version=version, office=office)
    assert not promote_again.changed
    assert len(_told(outbox)) == 4, "what changed nothing is no news"


def test_people_are_told_that_the_gate_could_not_judge(office: Office, tmp_path: Path) -> None:
    judge_weights(office, tmp_path, "broken", verdict=Verdict.ERROR)
    (notice,) = open_outbox().undelivered()
    assert (notice.kind, notice.body["state"]) == ("gate_error", "ERROR")


def test_a_drill_wakes_nobody(office: Office, tmp_path: Path) -> None:
    release_weights(office, tmp_path, "first")
    before = _told(open_outbox())
    assert run_drill(MODEL, actor="mia", office=office)["ok"]
    assert _told(open_outbox()) == before
