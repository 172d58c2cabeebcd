"""What the images hold, and what they do not, told by containers of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import docker
import pytest
from docker_engine import BASE, PREFIX, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400), pytest.mark.xdist_group("docker")]

_IMAGES = ("light", "train", "review")
_SEALED: dict[str, Any] = {
    "read_only": True,
    "network_mode": "none",
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "tmpfs": {"/tmp": "mode=1777"},
}
every_image = pytest.mark.parametrize("image", _IMAGES)


@pytest.fixture(scope="module")
def client(sboms: Path) -> docker.DockerClient:
    del sboms
    return docker.from_env()


def _tag(image: str) -> str:
    return f"{PREFIX}plumbline-{image}:0.1.0"


def _python(client: docker.DockerClient, image: str, program: str, **options: Any) -> str:
    """What a program prints in a sealed container."""
    told = client.containers.run(_tag(image), ["python3", "-c", program], remove=True, **(_SEALED | options))
    return told.decode().strip()


@every_image
def test_runs_as_65532_without_rights(client: docker.DockerClient, image: str) -> None:
    program = "import os; print(os.getuid(), os.getgid()); print(open('/proc/self/status').read())"
    told = _python(client, image, program)
    assert told.startswith("65532 65532")
    assert re.search(r"CapEff:\s+0+\n", told)
    assert re.search(r"NoNewPrivs:\s+1\n", told)


@every_image
def test_holds_no_build_tool_and_no_set_uid_program(client: docker.DockerClient, image: str) -> None:
    program = """
import importlib.util, os, shutil, stat
tools = [t for t in ("pip", "pip3", "gcc", "cc", "g++", "make", "ld", "git", "curl", "wget") if shutil.which(t)]
modules = [m for m in ("pip", "ensurepip") if importlib.util.find_spec(m)]
files = (os.path.join(d, f) for d, _, fs in os.walk("/") if not d.startswith(("/proc", "/sys")) for f in fs)
modes = ((file, os.lstat(file).st_mode) for file in files)
suid = [file for file, mode in modes if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID)]
print(tools, modules, suid)
"""
    assert _python(client, image, program) == "[] [] []"


@every_image
def test_labels_name_version_commit_and_base(client: docker.DockerClient, image: str) -> None:
    found = client.images.get(_tag(image)).labels
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in found.items()}
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert labels["title"] == f"plumbline-{image}"
    assert labels["version"] == "0.1.0"
    assert labels["revision"].removesuffix("-dirty") == head.strip()
    assert labels["base.digest"] == client.images.get(BASE).id


@every_image
def test_telemetry_is_off(client: docker.DockerClient, image: str) -> None:
    variables = client.images.get(_tag(image)).attrs["Config"]["Env"]
    assert {
        "DO_NOT_TRACK=1",
        "GX_ANALYTICS_ENABLED=false",
        "HF_HUB_DISABLE_TELEMETRY=1",
        "MLFLOW_DISABLE_TELEMETRY=true",
    } <= set(variables)


@every_image
def test_sbom_lists_what_is_installed(client: docker.DockerClient, sboms: Path, image: str) -> None:
    bom = json.loads((sboms / f"plumbline-{image}.cdx.json").read_text())
    program = "import importlib.metadata as m; print('\\n'.join({f'{d.name} {d.version}' for d in m.distributions()}))"
    installed = {tuple(line.split()) for line in _python(client, image, program).splitlines()}
    listed = {(c["name"], c["version"]) for c in bom["components"] if c["purl"].startswith("pkg:pypi/")}
    assert listed == {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in installed}
    assert ("plumbline", "0.1.0") in listed
    packages = subprocess.run(
        ["docker", "run", "--rm", _tag(image), "dpkg-query", "-W", "-f", "${Package}\\n"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert {c["name"] for c in bom["components"] if c["purl"].startswith("pkg:deb/")} == set(packages)
    assert bom["metadata"]["component"]["version"] == client.images.get(_tag(image)).id


@every_image
def test_versions_are_those_of_the_lock(client: docker.DockerClient, image: str) -> None:
    lock = (ROOT / "docker" / "locks" / f"{image}.txt").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE))
    program = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    found = json.loads(_python(client, image, program))
    installed = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found.items()}
    assert {name: installed.get(name) for name in locked} == locked
    assert set(installed) - set(locked) == {"plumbline"} | ({"torch"} if image == "train" else set())


def test_light_and_review_hold_no_torch_and_train_does(client: docker.DockerClient) -> None:
    program = "import importlib.util as u; print([bool(u.find_spec(m)) for m in ('torch', 'trl', 'peft')])"
    assert _python(client, "light", program) == "[False, False, False]"
    assert _python(client, "review", program) == "[False, False, False]"
    assert _python(client, "train", "import torch, trl, peft; print(torch.ones(2).sum().item())") == "2.0"


@every_image
def test_root_is_read_only_and_the_caches_are_in_tmp(client: docker.DockerClient, image: str) -> None:
    program = """
import getpass, os, pathlib, tempfile
import matplotlib.pyplot
refused = []
for folder in ("/", "/opt/plumbline", "/opt/application", "/usr/local", "/var/tmp"):
    try:
        pathlib.Path(folder, "x").touch()
    except OSError:
        refused.append(folder)
assert len(refused) == 5, refused
names = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR", "HF_HOME")
for name in names:
    pathlib.Path(os.environ[name]).mkdir(exist_ok=True)
    pathlib.Path(os.environ[name], "probe").touch()
print(getpass.getuser(), tempfile.gettempdir())
"""
    assert _python(client, image, program) == "plumbline /tmp"
    assert _python(client, image, program, user="1234:1234") == "plumbline /tmp"  # a cluster that assigns users


@every_image
def test_sigterm_reaches_the_program_behind_kfps_shell(client: docker.DockerClient, image: str) -> None:
    program = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(60)"
    )
    command = ["sh", "-ec", 'folder=$(mktemp -d)\nX=1 python3 -c "$0" "$@"\n', program]
    container = client.containers.run(_tag(image), command, detach=True, **_SEALED)
    try:
        assert next(container.logs(stream=True)) == b"up\n"
        container.kill("SIGTERM")
        assert container.wait(timeout=10)["StatusCode"] == 7
    finally:
        container.remove(force=True)


def test_review_becomes_healthy_and_unhealthy(client: docker.DockerClient) -> None:
    container = client.containers.run(_tag("review"), detach=True, **_SEALED)  # /data is a volume of its own
    try:
        _wait_for_health(container, "healthy", 120)
        container.exec_run(["python3", "-c", "import os; [os.kill(int(p), 19) for p in os.listdir('/proc')"
                            " if p.isdigit() and b'plumbline\\0review' in open(f'/proc/{p}/cmdline', 'rb').read()"
                            " and p != '1']"])  # fmt: skip
        _wait_for_health(container, "unhealthy", 120)
    finally:
        container.remove(force=True, v=True)


def _wait_for_health(container: Any, wanted: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        container.reload()
        found = container.attrs["State"]["Health"]
        if found["Status"] == wanted:
            return
        assert time.monotonic() < deadline, found
        time.sleep(1)


def test_a_base_without_a_digest_is_refused() -> None:
    command = [sys.executable, ROOT / "docker" / "build.py", "light", "--base", "python:3.11-slim"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "names no digest" in refused.stderr


def test_a_file_that_is_not_what_the_lock_says_is_refused(tmp_path: Path) -> None:
    """One wheel of the cache, changed, and the rest of the index away: pip must not take it."""
    lock = (ROOT / "docker" / "locks" / "build.txt").read_text()
    pin = lock[lock.index("wheel==") :]
    (tmp_path / "lock.txt").write_text(pin)
    (tmp_path / f"wheel-{pin.split()[0].removeprefix('wheel==')}-py3-none-any.whl").write_bytes(b"not what was locked")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-index", "--find-links", tmp_path]
    options = ["--require-hashes", "--dest", tmp_path / "out", "-r", tmp_path / "lock.txt"]
    refused = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
