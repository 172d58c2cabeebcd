"""An MLflow server for tests, as on a cluster: Postgres, basic auth, artifacts in S3; a process of its own."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ADMIN", "PASSWORD", "MLflowServer"]

ADMIN = "admin"
PASSWORD = "a-password-for-tests"
_START_SECONDS = 240.0
_AUTH = """
[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = {admin}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


class MLflowServer:
    """The server.

    Attributes:
        host: Where it listens.
        port: Its port, the same after a restart.
    """

    def __init__(
        self, folder: Path, *, database: str, artifacts: str, environment: Mapping[str, str], users: bool = True
    ) -> None:
        """Writes its settings; starts nothing yet.

        Args:
            folder: For settings, users and log.
            database: SQLAlchemy URL of its database.
            artifacts: `s3://bucket/prefix` or folder where it keeps artifacts.
            environment: The AWS variables of the storage, where artifacts are in S3.
            users: Whether it asks who calls (basic auth), which costs it much of a second at every request.
        """
        self.host = "127.0.0.1"
        with socket.socket() as free:
            free.bind((self.host, 0))
            self.port = free.getsockname()[1]
        self._folder = folder
        self._users = users
        self._database = database
        self._artifacts = artifacts
        self._environment = {
            **os.environ,
            **environment,
            "MLFLOW_S3_ENDPOINT_URL": environment.get("AWS_ENDPOINT_URL", ""),
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
            self._environment.pop(name, None)
        (folder / "auth.ini").write_text(_AUTH.format(folder=folder, admin=ADMIN, password=PASSWORD))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--app-name", "basic-auth"] if self._users else []
        command += ["--host", self.host, "--port", str(self.port), "--backend-store-uri", self._database]
        command += ["--artifacts-destination", self._artifacts]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, cwd=self._folder, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                log_end = (self._folder / "log").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"the MLflow server did not start; the log's end:\n{log_end}")
            time.sleep(0.25)

    def stop(self) -> None:
        """Ends it and its workers."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=30)
            self._process = None

    def add_user(self, name: str, password: str) -> None:
        """Adds a user without rights to write what others made."""
        login = base64.b64encode(f"{ADMIN}:{PASSWORD}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        body = f'{{"username": "{name}", "password": "{password}"}}'.encode()
        url = f"{self.address}/api/2.0/mlflow/users/create"
        urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=60).close()

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
        except (urllib.error.URLError, OSError):
            return False
        return True
