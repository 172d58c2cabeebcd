from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from components.report.notice import WEBHOOK_VARIABLE, Notice, build_notice, deliver, find_failure, finish_run


@contextmanager
def _receiver(*answers: int) -> Iterator[tuple[str, list[tuple[dict[str, str], dict[str, str]]]]]:
    """A receiver on loopback that gives these status codes in turn (the last one for ever); 0 hangs up."""
    received: list[tuple[dict[str, str], dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((dict(self.headers), json.loads(body)))
            answer = answers[min(len(received), len(answers)) - 1]
            if answer:
                self.send_response(answer)
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keeps the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook/secret-token", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _make_notice(**overrides: str | None) -> Notice:
    values = {"state": "FAILED", "error_message": "boom", "run_id": "run-1", "model_name": "demo", **overrides}
    return build_notice(**values)  # pyright: ignore[reportArgumentType]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (WEBHOOK_VARIABLE, "PLUMBLINE_PROGRESS", "PLUMBLINE_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_a_notice_reaches_the_receiver_as_json_that_slack_understands() -> None:
    with _receiver(200) as (url, received):
        assert deliver(_make_notice(), url)
    headers, body = received[0]
    assert headers["Content-Type"] == "application/json"
    assert body["text"] == "Plumbline run run-1 of demo: FAILED. boom"
    assert headers["Idempotency-Key"] == body["id"]


def test_a_busy_receiver_is_tried_again_with_the_same_id() -> None:
    with _receiver(503, 0, 200) as (url, received):
        assert deliver(_make_notice(), url, pause_seconds=0.0)
    assert len(received) == 3
    assert len({body["id"] for _, body in received}) == 1


def test_a_receiver_that_stays_down_is_given_up_without_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with _receiver(500) as (url, received):
        assert not deliver(_make_notice(), url, pause_seconds=0.0)
    assert len(received) == 3
    assert "given up" in caplog.text


def test_a_refusal_is_not_repeated() -> None:
    with _receiver(403) as (url, received):
        assert not deliver(_make_notice(), url, pause_seconds=0.0)
    assert len(received) == 1


def test_nobody_listening_is_not_an_error() -> None:
    with _receiver(200) as (url, _):
        pass
    assert not deliver(_make_notice(), url, pause_seconds=0.0)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "nonsense", "http://", "http://[::1"])
def test_an_address_that_is_not_http_is_refused(url: str) -> None:
    assert not deliver(_make_notice(), url, pause_seconds=0.0)


def test_the_address_which_may_hold_a_secret_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with _receiver(500) as (url, _):
        deliver(_make_notice(), url, pause_seconds=0.0)
    assert "secret-token" not in caplog.text


def test_a_repeat_has_the_same_id_and_another_run_or_outcome_has_not() -> None:
    assert _make_notice().id == _make_notice(error_message="other words").id
    assert len({_make_notice().id, _make_notice(run_id="run-2").id, _make_notice(state="SUCCEEDED").id}) == 3


def test_the_failing_step_tells_its_cause_and_a_step_saved_by_a_retry_is_no_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [
        {"event": "started", "stage": "sft"},
        {"event": "failed", "stage": "sft", "error": "killed"},
        {"event": "finished", "stage": "sft"},
        {"event": "failed", "stage": "ppo", "error": "KL is not finite"},
    ]
    path = tmp_path / "progress.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    monkeypatch.setenv("PLUMBLINE_PROGRESS", str(path))
    assert find_failure("Task exit-handler-1 failed.") == ("ppo", "KL is not finite")
    assert _make_notice().text == "Plumbline run run-1 of demo: FAILED. Failed at ppo: KL is not finite"


def test_a_broken_progress_file_leaves_what_the_orchestrator_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text('{"event": "fai')
    monkeypatch.setenv("PLUMBLINE_PROGRESS", str(path))
    assert find_failure("out of memory") == (None, "out of memory")


def test_a_run_that_succeeded_names_no_failure() -> None:
    notice = _make_notice(state="SUCCEEDED", error_message=None)
    assert notice.text == "Plumbline run run-1 of demo: SUCCEEDED."
    assert notice.cause is None


def test_the_last_step_logs_delivers_and_closes_the_tracking_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking import MlflowClient

    from components.shared.tracking import pipeline_run_id

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PLUMBLINE_RUN_ID", "run-9")
    parent = pipeline_run_id()
    assert parent is not None
    with _receiver(200) as (url, received):
        monkeypatch.setenv(WEBHOOK_VARIABLE, url)
        finish_run(state="FAILED", error_message="boom", resource_name="job-1", model_name="demo")
    assert received[0][1]["run_id"] == "run-9"
    assert "Plumbline run run-9 of demo: FAILED." in caplog.text
    assert MlflowClient().get_run(parent).info.status == "FAILED"
