"""Who gets in, who may do what, and what the service refuses from elsewhere."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient
from review_world import SECRET, Client, make_service, make_settings, open_batch
from sqlalchemy.exc import OperationalError

from components.human_eval.database import EvidenceDatabase
from components.review.app import create_app
from components.review.server import secret_of, with_local_people
from components.review.settings import ReviewSettings
from components.shared.errors import InputError

PAGES = ["/", "/rate", "/releases", "/batches"]


def test_nobody_gets_in_without_a_sign_in(database_url: str) -> None:
    stranger = Client(make_service(database_url), None)
    for path in [*PAGES, "/api/v1/me", "/api/v1/batches"]:
        response = stranger.get(path)
        assert response.status_code == 401, path
        assert "not signed in" in response.text


def test_a_header_of_a_peer_that_is_not_the_proxy_is_not_believed(database_url: str) -> None:
    app = make_service(database_url, trusted_peers=("10.1.0.0/16",))
    assert Client(app, "mia", peer="10.1.2.3").get("/api/v1/me").status_code == 200
    for peer in ("10.2.0.1", "127.0.0.1", "testclient"):
        assert Client(app, "mia", peer=peer).get("/api/v1/me").status_code == 401


def test_header_login_without_named_proxies_is_refused() -> None:
    with pytest.raises(ValueError, match="trusted_peers is empty"):
        ReviewSettings(login="header")
    with pytest.raises(ValueError, match="is no network"):
        make_settings(trusted_peers=("gateway",))


def test_an_oidc_proxy_names_user_and_groups_in_headers_of_its_own(database_url: str) -> None:
    app = make_service(
        database_url,
        user_header="x-auth-request-email",
        user_prefix="accounts.example:",
        groups_header="x-auth-request-groups",
        roles={"release_manager": ["group:release-managers"], "rater": ["*"]},
    )
    client = TestClient(app, client=("127.0.0.1", 1))
    headers = {
        "x-auth-request-email": "accounts.example:mia@example.com",
        "x-auth-request-groups": "staff, release-managers",
    }
    assert client.get("/api/v1/me", headers=headers).json()["login"] == "mia@example.com"
    assert set(client.get("/api/v1/me", headers=headers).json()["roles"]) == {"rater", "release_manager"}
    only_staff = headers | {"x-auth-request-groups": "staff"}
    assert client.get("/api/v1/me", headers=only_staff).json()["roles"] == ["rater"]


@pytest.mark.parametrize(
    ("login", "allowed"),
    [
        ("ann", {"/rate"}),
        ("mia", {"/releases", "/batches"}),
        ("ada", {"/releases", "/batches"}),
        ("nobody", set()),
    ],
)
def test_pages_are_for_their_roles(database_url: str, mlflow_store: str, login: str, allowed: set[str]) -> None:
    client = Client(make_service(database_url), login)
    for path in ("/rate", "/releases", "/batches"):
        assert client.get(path).status_code == (200 if path in allowed else 403), path
    assert client.get("/", follow_redirects=False).status_code in (200, 303)


def test_an_auditor_changes_nothing(database: EvidenceDatabase, database_url: str) -> None:
    batch, app = open_batch(database), make_service(database_url)
    ada = Client(app, "ada")
    for path, body in [
        (f"/api/v1/batches/{batch}/close", {"reason": "x"}),
        (f"/api/v1/batches/{batch}/import", []),
        ("/api/v1/models/m/releases/1/approve", {"reason": "x", "binding": "b"}),
        ("/api/v1/models/m/releases/1/reject", {"reason": "x"}),
        ("/api/v1/models/m/releases/1/rollback", {"reason": "x"}),
        (f"/api/v1/batches/{batch}/next", None),
    ]:
        assert ada.post(path, body).status_code == 403, path
    assert ada.get(f"/api/v1/batches/{batch}/export?format=argilla").status_code == 403
    assert database.closure(batch) is None


def _local(database_url: str) -> tuple[Any, Any]:
    settings = with_local_people(ReviewSettings(), managers=["mia"], raters=["ann"], simulated=["sim"])
    app = create_app(settings, secret=SECRET)
    return app, app.state.review.login


def test_a_printed_link_signs_in_once(database_url: str) -> None:
    app, login = _local(database_url)
    token = login.issue("mia")
    browser = TestClient(app)
    page = browser.get("/login", params={"token": token})
    assert "signs you in once" in page.text
    assert browser.get("/api/v1/me").status_code == 401  # looking at the link uses nothing up
    assert browser.post("/login", data={"token": token}, follow_redirects=False).status_code == 303
    assert browser.get("/api/v1/me").json()["login"] == "mia"
    cookie = browser.cookies["plumbline_session"]
    other = TestClient(app)
    assert other.post("/login", data={"token": token}).status_code == 403
    assert other.post("/login", data={"token": "guess"}).status_code == 403
    browser.post("/logout", data={"form_token": browser.get("/api/v1/me").json()["form_token"]})
    assert browser.get("/api/v1/me").status_code == 401
    assert other.get("/api/v1/me", cookies={"plumbline_session": cookie}).status_code == 401


def test_the_session_cookie_is_out_of_reach_of_scripts_and_other_sites(database_url: str) -> None:
    app, login = _local(database_url)
    response = TestClient(app).post("/login", data={"token": login.issue("mia")}, follow_redirects=False)
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_a_forged_session_is_nobody(database_url: str) -> None:
    app, _ = _local(database_url)
    for cookie in ("mia", "WyJtaWEiLCJ4Il0.abc.def", ""):
        assert TestClient(app, cookies={"plumbline_session": cookie}).get("/api/v1/me").status_code == 401


def test_requests_without_a_page_of_ours_change_nothing(database: EvidenceDatabase, database_url: str) -> None:
    batch, app = open_batch(database), make_service(database_url)
    mia, max_ = Client(app, "mia"), Client(app, "max")
    close = f"/api/v1/batches/{batch}/close"
    body = {"reason": "x"}
    refused = [
        mia.http.post(close, json=body),
        mia.http.post(close, json=body, headers={"X-Form-Token": "made up"}),
        mia.http.post(close, json=body, headers={"X-Form-Token": max_.token}),
        mia.http.post(close, json=body, headers={"X-Form-Token": mia.token, "Origin": "https://evil.example"}),
        mia.http.post(close, json=body, headers={"X-Form-Token": mia.token, "Sec-Fetch-Site": "cross-site"}),
        mia.http.post(f"/batches/{batch}/close", data=body),
    ]
    assert [response.status_code for response in refused] == [403] * len(refused)
    assert database.closure(batch) is None
    own = {"X-Form-Token": mia.token, "Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}
    assert mia.http.post(close, json=body, headers=own).status_code == 200
    closed = database.closure(batch)
    assert closed is not None
    assert closed.actor == "mia"


def test_every_answer_has_a_strict_policy_and_is_not_cached(database: EvidenceDatabase, database_url: str) -> None:
    batch, app = open_batch(database), make_service(database_url)
    ann = Client(app, "ann")
    for path in (f"/rate/{batch}", "/rate", "/api/v1/me", "/nowhere", "/releases", "/static/rate.js", "/metrics"):
        headers = ann.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"
        assert path.startswith("/static") or headers["cache-control"] == "no-store"


def test_pages_have_no_inline_script_or_style(database: EvidenceDatabase, database_url: str) -> None:
    batch, app = open_batch(database, n_pairs=1), make_service(database_url)
    ann = Client(app, "ann")
    for page in (ann.get("/rate").text, ann.get(f"/rate/{batch}").text, ann.get("/nowhere").text):
        assert " style=" not in page
        assert "<style" not in page
        assert "javascript:" not in page
        assert " onclick" not in page
        assert all(tag.startswith(" src=") for tag in page.split("<script")[1:])


def test_bodies_that_are_too_large_are_refused(database_url: str) -> None:
    mia = Client(make_service(database_url), "mia")
    response = mia.http.post("/api/v1/batches/b/import", content=b"x", headers={"content-length": str(10**9)})
    assert response.status_code == 413


def test_a_short_secret_is_refused(database_url: str) -> None:
    with pytest.raises(InputError, match="at least 32"):
        create_app(make_settings(), secret="short")


def test_the_secret_is_made_once_on_one_machine_and_asked_for_on_a_cluster(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PLUMBLINE_REVIEW_SECRET", raising=False)
    first = secret_of(ReviewSettings(), tmp_path)
    assert len(first) == 64
    assert secret_of(ReviewSettings(), tmp_path) == first
    assert (tmp_path / "review-secret").stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="PLUMBLINE_REVIEW_SECRET"):
        secret_of(make_settings(), tmp_path)
    monkeypatch.setenv("PLUMBLINE_REVIEW_SECRET", "given")
    assert secret_of(make_settings(), tmp_path) == "given"


def test_health_readiness_and_figures_are_open_and_tell_nothing_about_people(
    database: EvidenceDatabase, database_url: str, mlflow_store: str
) -> None:
    batch, app = open_batch(database, n_pairs=2), make_service(database_url)
    ann = Client(app, "ann")
    task = ann.post(f"/api/v1/batches/{batch}/next").json()["task"]
    ann.post(f"/api/v1/tasks/{task['task_id']}/answer", {"choice": "a"})
    probe = Client(app, None)
    assert probe.get("/healthz").text == "ok\n"
    assert probe.get("/readyz").json() == {"ready": True}
    figures = probe.get("/metrics").text
    assert 'plumbline_review_answers_total{action="judge"} 1.0' in figures
    assert f'plumbline_review_votes{{batch="{batch}"}} 1.0' in figures
    assert 'route="/api/v1/tasks/{task_id}/answer",status="200"' in figures
    assert "ann" not in figures.replace("channel", "")
    assert "rater-" not in figures


def test_a_service_whose_registry_is_missing_is_not_ready(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    response = Client(make_service(database_url), None).get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "mlflow": "the model registry is not set."}


def test_figures_that_need_no_database_are_told_while_it_is_down(
    database: EvidenceDatabase, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_service(database_url)
    probe = Client(app, None)
    probe.get("/healthz")

    def refuse(*_: object, **__: object) -> None:
        raise OperationalError("SELECT 1", {}, Exception("the server has gone away"))

    monkeypatch.setattr(database.engine, "connect", refuse)
    answer = probe.get("/metrics")
    assert answer.status_code == 200
    assert 'route="/healthz"' in answer.text
    assert "plumbline_review_last_watch_timestamp_seconds" in answer.text
    assert "plumbline_release_gate_error" not in answer.text
    assert probe.get("/readyz").status_code == 503


def test_a_server_that_answers_rubbish_is_not_ready(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as rubbish:
        rubbish.bind(("127.0.0.1", 0))
        rubbish.listen(1)

        def answer() -> None:
            connection, _ = rubbish.accept()
            connection.recv(4096)
            connection.sendall(b"no http at all\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{rubbish.getsockname()[1]}")
        response = Client(make_service(database_url), None).get("/readyz")
    assert response.status_code == 503
    assert set(response.json()) == {"ready", "mlflow"}


def test_a_tracking_server_that_hangs_is_named_soon_and_is_not_asked_at_every_knock(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        probe, begun = Client(make_service(database_url), None), time.monotonic()
        answers = [probe.get("/readyz") for _ in range(5)]
        assert time.monotonic() - begun < 6.0
    assert {answer.status_code for answer in answers} == {503}
    assert set(answers[0].json()) == {"ready", "mlflow"}


def test_a_service_that_is_started_again_knows_links_cookies_and_sign_outs(database_url: str) -> None:
    app, login = _local(database_url)
    unused, used = login.issue("ann"), login.issue("mia")
    browser = TestClient(app)
    browser.post("/login", data={"token": used})
    leaving = TestClient(app)
    leaving.post("/login", data={"token": login.issue("mia")})
    gone = leaving.cookies["plumbline_session"]
    leaving.post("/logout", data={"form_token": leaving.get("/api/v1/me").json()["form_token"]})

    again, _ = _local(database_url)
    assert TestClient(again, cookies=dict(browser.cookies)).get("/api/v1/me").json()["login"] == "mia"
    assert TestClient(again, cookies={"plumbline_session": gone}).get("/api/v1/me").status_code == 401
    assert TestClient(again).post("/login", data={"token": used}).status_code == 403
    assert TestClient(again).post("/login", data={"token": unused}, follow_redirects=False).status_code == 303


def test_a_manager_sees_what_a_batch_waits_for_and_gives_a_skip_back(
    database: EvidenceDatabase, database_url: str
) -> None:
    batch, app = open_batch(database, n_pairs=1), make_service(database_url)
    ann, mia, ada = Client(app, "ann"), Client(app, "mia"), Client(app, "ada")
    task = ann.post(f"/api/v1/batches/{batch}/next").json()["task"]
    ann.post(f"/api/v1/tasks/{task['task_id']}/skip", {})
    page = mia.get(f"/batches/{batch}").text
    assert "1 more rater is wanted" in page
    until = f"{database.deadline(batch):%Y-%m-%d %H:%M} UTC"
    assert f"open until {until}" in page
    assert f"Open until {until}" in mia.get("/batches").text
    assert f"Open until {until}" in ann.get("/rate").text
    assert "Give it back" in page
    assert "Give it back" not in ada.get(f"/batches/{batch}").text
    item = mia.get(f"/api/v1/batches/{batch}/report").json()["stuck"][0]["item_id"]
    given = {"item_id": item, "reason": "please"}
    assert ada.post(f"/api/v1/batches/{batch}/return-skip", given).status_code == 403
    assert ann.get(f"/api/v1/batches/{batch}/report").status_code == 403
    assert "Give it back" not in mia.form(f"/batches/{batch}/return-skip", given).text
    assert ann.post(f"/api/v1/batches/{batch}/next").json()["task"]["task_id"] == task["task_id"]


@pytest.mark.parametrize(
    ("move", "form", "said"),
    [
        ("close", {"reason": ""}, "at least 1 character"),
        ("close", {"reason": "x" * 1001}, "at most 1000 characters"),
        ("return-skip", {"reason": "please"}, "item_id"),
        ("adjudicate", {"reason": "look", "item_ids": "item-0", "votes": "1000000"}, "less than or equal to 9"),
        ("adjudicate", {"reason": "look"}, "item_ids"),
        ("dismiss", {"reason": "gone", "rater": "r", "actor": "somebody else"}, "actor"),
        ("open", {"reason": "again"}, "is no move"),
    ],
)
def test_a_form_is_held_to_what_the_api_is_held_to(
    database: EvidenceDatabase, database_url: str, move: str, form: dict[str, str], said: str
) -> None:
    batch, mia = open_batch(database, n_pairs=1), Client(make_service(database_url), "mia")
    answer = mia.form(f"/batches/{batch}/{move}", form)
    assert answer.status_code == 422
    assert said in answer.text
    assert database.closure(batch) is None


def test_a_page_that_goes_wrong_shows_no_more_than_it_must(
    database: EvidenceDatabase, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_service(database_url)
    monkeypatch.setattr(app.state.review.desk, "open_batches", lambda: 1 / 0)
    response = Client(app, "ann").get("/rate")
    assert response.status_code == 500
    assert "ZeroDivision" not in response.text
    assert "Traceback" not in response.text


def test_a_login_that_is_spelt_like_a_group_is_not_in_it(database_url: str) -> None:
    app = make_service(
        database_url,
        groups_header="x-auth-request-groups",
        roles={"release_manager": ["group:managers"], "rater": ["*"]},
    )
    assert Client(app, "Group:managers").get("/api/v1/me").json()["roles"] == ["rater"]
