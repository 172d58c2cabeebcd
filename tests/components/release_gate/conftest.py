from __future__ import annotations

from pathlib import Path

import pytest

from components.release_gate.office import Office, open_office


@pytest.fixture
def office(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Office:
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", f"sqlite:///{tmp_path / 'plumbline.db'}")
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", str(tmp_path / "anchor"))
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return open_office()
