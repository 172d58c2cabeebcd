from __future__ import annotations

from pathlib import Path

import pytest

from components.human_eval.database import EvidenceDatabase, open_database


@pytest.fixture
def database_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/plumbline.db"
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", url)
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", str(tmp_path / "anchor"))
    return url


@pytest.fixture
def database(database_url: str) -> EvidenceDatabase:
    return open_database(database_url)
