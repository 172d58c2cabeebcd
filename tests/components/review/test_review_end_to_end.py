"""The simulated raters of the demo world judge a batch over HTTP; the human evaluation then finds it complete."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from review_world import SECRET, serve_on_loopback

from components.demo_world.answers import AnswerStyle, write_answer
from components.demo_world.prompts import Question, all_questions
from components.demo_world.raters import HumanRaters
from components.demo_world.vocabulary import SLICES
from components.human_eval.database import EvidenceDatabase
from components.human_eval.stage import run
from components.review.app import create_app
from components.review.server import with_local_people
from components.review.settings import ReviewSettings
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.files import read_json, write_json, write_jsonl
from components.shared.records import PromptRecord, SFTRecord, write_records

N_PROMPTS = 30
SETTINGS = {
    "panel": "people",
    "n_prompts": N_PROMPTS,
    "checkpoint_prompts": 0,
    "votes_per_prompt": 2,
    "gold_items": 10,
    "practice_items": 1,
    "repeat_share": 0.2,
}


def _write_world(folder: Path) -> None:
    rng = random.Random(0)
    questions = [rng.choice(all_questions(SLICES[number % len(SLICES)])) for number in range(N_PROMPTS)]
    demonstrated = [rng.choice(all_questions(SLICES[number % len(SLICES)])) for number in range(30)]
    records = [PromptRecord(id=f"p{n}", prompt=q.text, slice=q.slice) for n, q in enumerate(questions)]
    with write_artifact(folder / "dataset", "dataset", stage="data_validation") as draft:
        write_records(draft.path / "prompts/human_eval.jsonl", records)
        write_records(draft.path / "sft/heldout.jsonl", [_demonstration(n, q) for n, q in enumerate(demonstrated)])
    styles = {"candidate": AnswerStyle("good"), "reference": AnswerStyle("vague")}
    rows = [
        _answer(role, record, write_answer(question, style, random.Random(f"{role} {record.id}")))
        for role, style in styles.items()
        for record, question in zip(records, questions, strict=True)
    ]
    with write_artifact(folder / "evaluation", "evaluation", stage="evaluation") as draft:
        models = {role: {"digest": role, "step": None, "name": role} for role in styles}
        write_json(draft.path / "models.json", models)
        write_jsonl(draft.path / "generations.jsonl", rows)
        write_json(draft.path / "metrics.json", {})


def _demonstration(number: int, question: Question) -> SFTRecord:
    completion = write_answer(question, AnswerStyle("good"), random.Random(number))
    return SFTRecord(id=f"demo-{number}", prompt=question.text, completion=completion, slice=question.slice)


def _answer(role: str, record: PromptRecord, response: str) -> dict[str, Any]:
    return {
        "prompt_id": record.id,
        "prompt": record.prompt,
        "slice": record.slice,
        "prompt_set": "human_eval",
        "role": role,
        "response": response,
        "n_tokens": len(response.split()),
        "finished": True,
        "reward": 0.0,
        "heldout_reward": 0.0,
        "kl": None,
    }


def _human_eval(folder: Path, output: str) -> dict[str, Any]:
    paths = {name: str(folder / name) for name in ("evaluation", "dataset")}
    return run(**paths, output=str(folder / output), seed=0, settings=SETTINGS)


def _rate(address: str, token: str, rater: str, panel: HumanRaters) -> None:
    """A rater at work: signs in with a one-time token, then judges what comes until nothing does."""
    with httpx.Client(base_url=address, follow_redirects=False, timeout=60.0) as http:
        http.post("/login", data={"token": token})
        http.headers["X-Form-Token"] = http.get("/api/v1/me").json()["form_token"]
        for _ in range(1000):
            batches = http.get("/api/v1/batches").json()
            if not batches:
                return
            response = http.post(f"/api/v1/batches/{batches[0]['batch_id']}/next")
            found = response.json()
            if response.status_code == 409 or (found["task"] is None and not found["progress"]["waiting"]):
                return
            if found["task"] is not None:
                task = found["task"]
                answer = _judge(panel, rater, task)
                http.post(f"/api/v1/tasks/{task['task_id']}/answer", json=answer)


def _judge(panel: HumanRaters, rater: str, task: dict[str, Any]) -> dict[str, Any]:
    record = PromptRecord(id=task["task_id"], prompt=task["prompt"], slice="unknown")
    finished = {"finished_a": task["finished_a"], "finished_b": task["finished_b"]}
    verdict = panel.judge(rater, record, task["response_a"], task["response_b"], **finished)
    return {**verdict, "rationale": "simulated", "revision": task["revision"]}


@pytest.mark.slow
def test_simulated_raters_judge_over_http_and_the_stage_finds_the_batch_complete(
    tmp_path: Path, database: EvidenceDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _write_world(tmp_path)
    opened = _human_eval(tmp_path, "before")
    assert (opened["complete"], opened["n_votes"]) == (False, 0)
    panel = HumanRaters(0)
    raters = [panel.raters[0], panel.raters[1], panel.raters[2], panel.raters[-1]]  # the last one clicks at random
    people = with_local_people(ReviewSettings(), managers=[], raters=[], simulated=raters)
    app = create_app(people, secret=SECRET, database=database)
    login = app.state.review.login
    with serve_on_loopback(app) as address:
        threads = [threading.Thread(target=_rate, args=(address, login.issue(rater), rater, panel)) for rater in raters]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    result = _human_eval(tmp_path, "after")
    assert result["batch_id"] == opened["batch_id"]
    assert result["complete"] is True
    assert result["n_prompts"] == N_PROMPTS
    assert result["win_rate"] > 0.6
    statistics = read_json(read_artifact(tmp_path / "after", "human_evidence").file("statistics.json"))
    assert statistics["rater_kinds"] == ["simulated"]
    assert len(statistics["raters"]) == len(raters)
    honest = [app.state.review.pseudonym_of(rater) for rater in raters[:3]]
    assert all(statistics["raters"][rater]["counted"] for rater in honest)
    assert database.closure(result["batch_id"]) is not None
