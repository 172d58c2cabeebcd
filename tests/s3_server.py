"""A real S3 server for tests: OpenStack Swift with its S3 API, one replica, everything in one folder.

Four ordinary processes: the proxy, which speaks S3, and the account, container and object servers behind it on the
loopback. What is stored outlives a stop and a kill. Swift's S3 API (2.30) answers 501 to a conditional write, which
Swift itself knows: a filter of ours before it and one behind it hand the condition through (`conditional=False` leaves
them out).

Needs Debian's packages (see `MISSING`) and a file system with extended attributes; runs as any user. Only the standard
library is imported, so that it runs by itself too, in a container say, until it is told to end (SIGTERM):

    python3 tests/s3_server.py FOLDER --host 0.0.0.0 --port 9000 --bucket plumbline
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import email.utils
import getpass
import hmac
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = ["ACCESS_KEY", "MISSING", "REGION", "SECRET_KEY", "S3Server", "has_swift"]

ACCESS_KEY = "test:tester"
SECRET_KEY = "a-key-for-tests-only"
REGION = "eu-test-1"
MISSING = (
    "OpenStack Swift is not installed (Debian: apt-get install swift-proxy swift-account swift-container swift-object)."
)

_Application = Callable[[dict[str, Any], Any], Iterable[bytes]]
_BACKENDS = ("account", "container", "object")
_PYTHON = "/usr/bin/python3"
"""Debian's own, for which Debian's packages are."""
_LAUNCH = """
import sys
from swift.common import utils
etc, name, filters = sys.argv[1:]
sys.path.insert(0, filters)
utils.set_swift_dir(etc)
from swift.common.wsgi import run_wsgi
sys.exit(run_wsgi(f"{etc}/{name}.conf", f"{name}-server", verbose=True))
"""
_BUILD_RINGS = """
import sys
from swift.common.ring import RingBuilder
etc, *rings = sys.argv[1:]
for name, port in zip(rings[::2], rings[1::2]):
    ring = RingBuilder(part_power=1, replicas=1, min_part_hours=0)
    ring.add_dev(dict(id=0, region=1, zone=1, ip="127.0.0.1", port=int(port), device="disk", weight=1.0, meta=""))
    ring.rebalance()
    ring.get_ring().save(f"{etc}/{name}.ring.gz")
"""
_START_SECONDS = 60.0
_PATIENCE = "conn_timeout = 20\nnode_timeout = 60\ncontainer_update_timeout = 60\n"
"""On a busy machine Swift's own limits (0.5 s, 1 s) would let a listing lag behind a write."""

_BACKEND_CONF = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {etc}
devices = {devices}
mount_check = false
workers = 0
disable_fallocate = true
db_preallocation = off
log_level = INFO
{patience}
[pipeline:main]
pipeline = {name}-server

[app:{name}-server]
use = egg:swift#{name}
{patience}
"""

_PROXY_CONF = """
[DEFAULT]
bind_ip = {host}
bind_port = {port}
user = {user}
swift_dir = {etc}
workers = 0
log_level = INFO
{patience}
[pipeline:main]
pipeline = {pipeline}

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
{patience}
[filter:s3api]
use = egg:swift#s3api
location = {region}

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin

[filter:cache]
use = egg:swift#memcache
# Nobody listens there: Swift then asks its servers each time, and no memcached is needed.
memcache_servers = 127.0.0.1:1
error_suppression_limit = 0

[filter:take_condition]
paste.filter_factory = s3_server:take_condition

[filter:give_condition]
paste.filter_factory = s3_server:give_condition

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:gatekeeper]
use = egg:swift#gatekeeper

[filter:healthcheck]
use = egg:swift#healthcheck

[filter:bulk]
use = egg:swift#bulk

[filter:slo]
use = egg:swift#slo
"""
_PIPELINE = "catch_errors gatekeeper healthcheck cache {before} s3api tempauth bulk slo {behind} proxy-server"
_CONDITION = "plumbline.condition"


def has_swift() -> bool:
    """Whether Swift is installed."""
    return all(shutil.which(f"swift-{name}-server") for name in ("proxy", *_BACKENDS))


class S3Server:
    """Swift below a folder.

    Attributes:
        host: Where the proxy listens.
        port: Its port, the same after a restart.
    """

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", port: int = 0, conditional: bool = True) -> None:
        """Writes configuration and rings; starts nothing yet.

        Args:
            folder: Where configuration, log and what is stored go; what an earlier server stored there is served again.
            host: Where to listen.
            port: 0: a free one.
            conditional: Whether conditional writes work.
        """
        self.host = host
        self._folder = folder
        self._etc = folder / "etc"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.port = port or _free_port()
        self._backends = {name: _free_port() for name in _BACKENDS}
        self._configure(conditional)

    @property
    def address(self) -> str:
        """The endpoint's URL, on this machine."""
        return f"http://{self._reached_at}:{self.port}"

    @property
    def _reached_at(self) -> str:
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    def environment(self, address: str | None = None) -> dict[str, str]:
        """The AWS variables that lead to the server, or to `address` in its place."""
        return {
            "AWS_ENDPOINT_URL": address or self.address,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
        }

    def start(self) -> None:
        """Starts the servers and waits until they answer."""
        self._launch(*_BACKENDS)
        self._wait_until(self._backends_answer)
        self._launch("proxy")  # without the others it would say of every bucket that there is none
        self._wait_until(self._proxy_answers)

    def _launch(self, *names: str) -> None:
        with open(self._folder / "log", "ab") as log:
            for name in names:
                command = [_PYTHON, "-c", _LAUNCH, str(self._etc), name, str(Path(__file__).parent)]
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder))

    def kill(self) -> None:
        """Ends the servers at once (SIGKILL), whatever they are at."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends the servers."""
        self._end(signal.SIGTERM)

    def make_bucket(self, name: str) -> None:
        """Makes a bucket unless it is there; signed by hand (AWS signature 2), so that no S3 client is needed."""
        date = email.utils.formatdate(usegmt=True)
        signed = hmac.digest(SECRET_KEY.encode(), f"PUT\n\n\n{date}\n/{name}".encode(), "sha1")
        headers = {"Date": date, "Authorization": f"AWS {ACCESS_KEY}:{base64.b64encode(signed).decode()}"}
        connection = http.client.HTTPConnection(self._reached_at, self.port, timeout=60)
        connection.request("PUT", f"/{name}", headers=headers)
        answer = connection.getresponse()
        if answer.status not in (200, 409):
            raise RuntimeError(f"no bucket {name!r} was made: {answer.status} {answer.read()!r}")

    def log(self) -> str:
        """What the servers said."""
        return (self._folder / "log").read_text(errors="replace")

    def _end(self, how: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(how)
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _configure(self, conditional: bool) -> None:
        devices = self._folder / "devices"
        (devices / "disk").mkdir(parents=True, exist_ok=True)
        self._etc.mkdir(exist_ok=True)
        self._require_attributes(devices / "disk")
        self._write(
            "swift", "[swift-hash]\nswift_hash_path_suffix = tests\n[storage-policy:0]\nname = one\ndefault = yes\n"
        )
        common = {"user": getpass.getuser(), "etc": self._etc, "patience": _PATIENCE}
        for name, port in self._backends.items():
            self._write(name, _BACKEND_CONF.format(name=name, port=port, devices=devices, **common))
        filters = ("take_condition", "give_condition") if conditional else ("", "")
        pipeline = _PIPELINE.format(before=filters[0], behind=filters[1])
        proxy = {"host": self.host, "port": self.port, "region": REGION, "secret": SECRET_KEY, "pipeline": pipeline}
        self._write("proxy", _PROXY_CONF.format(**proxy, **common))
        rings = [str(word) for ring in self._backends.items() for word in ring]
        subprocess.run([_PYTHON, "-c", _BUILD_RINGS, str(self._etc), *rings], check=True, timeout=60)

    def _write(self, name: str, content: str) -> None:
        (self._etc / f"{name}.conf").write_text(content)

    def _require_attributes(self, disk: Path) -> None:
        probe = disk / ".probe"
        probe.touch()
        try:
            os.setxattr(probe, "user.plumbline", b"1")
        except OSError as error:
            raise RuntimeError(f"{disk} is on a file system without extended attributes; choose another") from error
        finally:
            probe.unlink()

    def _wait_until(self, answers: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if dead := [process.args for process in self._processes if process.poll() is not None]:
                log = self.log()
                self.kill()
                raise RuntimeError(f"{dead} ended; the log's end:\n{log[-3000:]}")
            if answers():
                return
            time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"Swift did not start within {_START_SECONDS:.0f} s; the log's end:\n{self.log()[-3000:]}")

    def _backends_answer(self) -> bool:
        for port in self._backends.values():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                continue
            return False
        return True

    def _proxy_answers(self) -> bool:
        connection = http.client.HTTPConnection(self._reached_at, self.port, timeout=5)
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def take_condition(*_: Any, **__: Any) -> Callable[[_Application], _Application]:
    """A filter before the S3 API: hides `If-None-Match: *` of a write from it.

    One such write at a time, so that of two that race one fails: Swift looks before it receives the body.
    """
    lock = threading.Lock()  # made Swift's kind, which yields to other requests, by eventlet

    def around(application: _Application) -> _Application:
        def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            if environ["REQUEST_METHOD"] != "PUT" or environ.get("HTTP_IF_NONE_MATCH") != "*":
                return application(environ, start_response)
            environ[_CONDITION] = environ.pop("HTTP_IF_NONE_MATCH")
            with lock:
                return list(application(environ, start_response))

        return answer

    return around


def give_condition(*_: Any, **__: Any) -> Callable[[_Application], _Application]:
    """A filter behind the S3 API: gives the write its condition back."""

    def around(application: _Application) -> _Application:
        def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            if environ["REQUEST_METHOD"] == "PUT" and _CONDITION in environ:
                environ["HTTP_IF_NONE_MATCH"] = environ[_CONDITION]
            return application(environ, start_response)

        return answer

    return around


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _main() -> None:
    parser = argparse.ArgumentParser(description="Runs an S3 server until SIGTERM or Ctrl-C.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--bucket", action="append", default=[], help="to be made if it is not there; may be repeated")
    arguments = parser.parse_args()
    ended = threading.Event()
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, lambda *_: ended.set())
    server = S3Server(arguments.folder, host=arguments.host, port=arguments.port)
    server.start()
    try:
        for bucket in arguments.bucket:
            server.make_bucket(bucket)
        sys.stdout.write(f"{server.address} serves {ACCESS_KEY}, whose key is {SECRET_KEY}\n")
        sys.stdout.flush()
        ended.wait()
    finally:
        server.stop()


if __name__ == "__main__":
    _main()
