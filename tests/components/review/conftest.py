from __future__ import annotations

from pathlib import Path

import pytest
from review_world import SECRET

from components.human_eval.database import EvidenceDatabase, open_database
from components.shared.ledger_table import open_engine
from components.shared.review_key import ReviewKey, register_key


@pytest.fixture
def database_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/plumbline.db"
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", url)
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", str(tmp_path / "anchor"))
    register_key(open_engine(url), ReviewKey(SECRET))  # the service was started before the gate judged anything
    return url


@pytest.fixture
def database(database_url: str) -> EvidenceDatabase:
    return open_database(database_url)
