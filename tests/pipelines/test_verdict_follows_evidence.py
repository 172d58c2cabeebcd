"""The verdict follows the evidence: one over-optimised candidate, two panels, two verdicts.

Candidate, answers, rewards and gate policy are the same in both; only who judges changes.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from components.demo_world.answers import AnswerStyle, write_answer
from components.demo_world.prompts import Question, all_questions
from components.demo_world.vocabulary import SLICES
from components.human_eval.stage import run as run_human_eval
from components.release_gate.stage import run_gate
from components.shared.artifacts import write_artifact
from components.shared.files import read_json
from components.shared.records import PromptRecord, write_records

sys.path.insert(0, str(Path(__file__).parents[1] / "components" / "release_gate"))
from tiny_release import PROMPTS, Evidence, make_evidence


def _questions() -> list[Question]:
    return [question for name in SLICES for question in all_questions(name)[: PROMPTS // len(SLICES)]]


def _answer(question: Question, role: str) -> str:
    """The reference answers well and plainly; the candidate and its checkpoints flatter, over-claim, and are wrong."""
    style = AnswerStyle("good") if role == "reference" else AnswerStyle("wrong", flattery=True, over_claim=True)
    return write_answer(question, style, random.Random(f"{role} {question.text}"))


@pytest.fixture
def case(tmp_path: Path) -> tuple[Evidence, Path]:
    """A candidate whose learned reward rose by about one deviation, and the prompts that people judge it on."""
    questions = _questions()

    def put_in_words(generations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in generations:
            question = questions[int(row["prompt_id"][1:])]
            row |= {"prompt": question.text, "slice": question.slice, "response": _answer(question, row["role"])}
            row["n_tokens"] = len(row["response"].split()) + 1
        return generations

    evidence = make_evidence(tmp_path / "case", edits={"generations.jsonl": put_in_words})
    with write_artifact(tmp_path / "dataset", "dataset", stage="data_validation") as draft:
        records = [PromptRecord(id=f"p{i}", prompt=q.text, slice=q.slice) for i, q in enumerate(questions)]
        write_records(draft.path / "prompts" / "human_eval.jsonl", records)
        others = [q for name in SLICES for q in all_questions(name)[PROMPTS // len(SLICES) :][:20]]
        training = [PromptRecord(id=f"t{i}", prompt=q.text, slice=q.slice) for i, q in enumerate(others)]
        write_records(draft.path / "prompts" / "train.jsonl", training)
    return evidence, tmp_path / "dataset"


@pytest.fixture
def services(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", f"sqlite:///{tmp_path / 'evidence.db'}")
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", str(tmp_path / "anchors"))


def _judge(case: tuple[Evidence, Path], panel: str, tmp_path: Path) -> dict[str, Any]:
    evidence, dataset = case
    folder = tmp_path / panel
    run_human_eval(
        evaluation=evidence.evaluation,
        dataset=str(dataset),
        output=str(folder / "evidence"),
        seed=0,
        settings={"panel": f"components.demo_world.raters:{panel}", "n_prompts": PROMPTS, "checkpoint_prompts": 0},
    )
    run_gate(
        **evidence.as_arguments(evidence=str(folder / "evidence")),
        output=str(folder / "decision"),
        mode="candidate",
        policy=str(_policy(tmp_path)),
        model_name=panel,
        seed=0,
    )
    return read_json(folder / "decision" / "decision.json")


def _policy(tmp_path: Path) -> Path:
    """The demo's policy; its checkpoints are not judged here."""
    path = tmp_path / "policy.yaml"
    path.write_text(
        json.dumps({"extends": "demo", "name": "test", "version": 1, "divergence": {"require_checkpoints": False}})
    )
    return path


def _divergence(decision: dict[str, Any]) -> set[str]:
    """What the parts of the divergence criterion say."""
    return {found["verdict"] for found in decision["criteria"] if found["name"].startswith("divergence")}


def test_only_the_panel_changes_and_so_does_the_verdict(
    case: tuple[Evidence, Path], services: None, tmp_path: Path
) -> None:
    careful = _judge(case, "HumanRaters", tmp_path)
    assert careful["verdict"] == "BLOCK"
    assert "BLOCK" in _divergence(careful)
    assert careful["divergence"]["human_win_rate"] < 0.5 < careful["divergence"]["reward_win_rate"]

    dazzled = _judge(case, "RewardLikingRaters", tmp_path)
    assert _divergence(dazzled) <= {"PASS", "NOT_APPLICABLE"}
    assert dazzled["verdict"] != careful["verdict"]
    for name in ("candidate", "evaluation", "reward_model"):
        assert dazzled["digests"][name] == careful["digests"][name]
