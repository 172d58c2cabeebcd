"""Tracking: steps are children of their pipeline, and a broken server never costs a model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from components.shared import tracking
from components.shared.progress import PROGRESS_VARIABLE, track
from components.shared.tracking import close_pipeline_run, stage_run


@pytest.fixture
def store(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLUMBLINE_RUN_ID", "run-1")
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "progress.jsonl"))
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return tmp_path


def _runs():
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("plumbline")
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_steps_are_children_of_one_pipeline_run_with_their_outcome(store: Path) -> None:
    with stage_run("sft", settings={"lora": {"rank": 8}}, seed=3) as run:
        run.log_metrics({"loss": 0.5, "absent": None, "bad": float("nan")}, step=7)
    with pytest.raises(ValueError, match="too hot"), stage_run("ppo"):
        raise ValueError("too hot")
    close_pipeline_run("FAILED")
    runs = _runs()
    parent = runs["run-1"].info.run_id
    assert {name: run.info.status for name, run in runs.items()} == {
        "run-1": "FAILED",
        "sft": "FINISHED",
        "ppo": "FAILED",
    }
    assert runs["sft"].data.tags["mlflow.parentRunId"] == runs["ppo"].data.tags["mlflow.parentRunId"] == parent
    assert runs["sft"].data.params == {"lora.rank": "8", "seed": "3"}
    assert {name for name in runs["sft"].data.metrics if not name.startswith("usage.")} == {"loss"}
    assert runs["sft"].data.metrics["loss"] == 0.5
    assert "too hot" in runs["ppo"].data.tags["plumbline.error"]


def test_a_step_killed_in_the_middle_does_not_stay_running(store: Path) -> None:
    killed = stage_run("ppo")
    killed.__enter__()
    close_pipeline_run("FAILED")
    assert _runs()["ppo"].info.status == "KILLED"


def test_a_run_that_kubeflow_opened_is_joined_and_left_open(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    opened = client.create_run(client.create_experiment("plumbline"))
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    with stage_run("sft") as run:
        run.log_metrics({"loss": 1.0})
    found = client.get_run(opened.info.run_id)
    assert found.data.metrics["loss"] == 1.0
    assert found.data.tags["plumbline.run_id"] == "run-1", "its cost belongs to the pipeline"
    assert found.info.status == "RUNNING"


def test_a_dead_server_costs_metrics_and_nothing_else(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with stage_run("sft", settings={"a": 1}) as run:
        run.log_metrics({"loss": 1.0})
        trained = True
    assert trained


def test_a_server_that_dies_in_the_middle_is_given_up_after_three_failures(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_RUN_ID", "opened-while-the-server-lived")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    caplog.set_level("INFO", logger="components")
    with stage_run("sft", settings={"a": 1}) as run:
        for step in range(1, 6):
            run.log_metrics({"loss": 1.0 / step}, step=step)
        run.set_tags({"a": "b"})
    failures = [message for message in caplog.messages if message.startswith("MLflow: could not")]
    assert len(failures) == 5, "three in a row, and once more at the end"
    assert sum("3 times in a row" in message for message in caplog.messages) == 1
    assert [message for message in caplog.messages if "'loss'" in message] == [
        f"metrics at step {step}: {{'loss': {1.0 / step}}}" for step in range(1, 6)
    ]


def test_a_failure_now_and_then_is_no_reason_to_give_up(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with stage_run("sft") as run:
        for step in range(1, 9):
            run.log_artifact(store / "absent")
            run.log_metrics({"loss": 1.0}, step=step)
    assert sum("could not upload" in message for message in caplog.messages) == 8
    assert not any("in a row" in message for message in caplog.messages)
    assert _runs()["sft"].data.metrics["loss"] == 1.0


@pytest.mark.parametrize(("given", "used"), [(None, "2"), ("5", "5")])
def test_a_dead_server_is_retried_twice_unless_told_otherwise(
    store: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, used: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", given or "")
    if given is None:
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    with stage_run("sft"):
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == used


def test_watchers_hear_of_start_progress_and_failure(store: Path) -> None:
    with pytest.raises(KeyError), stage_run("sft"):
        list(track(range(3), "epochs"))
        raise KeyError("weights")
    events = [json.loads(line) for line in (store / "progress.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", "progress", "progress", "failed"]
    assert events[2]["done"] == events[2]["total"] == 3
    assert "weights" in events[3]["error"]


def test_what_could_not_be_sent_is_sent_with_its_time_once_the_server_is_back(
    store: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(tracking, "_PAUSE_SECONDS", 0.0)
    real = MlflowClient.log_batch
    with stage_run("sft", settings={"rank": 8}) as run:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", _unavailable)
            for step in range(5):
                run.log_metrics({"loss": float(step)}, step=step)
        assert MlflowClient.log_batch is real
        run.set_tags({"note": "back"})
    found = _runs()["sft"]
    history = MlflowClient().get_metric_history(found.info.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [(step, float(step)) for step in range(5)]
    assert found.data.tags["note"] == "back"


def test_a_file_that_could_not_be_sent_is_sent_once_the_server_is_back_and_one_that_is_gone_is_told(
    store: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(tracking, "_PAUSE_SECONDS", 0.0)
    report, fleeting = store / "report.html", store / "fleeting.html"
    with stage_run("sft") as run:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_artifact", _unavailable)
            for file in (report, fleeting):
                file.write_text("page")
                run.log_artifact(file, "pages")
        fleeting.unlink()
        assert run.run_id is not None
        run.log_metrics({"loss": 1.0})
        assert [one.path for one in MlflowClient().list_artifacts(run.run_id, "pages")] == ["pages/report.html"]
    assert "fleeting.html: it is not there" in caplog.text


def test_a_file_that_is_never_sent_is_counted(
    store: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking import MlflowClient

    (store / "report.html").write_text("page")
    monkeypatch.setattr(MlflowClient, "log_artifact", _unavailable)
    with stage_run("sft") as run:
        run.log_artifact(store / "report.html")
    assert "{'files': 1} of the step could not be sent" in caplog.text


def test_a_run_that_could_not_be_opened_is_opened_later_and_holds_everything(
    store: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(tracking, "_PAUSE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "get_experiment_by_name", _unavailable)
        step = stage_run("sft", settings={"rank": 8})
        run = step.__enter__()
        run.log_metrics({"loss": 1.0}, step=1)
        assert run.run_id is None
    step.__exit__(None, None, None)
    found = _runs()["sft"]
    assert found.info.status == "FINISHED"
    assert (found.data.params["rank"], found.data.metrics["loss"]) == ("8", 1.0)


def test_one_refused_parameter_of_a_hundred_costs_itself_only_and_is_named(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with stage_run("sft") as run:
        run.log_params({"rank": 8})
        run.log_params({**{f"before_{number}": number for number in range(40)}, "rank": 16, "after": "there"})
    params = _runs()["sft"].data.params
    assert (params["rank"], params["before_39"], params["after"]) == ("8", "39", "there")
    assert "refused rank" in caplog.text


def test_a_parameter_that_may_not_change_does_not_hold_up_what_comes_after(store: Path, mlflow_store: str) -> None:
    with stage_run("sft", settings={"rank": 8}) as run:
        run.log_params({"rank": 16})
        run.log_metrics({"loss": 1.0})
    found = _runs()["sft"]
    assert (found.data.params["rank"], found.data.metrics["loss"]) == ("8", 1.0)


def _unavailable(*_: object, **__: object) -> None:
    raise MlflowException("down", error_code=TEMPORARILY_UNAVAILABLE)
