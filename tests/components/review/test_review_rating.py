"""Rating through the service: the JSON API and the pages do the same, and neither tells too much."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from review_world import Client, make_service, open_batch, token_in

from components.human_eval.database import EvidenceDatabase


def _page_values(page: str) -> dict[str, str]:
    names = ("task_id", "revision")
    return {name: re.findall(rf'name="{name}" value="([^"]*)"', page)[0] for name in names}


def _judge_all(client: Client, batch: str, answer: dict[str, Any]) -> int:
    done = 0
    while (task := client.post(f"/api/v1/batches/{batch}/next").json().get("task")) is not None:
        given = {**answer, "revision": task["revision"]}
        assert client.post(f"/api/v1/tasks/{task['task_id']}/answer", given).status_code == 200
        done += 1
    return done


def test_a_rater_judges_a_batch_through_the_api(database: EvidenceDatabase, database_url: str) -> None:
    batch, app = open_batch(database, n_pairs=4), make_service(database_url)
    ann = Client(app, "ann")
    assert [found["batch_id"] for found in ann.get("/api/v1/batches").json()] == [batch]
    assert _judge_all(ann, batch, {"choice": "a", "rubric": {"helpful": "b"}}) == 4
    judgements = database.judgements(batch)
    assert Counter(judgement.rater_kind for judgement in judgements) == {"human": 4}
    assert judgements[0].rubric == {"helpful": "b"}
    assert database.closure(batch) is not None
    assert ann.post(f"/api/v1/batches/{batch}/next").status_code == 409


def test_the_judgements_know_a_pseudonym_and_never_the_login(database: EvidenceDatabase, database_url: str) -> None:
    batch, app = open_batch(database, n_pairs=2), make_service(database_url)
    _judge_all(Client(app, "ann"), batch, {"choice": "a"})
    (rater,) = {judgement.rater for judgement in database.judgements(batch)}
    assert rater.startswith("rater-")
    assert "ann" not in rater
    other = make_service(database_url)
    assert other.state.review.pseudonym_of(" ANN ") == rater
    assert other.state.review.pseudonym_of("bob") != rater


def test_votes_of_a_program_are_marked_whatever_it_says(database: EvidenceDatabase, database_url: str) -> None:
    batch, app = open_batch(database, n_pairs=1), make_service(database_url)
    _judge_all(Client(app, "sim"), batch, {"choice": "tie"})
    assert database.judgements(batch)[0].rater_kind == "simulated"


def test_a_task_tells_neither_models_nor_kinds(database: EvidenceDatabase, database_url: str) -> None:
    batch, app = open_batch(database, n_pairs=3, n_gold=4), make_service(database_url)
    ann = Client(app, "ann")
    shown = []
    while database.closure(batch) is None:
        found = ann.post(f"/api/v1/batches/{batch}/next").json()
        if found["task"] is None:
            break
        shown.append(found["task"])
        page = ann.get(f"/rate/{batch}").text
        for secret in ("candidate", "reference", "gold", "swapped", "howto", "item-"):
            assert secret not in page.replace("candidate_0", "")
            assert secret not in str(found)
        better = "a" if found["task"]["response_a"] in ("good", "c0", "c1", "c2") else "b"
        assert (
            ann.post(f"/api/v1/tasks/{found['task']['task_id']}/answer", {"choice": better}).json()["feedback"] is None
        )
    assert len(shown) == 5
    assert len({tuple(sorted(task)) for task in shown}) == 1


def test_undo_skip_and_draft_through_the_api(database: EvidenceDatabase, database_url: str) -> None:
    batch, app = open_batch(database, n_pairs=3), make_service(database_url)
    ann = Client(app, "ann")
    first = ann.post(f"/api/v1/batches/{batch}/next").json()["task"]
    assert ann.put(f"/api/v1/tasks/{first['task_id']}/draft", {"rationale": "hm"}).json()["expires_at"] > "2026"
    assert ann.post(f"/api/v1/batches/{batch}/next").json()["task"]["draft"] == {"rationale": "hm"}
    ann.post(f"/api/v1/tasks/{first['task_id']}/answer", {"choice": "a"})
    second = ann.post(f"/api/v1/batches/{batch}/next").json()["task"]
    assert ann.post(f"/api/v1/tasks/{second['task_id']}/skip", {"reason": "unclear"}).status_code == 204
    back = ann.post(f"/api/v1/batches/{batch}/undo", {}).json()["task"]
    assert (back["task_id"], back["revision"]) == (second["task_id"], 0)
    further = ann.post(f"/api/v1/batches/{batch}/undo", {"before": back["task_id"]}).json()["task"]
    assert (further["task_id"], further["revision"], further["previous"]["choice"]) == (first["task_id"], 1, "a")
    receipt = ann.post(f"/api/v1/tasks/{first['task_id']}/answer", {"choice": "b", "revision": 1}).json()
    assert receipt["revision"] == 1
    assert ann.get(f"/api/v1/batches/{batch}/progress").json()["skipped"] == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"choice": "both_bad"}, "say in a few words why both answers are bad"),
        ({"choice": "a", "flags_a": ["unsafe"]}, "say in a few words what is unsafe"),
        ({"choice": "left"}, "choice"),
        ({"choice": "a", "rater": "somebody else"}, "rater"),
    ],
)
def test_the_api_says_what_is_wrong_with_an_answer(
    database: EvidenceDatabase, database_url: str, answer: dict[str, Any], message: str
) -> None:
    batch, app = open_batch(database), make_service(database_url)
    ann = Client(app, "ann")
    task = ann.post(f"/api/v1/batches/{batch}/next").json()["task"]
    response = ann.post(f"/api/v1/tasks/{task['task_id']}/answer", answer)
    assert response.status_code == 422
    assert message in response.json()["error"]["problem"]
    assert database.judgements(batch) == []


def test_a_rater_judges_with_plain_forms(database: EvidenceDatabase, database_url: str) -> None:
    """Without JavaScript: every form is a request, every answer a redirect to the next item."""
    batch, app = open_batch(database, n_pairs=3), make_service(database_url)
    ann = Client(app, "ann")
    for choice in ("a", "tie"):
        page = ann.get(f"/rate/{batch}").text
        response = ann.form(f"/rate/{batch}/answer", {**_page_values(page), "choice": choice}, follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (303, f"/rate/{batch}")
    page = ann.form(f"/rate/{batch}/undo", _page_values(ann.get(f"/rate/{batch}").text)).text
    assert "Correcting" in page
    assert 'value="tie" data-key="3" class="choice chosen"' in page
    ann.form(f"/rate/{batch}/answer", {**_page_values(page), "choice": "b"})
    ann.form(f"/rate/{batch}/skip", _page_values(ann.get(f"/rate/{batch}").text))
    assert "Nothing is left for you here" in ann.get(f"/rate/{batch}").text
    assert [row.choice for row in database.judgements(batch)] == ["a", "tie", "b"]


def test_an_answer_that_lacks_its_reason_comes_back_as_it_was_filled_in(
    database: EvidenceDatabase, database_url: str
) -> None:
    batch, app = open_batch(database), make_service(database_url)
    ann = Client(app, "ann")
    values = _page_values(ann.get(f"/rate/{batch}").text)
    sent = {**values, "choice": "b", "flags_a": ["unsafe"], "rubric_style": "a"}
    response = ann.form(f"/rate/{batch}/answer", sent, htmx=True)
    assert response.status_code == 422
    assert "Say in a few words what is unsafe." in response.text
    assert 'name="flags_a" value="unsafe" checked' in response.text
    assert 'name="rubric_style" value="a" checked' in response.text
    assert "<html" not in response.text
    stored = ann.form(f"/rate/{batch}/answer", {**sent, "rationale": "tells how"}, htmx=True)
    assert stored.status_code == 200
    assert database.judgements(batch)[0].flags_a == ["unsafe"]


def test_practice_is_commented_on_the_page(database: EvidenceDatabase, database_url: str) -> None:
    batch, app = open_batch(database, n_pairs=2, n_gold=4, practice_items=1), make_service(database_url)
    ann = Client(app, "ann")
    page = ann.get(f"/rate/{batch}").text
    assert "Practice 1 of 1" in page
    better = "a" if page.index(">good<") < page.index(">bad<") else "b"
    wrong = ann.form(f"/rate/{batch}/answer", {**_page_values(page), "choice": "tie"}, htmx=True).text
    assert f"Here {better.upper()} is better" in wrong
    assert "Practice" not in ann.get(f"/rate/{batch}").text
    assert database.judgements(batch) == []


def test_pages_carry_a_token_and_drafts_survive_a_reload(database: EvidenceDatabase, database_url: str) -> None:
    batch, app = open_batch(database), make_service(database_url)
    ann = Client(app, "ann")
    page = ann.get(f"/rate/{batch}").text
    sent = {**_page_values(page), "rationale": "half a thought", "flags_b": "severity_1", "form_token": token_in(page)}
    assert ann.http.post(f"/rate/{batch}/draft", data=sent).text == "Draft saved"
    again = ann.get(f"/rate/{batch}").text
    assert "half a thought</textarea>" in again
    assert 'name="flags_b" value="severity_1" checked' in again


def test_the_api_describes_itself(database: EvidenceDatabase, database_url: str) -> None:
    schema = Client(make_service(database_url), "ann").get("/api/openapi.json").json()
    paths = set(schema["paths"])
    assert {"/api/v1/batches/{batch_id}/next", "/api/v1/tasks/{task_id}/answer"} <= paths
    assert {"/api/v1/models", "/api/v1/models/{model}/releases/{version}/approve"} <= paths
    assert not any(path.startswith(("/rate", "/login", "/metrics")) for path in paths)
    assert "rationale" in schema["components"]["schemas"]["RaterAnswer"]["properties"]
