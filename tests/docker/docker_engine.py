"""A Docker Engine, images and services of the tests' own: started, used and stopped by them; nothing is left behind.

For work on these tests PLUMBLINE_DOCKER_HOST names an engine that is there already and holds the images
(`make base-image images PREFIX=localhost/`).
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BASE", "PREFIX", "ROOT", "Services", "build_images", "missing", "run_engine", "run_services"]

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "localhost/"
BASE = "localhost/plumbline-base:bookworm"
_BUILD_BASE = "localhost/plumbline-build-base:bookworm"
_SERVICES = "localhost/plumbline-test-services:1"
_SWIFT = ("swift-proxy", "swift-account", "swift-container", "swift-object")
_PASSWORD = "for-tests-only"
_BUCKET = "plumbline"


def missing() -> str | None:
    """Why no engine can be started here; None if one can."""
    if os.environ.get("PLUMBLINE_DOCKER_HOST"):
        return None
    programs = [name for name in ("dockerd", "docker", "debootstrap") if shutil.which(name) is None]
    if programs:
        return f"{', '.join(programs)} not installed (Debian: apt-get install docker.io debootstrap)."
    return None if os.geteuid() == 0 else "starting a Docker Engine and debootstrap need root."


@contextmanager
def run_engine() -> Iterator[str]:
    """Starts dockerd; yields its DOCKER_HOST; stops it and removes its data."""
    if existing := os.environ.get("PLUMBLINE_DOCKER_HOST"):
        yield existing
        return
    folder = Path(tempfile.mkdtemp(prefix="plumbline-docker-"))  # a socket's path must be short
    host = f"unix://{folder}/docker.sock"
    places = ["--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "pid"]
    with open(folder / "log", "wb") as log:
        command = ["dockerd", "--host", host, *map(str, places)]
        daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(lambda: _docker("version", host=host, check=False).returncode == 0, 60, lambda: _tail(folder / "log"))
        yield host
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(timeout=60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def build_images(host: str, output: Path) -> None:
    """Makes the base images and builds `light`, `train` and `review` upon them, as `make images` does.

    Args:
        host: DOCKER_HOST of the engine.
        output: Where the SBOMs go.
    """
    if os.environ.get("PLUMBLINE_DOCKER_HOST"):
        shutil.copytree(ROOT / "build" / "images", output, dirs_exist_ok=True)
        return
    _base(host, BASE, "python3", "ca-certificates")
    _base(host, _BUILD_BASE, "python3", "python3-venv", "ca-certificates")
    command = [sys.executable, ROOT / "docker" / "build.py", "--base", BASE, "--build-base", _BUILD_BASE]
    options = ["--prefix", PREFIX, "--output", output, *_torch()]
    subprocess.run([*command, *options], check=True, env={**os.environ, "DOCKER_HOST": host}, timeout=1800)


def _torch() -> list[str | Path]:
    """The tests' images hold the same build of torch as the tests' environment: mostly the small CPU one."""
    version = importlib.metadata.version("torch")
    if "+" not in version:
        return []
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plumbline" / "torch"
    wheel = f"torch=={version}"
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", str(folder), wheel]
    subprocess.run(pip, check=True, timeout=900)
    return ["--torch-wheel", next(folder.glob(f"torch-{version}-*.whl"))]


def _base(host: str, tag: str, *packages: str) -> None:
    if _docker("image", "inspect", tag, host=host, check=False).returncode == 0:
        return
    command = [ROOT / "docker" / "base_image.sh", tag, *packages]
    subprocess.run(command, check=True, env={**os.environ, "DOCKER_HOST": host}, timeout=900, stdout=subprocess.DEVNULL)


@dataclass(frozen=True)
class Services:
    """MLflow, Postgres and an S3 server in containers, on a network that leads nowhere else.

    Attributes:
        network: Its name.
        here: Environment by which this machine reaches them.
        steps: Environment by which containers on the network do.
    """

    network: str
    here: dict[str, str]
    steps: dict[str, str]


@contextmanager
def run_services(host: str) -> Iterator[Services]:
    """Starts the three services; stops and removes them."""
    _base(host, _SERVICES, "python3", "postgresql", *_SWIFT)
    network = f"plumbline-tests-{os.getpid()}"
    names: list[str] = []

    def start(alias: str, image: str, *command: str, options: tuple[str, ...] = ()) -> str:
        name = f"{network}-{alias}"
        names.append(name)
        where = ["--network", network, "--network-alias", alias, "--name", name, *options]
        _docker("run", "--detach", *where, image, *command, host=host)
        found = _docker(
            "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name, host=host
        )
        return found.stdout.strip()

    def logs() -> str:
        return "\n".join(f"{name}:\n{_docker('logs', name, host=host, check=False)}" for name in names)

    _docker("network", "create", "--internal", network, host=host)
    try:
        login = ("--user", "postgres", "--env", "PGUSER=plumbline", "--env", f"PGPASSWORD={_PASSWORD}")
        database = start("db", _SERVICES, "sh", "-ec", _POSTGRES, options=login)
        script = f"{ROOT}/tests/s3_server.py:/s3_server.py:ro"
        serve = ["python3", "/s3_server.py", "/tmp", "--host", "0.0.0.0", "--port", "9000", "--bucket", _BUCKET]
        store = start("store", _SERVICES, *serve, options=("--volume", script))
        ready = ("exec", f"{network}-db", "psql", "--host", "db", "--dbname", "mlflow", "--command", "select 1")
        _wait_for(lambda: _docker(*ready, host=host, check=False).returncode == 0, 120, logs)
        _wait_for(lambda: _answers(f"http://{store}:9000/healthcheck"), 120, logs)
        aws = _aws("http://store:9000")
        variables = [word for item in aws.items() for word in ("--env", "=".join(item))]
        serve = ["--backend-store-uri", _url("db", "mlflow"), "--artifacts-destination", f"s3://{_BUCKET}/mlflow"]
        serve += ["--host", "0.0.0.0", "--port", "5000", "--workers", "1"]
        serve += ["--allowed-hosts", "mlflow:5000,localhost:5000,10.*,172.*,192.168.*"]
        sealed = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL")
        image = f"{PREFIX}plumbline-light:{_version()}"
        mlflow = start("mlflow", image, "mlflow", "server", *serve, options=(*sealed, *variables))
        _wait_for(lambda: _answers(f"http://{mlflow}:5000/health"), 240, logs)
        yield Services(
            network,
            here=_variables(f"http://{mlflow}:5000", database, f"http://{store}:9000"),
            steps=_variables("http://mlflow:5000", "db", "http://store:9000"),
        )
    finally:
        _docker("rm", "--force", "--volumes", *names, host=host, check=False)
        _docker("network", "rm", network, host=host, check=False)


_POSTGRES = """
bin=$(echo /usr/lib/postgresql/*/bin)
echo "$PGPASSWORD" > /tmp/password
$bin/initdb -D /tmp/data -U plumbline --pwfile=/tmp/password --auth=scram-sha-256 --no-sync
$bin/postgres -D /tmp/data -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off &
echo "host all all all scram-sha-256" >> /tmp/data/pg_hba.conf
export PGHOST=/tmp
until $bin/pg_isready -q; do sleep 0.2; done
psql -c 'select pg_reload_conf()' postgres
createdb plumbline
createdb mlflow
wait
"""


def _variables(mlflow: str, database: str, store: str) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": mlflow,
        "PLUMBLINE_DATABASE_URL": _url(database, "plumbline"),
        "PLUMBLINE_CHECKPOINTS": f"s3://{_BUCKET}/checkpoints",
        **_aws(store),
    }


def _url(host: str, database: str) -> str:
    return f"postgresql+pg8000://plumbline:{_PASSWORD}@{host}/{database}"


def _aws(endpoint: str) -> dict[str, str]:
    from s3_server import ACCESS_KEY, REGION, SECRET_KEY

    return {
        "AWS_ENDPOINT_URL": endpoint,
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
    }


def _version() -> str:
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def _docker(*arguments: str, host: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["docker", "--host", host, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command[:8])} ... failed: {done.stderr}")
    return done


def _answers(url: str) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _wait_for(done: Any, seconds: float, why: Any) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not ready within {seconds:.0f} s:\n{why()}")
        time.sleep(0.3)


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-3000:]
