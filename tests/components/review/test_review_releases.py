"""Release pages and moves: what the gate judged, checked against the ledger, and decided by those who may."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from release_world import MODEL, judge_release
from review_world import Client, make_service, token_in

from components.release_gate import operations
from components.release_gate.office import open_office
from components.release_gate.states import State
from components.shared.errors import PlumblineError


@pytest.fixture(autouse=True)
def _quiet(mlflow_store: str, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    monkeypatch.setenv("PLUMBLINE_ACTOR", "max")


@pytest.fixture
def release(tmp_path: Path) -> str:
    return judge_release(tmp_path / "first")


def _clients(database_url: str) -> tuple[Client, Client, Client]:
    app = make_service(database_url, roles={"release_manager": ["mia", "max", "moe"], "auditor": ["ada"]})
    return Client(app, "mia"), Client(app, "moe"), Client(app, "ada")


def _release(client: Client, version: str) -> dict[str, Any]:
    return client.get(f"/api/v1/models/{MODEL}/releases/{version}").json()


def test_the_page_shows_what_was_judged(release: str, database_url: str) -> None:
    mia, _, _ = _clients(database_url)
    assert f"/releases/{MODEL}/{release}" in mia.get("/releases").text
    page = mia.get(f"/releases/{MODEL}/{release}").text
    for expected in (
        "PROMOTE",
        "human preference",
        "Does what the reward likes, people like too?",
        "human win rate",
        "An answer that helps.",
        "The first one says why.",
        "rater-3",
        "Approve version",
        "0 of 2",
        "await approval",
    ):
        assert expected in page, expected
    assert "is not shown" not in page
    assert " style=" not in page
    assert "<svg role=" in page


def test_the_api_tells_the_same(release: str, database_url: str) -> None:
    mia, _, _ = _clients(database_url)
    assert mia.get("/api/v1/models").json() == [{"model": MODEL, "champion": None, "awaiting": [release]}]
    found = _release(mia, release)
    assert (found["state"], found["verdict"], found["moves"]) == ("AWAITING_APPROVAL", "PROMOTE", ["approve", "reject"])
    names = {criterion["name"].partition(".")[0] for criterion in found["decision"]["criteria"]}
    assert names >= {"human_preference", "divergence", "kl", "safety", "reward_model"}
    assert [point["role"] for point in found["trajectory"]] == ["reference", "step-0010", "step-0030", "candidate"]
    assert found["trajectory"][-1]["human"]["value"] > 0.5
    assert len(found["samples"]) == 6
    assert found["samples"][0]["votes"]
    assert found["not_shown"] == {}
    assert mia.get(f"/api/v1/models/{MODEL}/verify").json()["ok"] is True
    assert len(mia.get(f"/api/v1/models/{MODEL}/history").json()) == len(found["history"])


def test_two_people_approve_with_reasons_and_it_goes_live(release: str, database_url: str) -> None:
    mia, moe, _ = _clients(database_url)
    binding = _release(mia, release)["binding"]
    form = {"reason": "better where it counts", "binding": binding}
    page = mia.form(f"/releases/{MODEL}/{release}/approve", form).text
    assert "1 of 2 approvals are given" in page
    assert open_office().ledger.view(MODEL).champion is None
    result = moe.post(f"/api/v1/models/{MODEL}/releases/{release}/approve", form).json()
    assert result["champion"] == release
    approvals = [entry for entry in _release(mia, release)["history"] if entry["event"] == "approve"]
    assert [(entry["actor"], entry["reason"]) for entry in approvals] == [
        ("mia", "better where it counts"),
        ("moe", "better where it counts"),
    ]
    assert ", live" in mia.get(f"/releases/{MODEL}/{release}").text


@pytest.mark.parametrize(
    ("login", "body", "status", "message"),
    [
        ("max", {"reason": "mine", "binding": None}, 409, "asked for this release"),
        ("mia", {"reason": "  ", "binding": None}, 409, "no reason is given"),
        ("mia", {"reason": "", "binding": None}, 422, "at least 1 character"),
        ("mia", {"reason": "fine", "binding": "of another verdict"}, 409, "has changed since you looked"),
        ("ada", {"reason": "fine", "binding": None}, 403, "may not do this"),
    ],
)
def test_approvals_that_do_not_count_are_refused_with_the_reason(
    release: str, database_url: str, login: str, body: dict[str, Any], status: int, message: str
) -> None:
    app = make_service(database_url)
    client = Client(app, login)
    binding = body["binding"] or _release(client, release)["binding"]
    response = client.post(f"/api/v1/models/{MODEL}/releases/{release}/approve", {**body, "binding": binding})
    assert response.status_code == status
    assert message in response.json()["error"]["problem"]
    assert open_office().ledger.view(MODEL).state(release) is State.AWAITING_APPROVAL


def test_a_rejection_is_final(release: str, database_url: str) -> None:
    mia, moe, _ = _clients(database_url)
    binding = _release(mia, release)["binding"]
    page = mia.form(f"/releases/{MODEL}/{release}/reject", {"reason": "flatters"}).text
    assert "flatters" in page
    assert "Approve version" not in page
    again = moe.form(f"/releases/{MODEL}/{release}/approve", {"reason": "no", "binding": binding})
    assert again.status_code == 409
    assert "Not possible now" in again.text


def _go_live(mia: Client, moe: Client, version: str) -> None:
    body = {"reason": "good", "binding": _release(mia, version)["binding"]}
    for client in (mia, moe):
        assert client.post(f"/api/v1/models/{MODEL}/releases/{version}/approve", body).status_code == 200


def test_the_live_version_is_rolled_back_from_its_page_and_no_other(
    release: str, database_url: str, tmp_path: Path
) -> None:
    mia, moe, ada = _clients(database_url)
    _go_live(mia, moe, release)
    assert "Roll back" not in mia.get(f"/releases/{MODEL}/{release}").text  # the first champion replaces nobody
    champion = open_office().ledger.view(MODEL).digest(release)
    second = judge_release(tmp_path / "second", weights="better", champion_digest=champion)
    _go_live(mia, moe, second)
    assert f"Roll back to version {release}" in mia.get(f"/releases/{MODEL}/{second}").text
    assert "Roll back to" not in ada.get(f"/releases/{MODEL}/{second}").text
    stale = mia.post(f"/api/v1/models/{MODEL}/releases/{release}/rollback", {"reason": "x"})
    assert stale.status_code == 409
    page = mia.form(f"/releases/{MODEL}/{second}/rollback", {"reason": "people complain"}).text
    assert "people complain" in page
    assert open_office().ledger.view(MODEL).champion == release
    assert str(MlflowClient().get_model_version_by_alias(MODEL, "champion").version) == release


def test_evidence_that_was_altered_is_not_shown(release: str, database_url: str, tmp_path: Path) -> None:
    (kept,) = tmp_path.rglob("dossiers/*/*/human_evidence/statistics.json")
    statistics = json.loads(kept.read_text())
    statistics["comparisons"]["candidate_vs_reference"]["win_rate"] = 0.99
    kept.write_text(json.dumps(statistics))
    mia, _, _ = _clients(database_url)
    found = _release(mia, release)
    assert "was altered" in found["not_shown"]["human_evidence"]
    assert found["statistics"] is None
    page = mia.get(f"/releases/{MODEL}/{release}").text
    assert "0.99" not in page
    assert "does not agree with the ledger" in page


def test_a_decision_whose_criteria_were_altered_is_not_shown(release: str, database_url: str, tmp_path: Path) -> None:
    from components.shared.artifacts import MANIFEST, content_digest
    from components.shared.files import sha256_file

    (kept,) = tmp_path.rglob("dossiers/*/*/decision/decision.json")
    decision = json.loads(kept.read_text())
    decision["criteria"][0]["value"] = 0.123456
    kept.write_text(json.dumps(decision))
    manifest = json.loads((kept.parent / MANIFEST).read_text())  # even with a manifest that fits the forgery
    manifest["files"]["decision.json"] = sha256_file(kept)
    manifest["digest"] = content_digest("decision", manifest["files"])
    (kept.parent / MANIFEST).write_text(json.dumps(manifest))
    mia, _, _ = _clients(database_url)
    found = _release(mia, release)
    assert "criteria were altered" in found["not_shown"]["decision"]
    assert found["decision"] == {}


def test_a_release_without_a_dossier_still_has_its_page(release: str, database_url: str, tmp_path: Path) -> None:
    import shutil

    for folder in tmp_path.rglob("dossiers"):
        shutil.rmtree(folder)
    mia, _, _ = _clients(database_url)
    page = mia.get(f"/releases/{MODEL}/{release}")
    assert page.status_code == 200
    assert "Nothing was kept of this verdict" in page.text
    assert "Approve version" in page.text


@pytest.mark.parametrize("path", ["/releases/nobody/1", f"/releases/{MODEL}/99"])
def test_unknown_releases_are_not_found(release: str, database_url: str, path: str) -> None:
    mia, _, _ = _clients(database_url)
    assert mia.get(path).status_code == 404
    assert mia.get(f"/api/v1/models{path.removeprefix('/releases').replace('/1', '/releases/1')}").status_code == 404


def test_an_auditor_sees_everything_and_gets_no_form(release: str, database_url: str) -> None:
    mia, _, ada = _clients(database_url)
    page = ada.get(f"/releases/{MODEL}/{release}").text
    assert "a release manager decides" in page
    assert "<textarea" not in page
    assert token_in(mia.get(f"/releases/{MODEL}/{release}").text)
    assert "The first one says why." in page


def test_who_rated_the_evidence_does_not_approve_the_release(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mia, moe, _ = _clients(database_url)
    rater = mia.http.app.state.review.pseudonym_of("mia")  # type: ignore[attr-defined]
    monkeypatch.setattr("release_world._RATERS", [rater, *(f"rater-{number}" for number in range(3))])
    version = judge_release(tmp_path / "rated", weights="rated")
    binding = _release(mia, version)["binding"]
    path = f"/api/v1/models/{MODEL}/releases/{version}/approve"
    assert "You rated the evidence" in mia.get(f"/releases/{MODEL}/{version}").text
    refused = mia.post(path, {"reason": "good", "binding": binding})
    assert refused.status_code == 409
    assert "mia rated the evidence of this release" in refused.json()["error"]["problem"]
    assert moe.post(path, {"reason": "good", "binding": binding}).status_code == 200
    with pytest.raises(PlumblineError, match="takes approvals on the release's page only"):
        operations.approve(MODEL, version, actor="ada", reason="from the command line")


def test_a_policy_may_let_raters_approve_and_says_that_it_is_looser(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mia, _, _ = _clients(database_url)
    rater = mia.http.app.state.review.pseudonym_of("mia")  # type: ignore[attr-defined]
    monkeypatch.setattr("release_world._RATERS", [rater])
    policy = tmp_path / "small-team.yaml"
    policy.write_text("extends: production\nname: small-team\nversion: 1\nrelease: {raters_may_approve: true}\n")
    version = judge_release(tmp_path / "rated", weights="rated", actor_policy=str(policy))
    found = _release(mia, version)
    assert "may approve" in str(found["decision"]["policy"]["looser_than_production"])
    path = f"/api/v1/models/{MODEL}/releases/{version}/approve"
    assert mia.post(path, {"reason": "good", "binding": found["binding"]}).status_code == 200


def test_who_imported_judgements_is_on_the_page_and_does_not_approve(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mia, moe, _ = _clients(database_url)
    monkeypatch.setattr("release_world._IMPORTER", "mia")
    policy = tmp_path / "small-team.yaml"  # raters may approve; whoever made up raters may still not
    policy.write_text("extends: production\nname: small-team\nversion: 1\nrelease: {raters_may_approve: true}\n")
    version = judge_release(tmp_path / "imported", weights="imported", actor_policy=str(policy))
    page = mia.get(f"/releases/{MODEL}/{version}").text
    assert "Labels from other tools" in page
    assert "You imported judgements that this release rests on" in page
    assert "Approve version" not in page
    assert _release(mia, version)["importers"] == ["mia"]
    body = {"reason": "good", "binding": _release(mia, version)["binding"]}
    refused = mia.post(f"/api/v1/models/{MODEL}/releases/{version}/approve", body)
    assert refused.status_code == 409
    assert "mia imported judgements" in refused.json()["error"]["problem"]
    assert moe.post(f"/api/v1/models/{MODEL}/releases/{version}/approve", body).status_code == 200
