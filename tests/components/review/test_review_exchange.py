"""Batches to Label Studio and Argilla and back: blind, checked, and never more votes than asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from review_world import Client, make_service, open_batch

from components.human_eval.database import EvidenceDatabase
from components.human_eval.imports import find_imports
from components.human_eval.rater_quality import preferred

Label = Callable[[dict[str, Any], str, dict[str, Any]], None]


def _label_studio(task: dict[str, Any], login: str, answer: dict[str, Any]) -> None:
    result = [{"from_name": "choice", "to_name": "pair", "type": "choices", "value": {"choices": [answer["choice"]]}}]
    for name in ("flags_a", "flags_b"):
        result.append({"from_name": name, "value": {"choices": answer.get(name, [])}})
    result += [
        {"from_name": f"rubric_{name}", "value": {"choices": [value]}}
        for name, value in answer.get("rubric", {}).items()
    ]
    if "rationale" in answer:
        result.append({"from_name": "rationale", "type": "textarea", "value": {"text": [answer["rationale"]]}})
    task.setdefault("annotations", []).append({"completed_by": {"id": 7, "email": login}, "result": result})


def _argilla(record: dict[str, Any], login: str, answer: dict[str, Any]) -> None:
    values = {"choice": answer["choice"], "rationale": answer.get("rationale", "")}
    values |= {name: answer[name] for name in ("flags_a", "flags_b") if name in answer}
    values |= {f"rubric_{name}": value for name, value in answer.get("rubric", {}).items()}
    for question, value in values.items():
        record["responses"].setdefault(question, []).append({"value": value, "user_id": login})


def _texts(task: dict[str, Any]) -> dict[str, Any]:
    return task.get("data") or task["fields"]


@pytest.mark.parametrize(("tool", "label"), [("label-studio", _label_studio), ("argilla", _argilla)])
def test_labels_come_back_as_judgements(database: EvidenceDatabase, database_url: str, tool: str, label: Label) -> None:
    batch, app = open_batch(database, n_pairs=5, n_gold=3, votes_per_prompt=1), make_service(database_url)
    mia = Client(app, "mia")
    response = mia.get(f"/api/v1/batches/{batch}/export", params={"format": tool})
    assert "attachment" in response.headers["content-disposition"]
    tasks = response.json()
    assert len(tasks) == 8
    for secret in ("candidate", "reference", "gold_", "howto"):
        assert secret not in response.text
    sides = set()
    for task in tasks:
        best = "a" if _texts(task)["answer_a"][0] in "cg" else "b"
        sides.add(best)
        label(task, "ann@example.com", {"choice": best, "rubric": {"honest": "tie"}})
    report = mia.post(f"/api/v1/batches/{batch}/import", tasks).json()
    assert report == {"stored": 8, "known": 0, "refused": []}
    judgements = database.judgements(batch)
    assert {preferred(judgement) for judgement in judgements} == {"first"}
    assert {judgement.kind for judgement in judgements} == {"vote", "gold"}
    assert {judgement.rater for judgement in judgements} == {app.state.review.pseudonym_of("ann@example.com")}
    assert judgements[0].rubric == {"honest": "tie"}
    assert sides == {"a", "b"}
    assert database.closure(batch) is not None


@pytest.mark.parametrize(("tool", "label"), [("label-studio", _label_studio), ("argilla", _argilla)])
def test_labels_that_cannot_be_taken_are_named_and_the_others_are_taken(
    database: EvidenceDatabase, database_url: str, tool: str, label: Label
) -> None:
    batch, app = open_batch(database, n_pairs=4), make_service(database_url)
    mia = Client(app, "mia")
    tasks = mia.get(f"/api/v1/batches/{batch}/export", params={"format": tool}).json()
    label(tasks[0], "ann", {"choice": "a"})
    label(tasks[0], "bob", {"choice": "b"})  # one vote was asked for
    label(tasks[1], "ann", {"choice": "both_bad"})  # without a reason
    label(tasks[2], "ann", {"choice": "a"})
    _texts(tasks[2])["answer_a"] += " edited"
    report = mia.post(f"/api/v1/batches/{batch}/import", tasks).json()
    assert report["stored"] == 1
    assert len(report["refused"]) == 3
    assert "has all its votes" in report["refused"][0]
    assert "why both answers are bad" in report["refused"][1]
    assert "not those that were exported" in report["refused"][2]
    again = mia.post(f"/api/v1/batches/{batch}/import", tasks).json()
    assert (again["stored"], again["known"]) == (0, 1)


def test_a_file_of_another_kind_is_refused_and_says_what_was_expected(
    database: EvidenceDatabase, database_url: str
) -> None:
    batch, mia = open_batch(database), Client(make_service(database_url), "mia")
    response = mia.post(f"/api/v1/batches/{batch}/import", [{"text": "x"}])
    assert response.status_code == 422
    assert "neither Label Studio's nor Argilla's fields: text" in response.json()["error"]["problem"]


def test_a_labelled_file_is_imported_from_the_page(database: EvidenceDatabase, database_url: str) -> None:
    batch, mia = open_batch(database, n_pairs=2), Client(make_service(database_url), "mia")
    tasks = mia.get(f"/api/v1/batches/{batch}/export?format=label-studio").json()
    _label_studio(tasks[0], "ann", {"choice": "tie"})
    _label_studio(tasks[1], "ann", {"choice": "left"})
    for task in tasks:
        task.setdefault("annotations", [])
    file = {"file": ("labels.json", json.dumps(tasks), "application/json")}
    page = mia.form(f"/batches/{batch}/import", {}, files=file).text
    assert "1 labels were stored, 0 were there already, 1 were refused." in page
    broken = mia.form(f"/batches/{batch}/import", {}, files={"file": ("labels.json", "{", "application/json")})
    assert broken.status_code == 422
    assert "is not JSON" in broken.text


def test_a_manager_closes_a_batch_with_a_reason(database: EvidenceDatabase, database_url: str) -> None:
    batch, mia = open_batch(database), Client(make_service(database_url), "mia")
    assert mia.form(f"/batches/{batch}/close", {"reason": " "}).status_code == 422
    page = mia.form(f"/batches/{batch}/close", {"reason": "enough seen"}).text
    assert "Closed by mia" in page
    assert "enough seen" in page


def test_the_labelling_interface_names_every_question(database_url: str) -> None:
    config = Client(make_service(database_url), "mia").get("/api/v1/label-studio-config").text
    for name in ("choice", "flags_a", "flags_b", "rationale", "rubric_helpful", "rubric_style"):
        assert f'name="{name}"' in config


def test_who_imports_is_recorded_and_shown(database: EvidenceDatabase, database_url: str) -> None:
    batch, mia = open_batch(database, n_pairs=2), Client(make_service(database_url), "mia")
    tasks = mia.get(f"/api/v1/batches/{batch}/export?format=label-studio").json()
    for task in tasks:
        _label_studio(task, "made-up@example.com", {"choice": "a"})
    content = json.dumps(tasks).encode()
    mia.form(f"/batches/{batch}/import", {}, files={"file": ("la<b>els.json", content, "application/json")})
    (found,) = find_imports(database, batch).values()
    assert (found.actor, found.source, found.labels) == ("mia", "la<b>els.json", 2)
    assert found.digest == hashlib.sha256(content).hexdigest()
    assert {judgement.import_id for judgement in database.judgements(batch)} == {found.import_id}
    page = mia.get(f"/batches/{batch}").text
    assert "la&lt;b&gt;els.json" in page
    assert found.digest[:16] in page
    (told,) = mia.get(f"/api/v1/batches/{batch}/report").json()["imports"]
    assert (told["actor"], told["judgements"]) == ("mia", 2)


def test_the_digest_of_what_a_program_sends_is_that_of_its_bytes(database: EvidenceDatabase, database_url: str) -> None:
    batch, mia = open_batch(database, n_pairs=1), Client(make_service(database_url), "mia")
    content = json.dumps(mia.get(f"/api/v1/batches/{batch}/export?format=argilla").json(), indent=3).encode()
    headers = {"X-Form-Token": mia.token, "content-type": "application/json"}
    assert mia.http.post(f"/api/v1/batches/{batch}/import", content=content, headers=headers).status_code == 200
    (found,) = find_imports(database, batch).values()
    assert (found.source, found.digest) == ("API", hashlib.sha256(content).hexdigest())


def test_a_program_stays_one_when_its_labels_are_imported(database: EvidenceDatabase, database_url: str) -> None:
    batch, mia = open_batch(database, n_pairs=1), Client(make_service(database_url), "mia")
    (task,) = mia.get(f"/api/v1/batches/{batch}/export?format=label-studio").json()
    _label_studio(task, "SIM", {"choice": "a"})
    assert mia.post(f"/api/v1/batches/{batch}/import", [task]).json()["stored"] == 1
    assert [judgement.rater_kind for judgement in database.judgements(batch)] == ["simulated"]


def test_of_a_file_that_cannot_be_read_to_its_end_nothing_is_taken(
    database: EvidenceDatabase, database_url: str
) -> None:
    batch, mia = open_batch(database, n_pairs=2), Client(make_service(database_url), "mia")
    tasks = mia.get(f"/api/v1/batches/{batch}/export?format=label-studio").json()
    _label_studio(tasks[0], "ann", {"choice": "a"})
    for broken in ({"text": "x"}, {"data": {}, "annotations": ["x"]}, {"fields": {}, "responses": {"choice": "a"}}):
        assert mia.post(f"/api/v1/batches/{batch}/import", [tasks[0], broken]).status_code == 422
    assert database.judgements(batch) == []
    assert find_imports(database, batch) == {}
