"""A Postgres server for tests: its own data folder, a Unix socket, nothing on the network."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["find_postgres", "run_postgres"]

_PROGRAMS = ("initdb", "postgres", "pg_isready")


def find_postgres() -> Path | None:
    """The folder with Postgres's programs; None if there is none."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if all((folder / name).exists() for name in _PROGRAMS)), None)


@contextmanager
def run_postgres(programs: Path, folder: Path, *, durable: bool = False) -> Iterator[str]:
    """Starts a server below `folder`; yields its SQLAlchemy URL; stops it.

    Postgres does not run as root: as root it is started as `nobody`.

    Args:
        programs: Folder of its programs.
        folder: An empty folder.
        durable: Whether it waits for the disk, as a server that is not for tests does.
    """
    user = "nobody" if os.geteuid() == 0 else None
    data, socket = folder / "data", Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path must be short
    data.mkdir()
    if user:
        for path in (data, socket):
            shutil.chown(path, user)
        for parent in data.parents:
            if parent.owner() == "root" and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    _call([programs / "initdb", "-D", data, "-U", "tests", "--auth=trust", "--no-sync"], user)
    settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={socket}"]
    settings += ["-c", f"fsync={'on' if durable else 'off'}"]
    server = subprocess.Popen(
        [str(programs / "postgres"), "-D", str(data), *settings],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # what a test sends to its own group is not meant for it
        **_identity(user),
    )
    try:
        _wait_until_ready(programs, socket)
        yield f"postgresql+pg8000://tests@/postgres?unix_sock={socket}/.s.PGSQL.5432"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
        shutil.rmtree(socket, ignore_errors=True)


def _wait_until_ready(programs: Path, socket: Path) -> None:
    for _ in range(300):
        if subprocess.run([programs / "pg_isready", "-q", "-h", socket], check=False, timeout=30).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"Postgres below {socket} did not start within 30 s")


def _identity(user: str | None) -> dict[str, Any]:
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}


def _call(command: list, user: str | None) -> None:
    subprocess.run(
        [str(part) for part in command],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        timeout=120,
        **_identity(user),
    )
