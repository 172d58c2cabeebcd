from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from components.report.notice import WEBHOOK_VARIABLE, Notice, build_notice, deliver, find_failure, finish_run
from components.report.stage import publish_end
from components.shared.tracking import pipeline_run_id, stage_run

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from webhook_receiver import receive


def _make_notice(**overrides: str | None) -> Notice:
    values = {"state": "FAILED", "error_message": "boom", "run_id": "run-1", "model_name": "demo", **overrides}
    return build_notice(**values)  # pyright: ignore[reportArgumentType]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (WEBHOOK_VARIABLE, "PLUMBLINE_PROGRESS", "PLUMBLINE_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_a_notice_reaches_the_receiver_as_json_that_slack_understands() -> None:
    with receive(200) as (url, received):
        assert deliver(_make_notice(), url)
    (body,) = received
    headers = body.headers
    assert headers["Content-Type"] == "application/json"
    assert body["text"] == "Plumbline run run-1 of demo: FAILED. boom"
    assert headers["Idempotency-Key"] == body["id"]


def test_a_busy_receiver_is_tried_again_with_the_same_id() -> None:
    with receive(503, 0, 200) as (url, received):
        assert deliver(_make_notice(), url, pause_seconds=0.0)
    assert len(received) == 3
    assert len({body["id"] for body in received}) == 1


def test_a_receiver_that_stays_down_is_given_up_without_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with receive(500) as (url, received):
        assert not deliver(_make_notice(), url, pause_seconds=0.0)
    assert len(received) == 3
    assert "given up" in caplog.text


def test_a_refusal_is_not_repeated() -> None:
    with receive(403) as (url, received):
        assert not deliver(_make_notice(), url, pause_seconds=0.0)
    assert len(received) == 1


def test_nobody_listening_is_not_an_error() -> None:
    with receive(200) as (url, _):
        pass
    assert not deliver(_make_notice(), url, pause_seconds=0.0)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "nonsense", "http://", "http://[::1"])
def test_an_address_that_is_not_http_is_refused(url: str) -> None:
    assert not deliver(_make_notice(), url, pause_seconds=0.0)


def test_the_address_which_may_hold_a_secret_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with receive(500) as (url, _):
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
    with receive(200) as (url, received):
        monkeypatch.setenv(WEBHOOK_VARIABLE, url)
        finish_run(state="FAILED", error_message="boom", resource_name="job-1", model_name="demo")
    assert received[0]["run_id"] == "run-9"
    assert "Plumbline run run-9 of demo: FAILED." in caplog.text
    assert MlflowClient().get_run(parent).info.status == "FAILED"


@pytest.fixture
def failed_on_a_cluster(mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a failed run leaves in MLflow: no progress file, as in a pod. The failure's first try was repeated."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    monkeypatch.setenv("PLUMBLINE_RUN_ID", "kfp-run-1")
    with stage_run("sft"):
        pass
    for cause in ("a node went away", "CUDA out of memory at step 7"):
        with pytest.raises(RuntimeError), stage_run("ppo"):
            raise RuntimeError(cause)
    return "kfp-run-1"


def test_on_a_cluster_the_failing_step_and_its_cause_come_from_its_mlflow_run(failed_on_a_cluster: str) -> None:
    notice = finish_run(state="FAILED", error_message="task ppo failed", resource_name="projects/x", model_name="demo")
    assert (notice.run_id, notice.stage) == (failed_on_a_cluster, "ppo")
    assert notice.cause == "RuntimeError: CUDA out of memory at step 7"


def test_a_step_that_a_retry_saved_is_not_blamed(failed_on_a_cluster: str) -> None:
    with stage_run("ppo"):
        pass
    with pytest.raises(ValueError, match="no evidence"), stage_run("release_gate"):
        raise ValueError("no evidence")
    assert find_failure("task failed") == ("release_gate", "ValueError: no evidence")


def test_a_step_that_was_killed_is_named_though_it_said_nothing(
    mlflow_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    monkeypatch.setenv("PLUMBLINE_RUN_ID", "kfp-run-2")
    killed = stage_run("ppo")
    killed.__enter__()  # and never left
    stage, cause = find_failure("task failed")
    assert stage == "ppo"
    assert cause is not None
    assert "killed" in cause
    del killed


def test_a_failed_run_on_a_cluster_leaves_a_report_in_the_ui_and_in_mlflow(
    failed_on_a_cluster: str, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    notice = finish_run(state="FAILED", error_message=None, resource_name="", model_name="demo")
    page = tmp_path / "out" / "page"
    publish_end(page=str(page), notice=notice)
    assert "CUDA out of memory at step 7" in page.read_text()
    assert "<script" not in page.read_text()
    run_id = pipeline_run_id()
    assert run_id is not None
    assert MlflowClient().get_run(run_id).info.status == "FAILED"
    assert [one.path for one in MlflowClient().list_artifacts(run_id)] == ["report.html"]


def test_a_run_that_succeeded_leaves_the_page_to_its_report_step(tmp_path: Path) -> None:
    publish_end(page=str(tmp_path / "page"), notice=_make_notice(state="SUCCEEDED"))
    assert not (tmp_path / "page").exists()
