"""What many tests need."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_server import find_postgres, run_postgres
from s3_server import MISSING as SWIFT_MISSING
from s3_server import S3Server, has_swift

import components  # noqa: F401  (telemetry off, before any library loads)

for _name, _value in {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}.items():
    os.environ.setdefault(_name, _value)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="Write the golden files of compiled pipelines anew.")


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


@pytest.fixture(scope="session")
def _storage_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Swift; skipped where it is not installed, but an error where PLUMBLINE_REQUIRE_S3 is set, as in CI."""
    if not has_swift():
        if os.environ.get("PLUMBLINE_REQUIRE_S3"):
            raise RuntimeError(SWIFT_MISSING)
        pytest.skip(SWIFT_MISSING)
    server = S3Server(tmp_path_factory.mktemp("swift"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def storage_server(_storage_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server; the AWS variables point to it."""
    for name, value in {**_storage_server.environment(), "AWS_MAX_ATTEMPTS": "2"}.items():
        monkeypatch.setenv(name, value)
    return _storage_server


@pytest.fixture
def bucket_client(storage_server: S3Server) -> Any:
    """boto3's own client of the server."""
    import boto3

    return boto3.client("s3")


@pytest.fixture
def bucket(bucket_client: Any) -> str:
    """An empty bucket of the test's own."""
    name = f"test-{uuid.uuid4().hex}"
    bucket_client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def refuse_credentials(storage_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, it gives the test a key that the server refuses."""
    del storage_server

    def refuse() -> None:
        import boto3

        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers credentials

    return refuse


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Postgres server of the session's own, on a Unix socket.

    Skipped where Postgres is not installed, but an error where PLUMBLINE_REQUIRE_POSTGRES is set, as in CI.
    """
    programs = find_postgres()
    if programs is None:
        message = "Postgres is not installed (Debian: apt-get install postgresql)."
        if os.environ.get("PLUMBLINE_REQUIRE_POSTGRES"):
            raise RuntimeError(message)
        pytest.skip(message)
    with run_postgres(programs, tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def any_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/evidence.db"
    from sqlalchemy import create_engine, text

    server = request.getfixturevalue("postgres_url")
    name = f"test_{uuid.uuid4().hex}"
    with create_engine(server, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return server.replace("/postgres?", f"/{name}?")
