from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from tiny_office import KEY

from components.release_gate.office import Office, open_office
from components.shared.ledger_table import database_url, open_engine
from components.shared.review_key import register_key


@pytest.fixture
def office(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Office:
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", f"sqlite:///{tmp_path / 'plumbline.db'}")
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", str(tmp_path / "anchor"))
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    register_key(open_engine(database_url()), KEY)
    return open_office()


@dataclass(frozen=True)
class _PostgresServer:
    """A server with one empty, migrated MLflow database to copy from."""

    url: str
    template: str

    def create(self, name: str, *, template: str = "template1") -> str:
        """URL of a new database."""
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        engine.dispose()
        return self.url.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
def postgres(postgres_url: str) -> _PostgresServer:
    from mlflow.store.db.utils import _initialize_tables

    server = _PostgresServer(postgres_url, "mlflow_template")
    engine = create_engine(server.create(server.template))
    _initialize_tables(engine)
    engine.dispose()
    return server


@pytest.fixture(params=["sqlite", "postgres"])
def any_office(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    """Ledger and registry on each database; on Postgres both are in one server."""
    if request.param == "sqlite":
        yield request.getfixturevalue("office")
        return
    server: _PostgresServer = request.getfixturevalue("postgres")
    name = "test_" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:24]
    ledger = server.create(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.create(f"{name}_mlflow", template=server.template))
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", ledger)
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", str(tmp_path / "anchor"))
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    monkeypatch.chdir(tmp_path)
    register_key(open_engine(ledger), KEY)
    yield open_office()
    open_engine(ledger).dispose()
