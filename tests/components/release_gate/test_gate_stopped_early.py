"""A batch of people that the stopping rule closed can release a candidate, and nothing else can pass for one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tiny_release import PROMPTS, SLICES, Evidence, edit_case, make_case, make_evidence, make_policy

from components.human_eval.database import EvidenceDatabase, Judgement, judgement_id, open_database
from components.human_eval.desk import RatingDesk
from components.human_eval.stage import run
from components.human_eval.stopping import STOPPING_RULE, close_what_has_ended
from components.release_gate.criteria import judge_all
from components.release_gate.evidence import Case
from components.release_gate.findings import Criterion, Finding
from components.release_gate.verdict import Verdict, decide
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.files import read_json
from components.shared.records import PromptRecord, write_records

MAIN = "candidate_vs_reference"
ENOUGH = 150
POLICY: dict[str, Any] = {
    "raters": {"min_gold_items": 0},
    "safety": {"max_bad_rate": 0.05, "min_answers": ENOUGH},
    "divergence": {"gap_margin": 0.2},
}


@pytest.fixture(autouse=True)
def _database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", f"sqlite:///{tmp_path}/state/evidence.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def world(tmp_path: Path) -> Evidence:
    """A candidate, its reference and a checkpoint, whose answers all differ; nobody has judged them yet."""

    def distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        tokens = {"candidate": 7, "reference": 5}
        for place, row in enumerate(rows):
            row["response"] = f"{row['role']} answers {row['prompt_id']}"
            row["n_tokens"] = tokens.get(row["role"], 6) + place * 7 % 11
        return rows

    made = make_evidence(tmp_path / "world", edits={"generations.jsonl": distinct})
    with write_artifact(tmp_path / "dataset", "dataset", stage="data_validation") as draft:
        prompts = [PromptRecord(id=f"p{i}", prompt=f"question {i}", slice=SLICES[i % 3]) for i in range(PROMPTS)]
        write_records(draft.path / "prompts/human_eval.jsonl", prompts)
    return made


def _evidence(root: Path, world: Evidence, name: str, **settings: Any) -> dict[str, Any]:
    """The human_eval step, as a run and later the release run start it."""
    asked = {"panel": "people", "votes_per_prompt": 1, "gold_items": 0, "stop_early_from_prompts": ENOUGH, **settings}
    return run(
        evaluation=world.evaluation,
        dataset=str(root / "dataset"),
        output=str(root / name),
        seed=0,
        settings={"checkpoint_prompts": 20, **asked},
    )


def _vote(database: EvidenceDatabase, batch_id: str, n: int, *, wins: int) -> None:
    """People judge `n` pairs of candidate and reference, and prefer the candidate on `wins` of ten."""
    items = [item for item in database.batch(batch_id).items if item.comparison == MAIN][:n]
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    votes = []
    for place, item in enumerate(items):
        rater = f"rater-{place % 4}"
        choice = "a" if place % 10 < wins else "b"
        when = (begun + timedelta(seconds=place)).isoformat(timespec="microseconds")
        name = judgement_id(item.item_id, rater, "vote", 0)
        votes.append(Judgement(name, item.item_id, rater, "human", "vote", False, choice, [], [], when))
    database.add_judgements(votes)


def _case(root: Path, world: Evidence, name: str, **policy: Any) -> Case:
    evidence = Evidence(**{**world.__dict__, "evidence": str(root / name)})
    return make_case(evidence, policy=make_policy(**{**POLICY, **policy}))


def _found(case: Case) -> dict[str, Criterion]:
    return {found.name: found for found in judge_all(case)}


def _stopped(root: Path, world: Evidence, *, wins: int = 7, n: int = 200, **settings: Any) -> str:
    """Opens a batch, lets people judge a part of it, and looks whether it has ended; returns its id."""
    batch_id = _evidence(root, world, "opened", **settings)["batch_id"]
    database = open_database()
    _vote(database, batch_id, n, wins=wins)
    close_what_has_ended(RatingDesk(database))
    return batch_id


def test_a_batch_that_is_decided_early_is_closed_and_its_candidate_promoted(tmp_path: Path, world: Evidence) -> None:
    batch_id = _stopped(tmp_path, world)
    closure = open_database().closure(batch_id)
    assert closure is not None
    assert closure.actor == STOPPING_RULE
    assert _evidence(tmp_path, world, "evidence")["complete"] is True
    artifact = read_artifact(tmp_path / "evidence", "human_evidence")
    assert artifact.manifest["metadata"]["complete"] is True, "nothing is awaited any more"
    statistics = read_json(artifact.file("statistics.json"))
    assert statistics["stopped_early"].startswith(f"Decided: {MAIN} on 200 prompts")
    assert statistics["comparisons"]["step-0010_vs_reference"]["n_prompts"] == 0, "pairs of checkpoints lack votes"
    case = _case(tmp_path, world, "evidence")
    found = judge_all(case)
    by_name = {one.name: one for one in found}
    assert by_name["raters.complete"].verdict is Finding.PASS
    assert "stopping rule" in by_name["raters.complete"].reason
    assert decide(found, live=False).verdict is Verdict.PROMOTE, [one for one in found if one.verdict != "PASS"]


def test_people_who_prefer_the_other_one_close_the_batch_too_and_block(tmp_path: Path, world: Evidence) -> None:
    _stopped(tmp_path, world, wins=2)
    assert _evidence(tmp_path, world, "evidence")["complete"] is True
    assert decide(judge_all(_case(tmp_path, world, "evidence")), live=False).verdict is Verdict.BLOCK


def test_safety_still_asks_for_its_answers(tmp_path: Path, world: Evidence) -> None:
    _stopped(tmp_path, world)
    _evidence(tmp_path, world, "evidence")
    case = _case(tmp_path, world, "evidence", safety={**POLICY["safety"], "min_answers": 201})
    assert _found(case)["safety.share"].verdict is Finding.HOLD
    assert decide(judge_all(case), live=False).verdict is Verdict.HOLD


def test_a_batch_that_somebody_else_closed_early_is_not_complete(tmp_path: Path, world: Evidence) -> None:
    batch_id = _evidence(tmp_path, world, "opened")["batch_id"]
    database = open_database()
    _vote(database, batch_id, 200, wins=7)
    database.close(batch_id, actor="mia", reason="Decided: I have seen enough.")
    assert _evidence(tmp_path, world, "evidence")["complete"] is False
    assert _found(_case(tmp_path, world, "evidence"))["raters.complete"].verdict is Finding.HOLD


@pytest.mark.parametrize(("wins", "settings"), [(5, {}), (7, {"stop_early_from_prompts": None})], ids=str)
def test_a_closure_in_the_rules_name_on_votes_that_it_would_not_close_on_is_not_complete(
    tmp_path: Path, world: Evidence, wins: int, settings: dict[str, Any]
) -> None:
    batch_id = _stopped(tmp_path, world, wins=wins, **settings)
    database = open_database()
    assert database.closure(batch_id) is None
    database.close(batch_id, actor=STOPPING_RULE, reason="Decided: believe me.")
    assert _evidence(tmp_path, world, "evidence", **settings)["complete"] is False


def test_statistics_that_claim_to_be_decided_and_are_not_hold(tmp_path: Path, world: Evidence) -> None:
    batch_id = _stopped(tmp_path, world, wins=5)
    assert open_database().closure(batch_id) is None
    _evidence(tmp_path, world, "evidence")
    claimed = {"complete": True, "stopped_early": "Decided: believe me."}
    case = edit_case(_case(tmp_path, world, "evidence"), {"statistics.json": lambda found: {**found, **claimed}})
    found = _found(case)["raters.complete"]
    assert found.verdict is Finding.HOLD
    assert f"at 95 % it is not ({MAIN})" in found.reason


def test_a_run_that_stopped_at_a_looser_confidence_than_the_policys_holds(tmp_path: Path, world: Evidence) -> None:
    _stopped(tmp_path, world, wins=6, n=150, alpha=0.3)
    assert _evidence(tmp_path, world, "evidence", alpha=0.3)["complete"] is True
    found = _found(_case(tmp_path, world, "evidence", bounds={"alpha": 0.001}))["raters.complete"]
    assert found.verdict is Finding.HOLD
    assert "human_eval.alpha at most 0.001" in found.reason
