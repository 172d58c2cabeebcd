"""What many tests need."""

from __future__ import annotations

import os
import shutil
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_server import find_postgres, run_postgres

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


class StorageServer:
    """An S3 server on the loopback; what it holds outlives a stop."""

    def __init__(self) -> None:
        self._port = 0
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()

    def stop(self) -> None:
        self._server.stop()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def require_rights_after(self, requests: str) -> None:
        """Whoever it knows no key of is refused from then on; `inf`: nobody ever is."""
        address = f"{self.address}/moto-api/reset-auth"
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(address, data=requests.encode(), headers=headers)).close()


@pytest.fixture(scope="session")
def _storage_server() -> Iterator[StorageServer]:
    server = StorageServer()
    yield server
    server.stop()


@pytest.fixture
def storage_server(_storage_server: StorageServer, monkeypatch: pytest.MonkeyPatch) -> StorageServer:
    """An S3 server; the AWS variables point to it."""
    variables = {
        "AWS_ENDPOINT_URL": _storage_server.address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "2",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return _storage_server


@pytest.fixture
def bucket_client(storage_server: StorageServer) -> Any:
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
def refuse_credentials(storage_server: StorageServer) -> Iterator[Callable[[], None]]:
    """Called, it makes the server refuse the test's credentials."""
    yield lambda: storage_server.require_rights_after("0")
    storage_server.require_rights_after("inf")


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
