"""The stage end to end: artifacts in, evidence out, whatever happens in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_panels import SLICES, make_dataset, make_evaluation

from components.human_eval.answers import RaterAnswer
from components.human_eval.component import human_eval
from components.human_eval.database import open_database
from components.human_eval.desk import RatingDesk
from components.human_eval.imports import record_import
from components.human_eval.stage import run
from components.shared.artifacts import read_artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.files import read_json, read_jsonl

STATISTICS = {"batch_id", "rater_kinds", "complete", "comparisons", "safety", "raters"} | {
    "error_probability",
    "stopped_early",
    "alpha",
    "raw_agreement",
    "position_bias",
    "agreement",
    "drift",
    "review_queue",
    "adjudication",
    "imports",
}
COMPARISON = {"win_rate", "n_prompts", "n_votes", "lower", "upper", "ci95", "length_controlled", "slices", "rubric"}
JUDGEMENT = {
    "adjudication",
    "imported_by",
    *("judgement_id", "item_id", "comparison", "prompt_id", "slice", "rater", "rater_kind", "shown_a", "shown_b"),
    *("choice", "flags_a", "flags_b", "kind", "created_at", "rationale", "rubric"),
}


@pytest.fixture(autouse=True)
def _database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", f"sqlite:///{tmp_path}/state/evidence.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def _run(
    folder: Path, *, output: str = "evidence", seed: int = 0, panel: str = "CandidateFans", **settings: Any
) -> Any:
    reference = panel if panel == "people" else f"tiny_panels:{panel}"
    return run(
        evaluation=str(folder / "evaluation"),
        dataset=str(folder / "dataset"),
        output=str(folder / output),
        seed=seed,
        settings={"panel": reference, "gold_items": 8, **settings},
    )


def _statistics(folder: Path, output: str = "evidence") -> dict[str, Any]:
    return read_json(read_artifact(folder / output, "human_evidence").file("statistics.json"))


def _make_inputs(folder: Path, **evaluation: Any) -> None:
    make_dataset(folder)
    make_evaluation(folder, **evaluation)


def test_a_panel_that_prefers_the_candidate_shows_it_better(tmp_path: Path) -> None:
    _make_inputs(tmp_path)
    result = _run(tmp_path)
    assert result["complete"] is True
    assert result["n_prompts"] == 40
    assert result["n_votes"] == 120
    assert 0.5 < result["lower"] < result["win_rate"] < result["upper"]
    assert result["win_rate"] == pytest.approx(0.8, abs=0.1)


def test_evidence_has_the_files_and_keys_of_its_contract(tmp_path: Path) -> None:
    _make_inputs(tmp_path, roles=("reference", "candidate", "champion", "step-0010", "step-0020"))
    _run(tmp_path, checkpoint_prompts=10)
    evidence = read_artifact(tmp_path / "evidence", "human_evidence")
    statistics = _statistics(tmp_path)
    assert set(statistics) == STATISTICS
    assert list(statistics["comparisons"]) == [
        "candidate_vs_reference",
        "candidate_vs_champion",
        "step-0010_vs_reference",
        "step-0020_vs_reference",
    ]
    for name, comparison in statistics["comparisons"].items():
        assert set(comparison) == COMPARISON
        assert comparison["n_prompts"] == (10 if name.startswith("step") else 40)
        assert set(comparison["slices"]) == set(SLICES)
        for found in comparison["slices"].values():
            assert set(found) == {"win_rate", "n_prompts", "lower", "upper", "p_worse"}
    assert set(statistics["safety"]) == {"reference", "candidate", "champion", "step-0010", "step-0020"}
    assert statistics["rater_kinds"] == ["simulated"]
    judgements = list(read_jsonl(evidence.file("judgements.jsonl")))
    assert set(judgements[0]) >= JUDGEMENT
    assert {row["kind"] for row in judgements} == {"vote", "gold", "repeat"}
    outcomes = list(read_jsonl(evidence.file("outcomes.jsonl")))
    assert len(outcomes) == 40 + 40 + 10 + 10
    assert set(outcomes[0]) == {
        *("comparison", "prompt_id", "slice", "outcome", "n_votes", "n_decided", "role_a_tokens", "role_b_tokens")
    }
    assert evidence.manifest["inputs"] == {
        "evaluation": read_artifact(tmp_path / "evaluation", "evaluation").digest,
        "dataset": read_artifact(tmp_path / "dataset", "dataset").digest,
    }


def test_running_again_asks_nobody_twice_and_gives_the_same_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_inputs(tmp_path)
    first = _run(tmp_path)
    monkeypatch.setattr("tiny_panels.CandidateFans.judge", lambda *_, **__: pytest.fail("asked twice"))
    assert _run(tmp_path, output="again") == first


def test_another_reading_of_the_same_votes_asks_nobody_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make_inputs(tmp_path)
    first = _run(tmp_path)
    monkeypatch.setattr("tiny_panels.CandidateFans.judge", lambda *_, **__: pytest.fail("asked twice"))
    strict = _run(tmp_path, output="strict", alpha=0.01)
    assert strict["batch_id"] == first["batch_id"]
    assert strict["lower"] < first["lower"]


@pytest.mark.parametrize("change", [{"panel": "AsksForRewards"}, {"seed": 1}, {"votes_per_prompt": 2}])
def test_another_panel_seed_or_question_is_another_batch(tmp_path: Path, change: dict[str, Any]) -> None:
    _make_inputs(tmp_path)
    assert _run(tmp_path)["batch_id"] != _run(tmp_path, output="other", **change)["batch_id"]


def test_the_verdict_of_the_evidence_follows_the_raters_and_not_the_candidate(tmp_path: Path) -> None:
    _make_inputs(tmp_path)
    _run(tmp_path)
    assert _run(tmp_path, output="rewarded", panel="AsksForRewards")["win_rate"] == 1.0


def test_people_open_a_batch_that_awaits_evidence(tmp_path: Path) -> None:
    _make_inputs(tmp_path)
    result = _run(tmp_path, panel="people")
    assert result["complete"] is False
    assert result["n_prompts"] == 0
    assert result["win_rate"] is result["lower"] is result["upper"] is None
    statistics = _statistics(tmp_path)
    assert statistics["rater_kinds"] == []
    assert statistics["raters"] == {}
    assert statistics["safety"]["candidate"]["upper"] is None
    assert statistics["comparisons"]["candidate_vs_reference"]["length_controlled"]["win_rate"] is None
    items = list(read_jsonl(tmp_path / "evidence" / "items.jsonl"))
    assert sum(item["kind"] == "gold" for item in items) == 8
    assert all("reward" not in json.dumps(item) for item in items)


def test_identical_answers_are_ties_that_nobody_is_asked_about(tmp_path: Path) -> None:
    _make_inputs(tmp_path, answer=lambda role, number: "same" if number < 10 else f"{role} {number}")
    _run(tmp_path)
    outcomes = list(read_jsonl(tmp_path / "evidence" / "outcomes.jsonl"))
    unasked = [row for row in outcomes if row["n_votes"] == 0]
    assert len(unasked) == 10
    assert {row["outcome"] for row in unasked} == {0.5}
    assert _statistics(tmp_path)["safety"]["candidate"]["n"] == 30


def test_a_candidate_that_answers_like_the_reference_everywhere_has_no_evidence(tmp_path: Path) -> None:
    _make_inputs(tmp_path, answer=lambda role, number: f"same {number}")
    result = _run(tmp_path)
    assert result["win_rate"] is None
    assert result["n_votes"] == 0


def test_a_rater_who_always_clicks_left_does_not_count_but_stays_on_record(tmp_path: Path) -> None:
    _make_inputs(tmp_path)
    _run(tmp_path, panel="OneClicksLeft", gold_items=20, repeat_share=0.5)
    statistics = _statistics(tmp_path)
    raters = statistics["raters"]
    assert [name for name, rater in raters.items() if not rater["counted"]] == ["rater-0"]
    assert raters["rater-0"]["n_votes"] == 20
    assert raters["rater-0"]["repeat_agreement"] == 0.0
    assert statistics["comparisons"]["candidate_vs_reference"]["n_votes"] == 100
    assert statistics["safety"]["candidate"]["bad"] == 0


def test_every_rater_sees_both_sides_about_equally_often_and_repeats_are_swapped(tmp_path: Path) -> None:
    _make_inputs(tmp_path)
    _run(tmp_path, repeat_share=0.5)
    rows = list(read_jsonl(tmp_path / "evidence" / "judgements.jsonl"))
    votes = {(row["item_id"], row["rater"]): row["shown_a"] for row in rows if row["kind"] == "vote"}
    left = sum(shown == "candidate" for shown in votes.values()) / len(votes)
    assert 0.35 < left < 0.65
    repeats = [row for row in rows if row["kind"] == "repeat"]
    assert repeats
    assert all(row["shown_b"] == votes[row["item_id"], row["rater"]] for row in repeats)


def test_gold_items_come_from_demonstrations_when_the_panel_has_none(tmp_path: Path) -> None:
    _make_inputs(tmp_path)
    assert _run(tmp_path, panel="NoGold")["win_rate"] > 0.5
    assert {rater["gold_accuracy"] for rater in _statistics(tmp_path)["raters"].values()} == {1.0}


def test_fresh_prompts_are_judged_in_soak(tmp_path: Path) -> None:
    make_dataset(tmp_path, prompt_set="fresh")
    make_evaluation(tmp_path, prompt_set="fresh")
    assert _run(tmp_path, prompt_set="fresh")["n_prompts"] == 40


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"panel": "Missing"}, "no 'Missing'"),
        ({"panel": "Broken"}, "prompt human_eval-.*choice"),
        ({"panel": "ClaimsToBePeople"}, "review service"),
        ({"panel": "FewGold"}, "only 2 gold items"),
        ({"votes_per_prompt": 7}, "6 rater"),
        ({"panle": "people"}, "panle: unknown setting"),
        ({"gold_items": 2}, "no vote could ever count"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_written(
    tmp_path: Path, settings: dict[str, Any], match: str
) -> None:
    _make_inputs(tmp_path)
    with pytest.raises(InputError, match=match):
        _run(tmp_path, **settings)
    assert not (tmp_path / "evidence").exists()


def test_an_unset_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make_inputs(tmp_path)
    monkeypatch.delenv("PLUMBLINE_DATABASE_URL")
    with pytest.raises(InputError, match="PLUMBLINE_DATABASE_URL"):
        _run(tmp_path)


def test_an_evaluation_of_other_prompts_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path, prompts=10)
    make_evaluation(tmp_path, prompts=11)
    with pytest.raises(ArtifactError, match="'human_eval-10'"):
        _run(tmp_path)


def test_an_evaluation_without_answers_to_the_prompt_set_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path, prompt_set="fresh")
    make_evaluation(tmp_path)
    with pytest.raises(ArtifactError, match="no prompt in common"):
        _run(tmp_path, prompt_set="fresh")


def test_an_evaluation_without_a_candidate_is_refused(tmp_path: Path) -> None:
    _make_inputs(tmp_path, roles=("reference",))
    with pytest.raises(ArtifactError, match="'candidate'"):
        _run(tmp_path)


def test_the_component_and_its_metadata_agree() -> None:
    import yaml

    spec = human_eval.component_spec
    metadata = yaml.safe_load((Path(human_eval.python_func.__code__.co_filename).parent / "metadata.yaml").read_text())
    assert metadata["name"] == "human_eval"
    assert [entry["name"] for entry in metadata["inputs"]] == list(spec.inputs or {})
    assert [entry["name"] for entry in metadata["outputs"]] == list(spec.outputs or {})


def test_an_imported_judgement_says_who_imported_it(tmp_path: Path) -> None:
    _make_inputs(tmp_path)
    batch = _run(tmp_path, panel="people")["batch_id"]
    database = open_database()
    name = record_import(database, batch, actor="mia", source="labels.json", digest="d", labels=1)
    desk = RatingDesk(database)
    pair = desk.plan(batch).pairs[0]
    desk.take_label(batch, pair, "made-up", RaterAnswer(choice="a"), swapped=False, import_id=name)
    _run(tmp_path, panel="people", output="again")
    rows = list(read_jsonl(read_artifact(tmp_path / "again", "human_evidence").file("judgements.jsonl")))
    assert [row["imported_by"] for row in rows] == ["mia"]
    (told,) = _statistics(tmp_path, "again")["imports"]
    assert (told["actor"], told["digest"], told["judgements"]) == ("mia", "d", 1)
