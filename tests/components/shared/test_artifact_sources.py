"""Artifacts by address: local folders in place, remote ones by way of MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.shared.artifact_sources import artifact_digest, open_artifact
from components.shared.artifacts import write_artifact
from components.shared.errors import ArtifactError


def _write(folder: Path) -> Path:
    with write_artifact(folder, "reward_model", stage="reward_model") as draft:
        (draft.path / "reward.json").write_text('{"mean": 0.0, "std": 1.0}')
    return folder


def _registered(folder: Path) -> str:
    """Uploads an artifact as a run's; returns its address."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    run = client.create_run(client.create_experiment("artifacts"))
    client.log_artifacts(run.info.run_id, str(folder), "safety")
    return f"runs:/{run.info.run_id}/safety"


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_folder_is_read_in_place(tmp_path: Path, prefix: str) -> None:
    folder = _write(tmp_path / "safety")

    with open_artifact(f"{prefix}{folder}", "reward_model") as artifact:
        assert artifact.path == folder
        assert artifact.digest == artifact_digest(f"{prefix}{folder}", "reward_model")


def test_a_remote_artifact_is_fetched_for_as_long_as_it_is_used(mlflow_store: str, tmp_path: Path) -> None:
    folder = _write(tmp_path / "safety")
    uri = _registered(folder)

    with open_artifact(uri, "reward_model") as artifact:
        assert artifact.path != folder
        assert artifact.file("reward.json").read_text() == '{"mean": 0.0, "std": 1.0}'
        assert artifact.digest == artifact_digest(uri, "reward_model") == artifact_digest(str(folder), "reward_model")
    assert not artifact.path.exists()


def test_what_is_no_such_artifact_is_refused(mlflow_store: str, tmp_path: Path) -> None:
    folder = _write(tmp_path / "safety")
    uri = _registered(folder)
    for address in (uri, str(folder)):
        with pytest.raises(ArtifactError, match="expected policy"):
            artifact_digest(address, "policy")
    with pytest.raises(ArtifactError, match="cannot be fetched"):
        artifact_digest("runs:/0123456789abcdef0123456789abcdef/none", "reward_model")
    (folder / "reward.json").write_text("{}")
    with pytest.raises(ArtifactError, match="altered"):
        artifact_digest(str(folder), "reward_model")
