"""Tracking on a server as a cluster has it (Postgres, basic auth, artifacts in S3), and what befalls on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from mlflow_server import ADMIN, PASSWORD, MLflowServer
from s3_server import S3Server

from components.shared import tracking
from components.shared.artifact_sources import artifact_digest, open_artifact
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.errors import ArtifactError
from components.shared.tracking import stage_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(
    _storage_server: S3Server, postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MLflowServer]:
    _storage_server.make_bucket("mlflow")
    server = MLflowServer(
        tmp_path_factory.mktemp("mlflow-server"),
        database=postgres_url,
        artifacts="s3://mlflow/artifacts",
        environment=_storage_server.environment(),
    )
    server.start()
    server.add_user("reader", "readers-own-password")
    yield server
    server.stop()


@pytest.fixture
def proxy(server: MLflowServer, storage_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(server.host, server.port) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        monkeypatch.setattr(tracking, "_PAUSE_SECONDS", 0.0)
        yield proxy


def _open_as_kubeflow_does(monkeypatch: pytest.MonkeyPatch) -> str:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    found = client.get_experiment_by_name("kubeflow")
    experiment = found.experiment_id if found else client.create_experiment("kubeflow")
    run = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    return run


def _train(output: Path) -> None:
    with stage_run("sft", settings={"rank": 8}) as run:
        for step in range(3):
            run.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
        with write_artifact(output, "policy", stage="sft") as draft:
            (draft.path / "model.safetensors").write_bytes(b"weights")


def _run(run: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient().get_run(run)


def test_a_run_that_kubeflow_opened_is_joined_with_artifacts_in_s3(proxy, tmp_path, monkeypatch, bucket_client):
    joined = _open_as_kubeflow_does(monkeypatch)
    _train(tmp_path / "policy")
    with stage_run("sft") as run:
        run.log_artifact(tmp_path / "policy", "policy")
    found = _run(joined)
    assert found.data.metrics["loss"] == pytest.approx(1 / 3)
    assert found.info.status == "RUNNING", "it is KFP's to close"
    assert found.info.artifact_uri.startswith("mlflow-artifacts:")
    stored = [item["Key"] for item in bucket_client.list_objects_v2(Bucket="mlflow")["Contents"]]
    (weights,) = [key for key in stored if key.endswith(f"{joined}/artifacts/policy/model.safetensors")]
    digest = read_artifact(tmp_path / "policy", "policy").digest
    direct = f"s3://mlflow/{weights.rpartition('/')[0]}"
    for address in (f"runs:/{joined}/policy", f"{found.info.artifact_uri}/policy", direct):
        assert artifact_digest(address, "policy") == digest
        with open_artifact(address, "policy") as artifact:
            assert artifact.file("model.safetensors").read_bytes() == b"weights"
    bucket_client.delete_object(Bucket="mlflow", Key=weights)
    with pytest.raises(ArtifactError, match=r"model\.safetensors"), open_artifact(direct, "policy"):
        pass


@pytest.mark.parametrize(
    ("kind", "how"),
    [("status", {"status": 403, "body": "Permission denied"}), ("status", {"status": 503}), ("reset", {})],
)
def test_a_server_that_fails_for_a_while_costs_no_model_and_no_metric(proxy, tmp_path, monkeypatch, kind, how):
    joined = _open_as_kubeflow_does(monkeypatch)
    fault = proxy.arm(kind, "log-batch", times=4, **how)
    _train(tmp_path / "policy")
    assert fault.times == 0
    assert read_artifact(tmp_path / "policy", "policy").file("model.safetensors").read_bytes() == b"weights"
    found = _run(joined)
    assert found.data.metrics["loss"] == pytest.approx(1 / 3)
    assert found.data.params["rank"] == "8"


def test_a_user_without_rights_keeps_the_model_and_the_metrics_in_the_log(proxy, tmp_path, monkeypatch, caplog):
    _open_as_kubeflow_does(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "readers-own-password")
    caplog.set_level("INFO", logger="components")
    _train(tmp_path / "policy")
    assert read_artifact(tmp_path / "policy", "policy").digest
    assert "Permission denied" in caplog.text
    assert "of the step could not be sent; the metrics are in this log" in caplog.text
    assert "metrics at step 2" in caplog.text


def test_a_slow_server_delays_a_step_by_no_more_than_its_patience(proxy, tmp_path, monkeypatch):
    _open_as_kubeflow_does(monkeypatch)
    monkeypatch.setattr(tracking, "_PAUSE_SECONDS", 60.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    proxy.arm("slow", "log-batch", times=99, seconds=30)
    started = time.monotonic()
    _train(tmp_path / "policy")
    assert time.monotonic() - started < 25
    assert read_artifact(tmp_path / "policy", "policy").digest
