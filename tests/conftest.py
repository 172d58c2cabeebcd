"""What many tests need."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import components  # noqa: F401  (telemetry off, before any library loads)

for _name, _value in {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}.items():
    os.environ.setdefault(_name, _value)


@pytest.fixture(scope="session")
def migrated_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; making one takes seconds, copying it takes none."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_store(migrated_mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of an MLflow store of the test's own, set as the tracking URI."""
    copy = tmp_path / "mlflow.db"
    shutil.copyfile(migrated_mlflow_database, copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}")
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{copy}"
