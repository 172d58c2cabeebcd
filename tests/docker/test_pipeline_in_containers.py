"""The whole RLHF pipeline, each step in a container of its image, on a network that leads to its three services only.

What runs is what is in the images: no source and no site-packages are mounted. Once undisturbed; once with every
training container preempted. PLUMBLINE_E2E_WORKSPACE (make e2e-containers) keeps the first run's report there.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from docker_engine import PREFIX, ROOT, Services
from observer import Observer, Seen

from components.shared.files import read_json

sys.path.insert(0, str(ROOT / "tests" / "pipelines"))
from small_run import latest_summary, make_small_world, small_settings, write_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400), pytest.mark.xdist_group("docker")]

_TRAINING = ("sft", "reward_model:train", "reward_model:divergence", "ppo")
_LIGHT, _TRAIN = (f"{PREFIX}plumbline-{name}:0.1.0" for name in ("light", "train"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_small_world(tmp_path_factory.mktemp("world") / "world")
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode | 0o044)  # safetensors writes for the owner only, and the steps are not root
    return folder


def _settings(world: Path, workspace: Path, services: Services, **train: Any) -> dict[str, Any]:
    settings = small_settings(world, workspace, ppo={"steps": 6})  # half through, work must be left to preempt
    settings["execution"] |= {
        "runner": "docker",
        "containers": {"network": services.network, "environment": services.steps},
        "light": {"image": _LIGHT},
        "train": {"image": _TRAIN} | train,
    }
    return settings


@pytest.fixture(scope="module")
def run_pipeline(services: Services, world: Path) -> Callable[..., tuple[Path, Seen]]:
    """Runs `plumbline run`; returns the workspace, and the containers that were seen."""

    def run(workspace: Path, preempt_after: dict[str, list[float]] | None = None, **train: Any) -> tuple[Path, Seen]:
        settings = _settings(world, workspace, services, **train)
        workspace.mkdir(parents=True, exist_ok=True)
        file = write_settings(workspace / "settings.yaml", settings)
        command = [sys.executable, "-m", "pipelines.cli", "run", "--settings", str(file)]
        environment = {**os.environ, **services.here, "PYTHONPATH": str(ROOT), "AWS_EC2_METADATA_DISABLED": "true"}
        with Observer(workspace / "latest" / "progress.jsonl", preempt_after) as observer:
            done = subprocess.run(
                command, cwd=workspace, env=environment, capture_output=True, text=True, check=False, timeout=1800
            )
        log = workspace / "latest" / "pipeline.log"
        assert done.returncode == 0, done.stderr + (log.read_text()[-6000:] if log.exists() else "")
        return workspace, observer.seen

    return run


@pytest.fixture(scope="module")
def undisturbed(
    run_pipeline: Callable[..., tuple[Path, Seen]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Seen]:
    kept = os.environ.get("PLUMBLINE_E2E_WORKSPACE")
    return run_pipeline(Path(kept).resolve() if kept else tmp_path_factory.mktemp("undisturbed") / "runs")


def test_leaves_the_summary_and_report_of_a_local_run(undisturbed: tuple[Path, Seen]) -> None:
    workspace, _ = undisturbed
    summary = latest_summary(workspace)
    assert summary["status"] == "SUCCEEDED"
    assert summary["verdict"] in ("PROMOTE", "HOLD", "BLOCK")
    assert (workspace / "latest" / "report.html").stat().st_size > 10_000
    assert {"sft", "candidate", "reward_model", "history", "evaluation", "evidence", "decision"} <= set(
        read_json(workspace / "latest" / "artifacts.json")
    )


def test_every_step_is_a_sealed_container_of_its_image(undisturbed: tuple[Path, Seen], services: Services) -> None:
    _, seen = undisturbed
    stages = [step.stage for step in seen]
    assert set(stages) >= {
        "prerequisites", "data_validation", "collection", "reward_model_check", "evaluation", "human_eval",
        "release_gate", "report", "finish", *_TRAINING,
    }, stages  # fmt: skip
    for step in seen:
        config, host = step.attributes["Config"], step.attributes["HostConfig"]
        assert step.exit_code == 0, step.stage
        assert config["Image"] in (_LIGHT, _TRAIN)
        assert config["User"] == "65532:65532"
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert not host["Privileged"]
        assert "no-new-privileges" in host["SecurityOpt"]
        assert set(step.attributes["NetworkSettings"]["Networks"]) == {services.network}


def test_no_source_and_no_packages_are_mounted(undisturbed: tuple[Path, Seen], world: Path) -> None:
    workspace, seen = undisturbed
    for step in seen:
        for mount in step.attributes["Mounts"]:
            source = Path(mount["Source"])
            assert source.is_relative_to(workspace) or source.is_relative_to(world), source
            assert mount["RW"] == source.is_relative_to(workspace)


def test_the_network_leads_to_the_services_and_nowhere_else(services: Services) -> None:
    """A step reaches all three; what it sends elsewhere is dropped by this machine's own packet filter."""
    import docker

    client = docker.from_env()
    subnet = client.networks.get(services.network).attrs["IPAM"]["Config"][0]["Subnet"]
    program = """
import os, socket, urllib.request
assert urllib.request.urlopen(os.environ["MLFLOW_TRACKING_URI"] + "/health").status == 200
assert urllib.request.urlopen(os.environ["AWS_ENDPOINT_URL"] + "/healthcheck").status == 200
socket.create_connection(("db", 5432), timeout=10).close()
try:
    socket.create_connection(("192.0.2.1", 9), timeout=3)  # an address that is nobody's
except OSError as error:
    print(type(error).__name__)
"""
    dropped = _dropped(subnet)
    options: dict[str, Any] = {"network": services.network, "environment": services.steps, "read_only": True}
    told = client.containers.run(_LIGHT, ["python3", "-c", program], remove=True, **options)
    assert told.decode().strip() == "TimeoutError"
    assert _dropped(subnet) > dropped


def _dropped(subnet: str) -> int:
    """Packets from the network to elsewhere that Docker's rule for it has dropped."""
    command = ["iptables", "-vnxL", "DOCKER-ISOLATION-STAGE-1"]
    rules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    fields = [line.split() for line in rules]
    return next(int(f[0]) for f in fields if f[2:3] == ["DROP"] and f[-1] == f"!{subnet}")


def test_tracking_and_artifacts_went_over_http(undisturbed: tuple[Path, Seen], services: Services) -> None:
    """Nothing fell back to a file of the workspace, and the registered model is in the object store."""
    import boto3

    workspace, _ = undisturbed
    started = (workspace / "latest" / "settings.yaml").stat().st_mtime
    files = [workspace / "state" / name for name in ("mlflow.db", "evidence.db")]  # an earlier local run's, if any
    assert not [file for file in files if file.exists() and file.stat().st_mtime > started]
    here = services.here
    client = boto3.client(
        "s3",
        endpoint_url=here["AWS_ENDPOINT_URL"],
        aws_access_key_id=here["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=here["AWS_SECRET_ACCESS_KEY"],
        region_name=here["AWS_DEFAULT_REGION"],
    )
    keys = [one["Key"] for one in client.list_objects_v2(Bucket="plumbline", Prefix="mlflow/").get("Contents", [])]
    assert any(key.endswith("model.safetensors") for key in keys), keys


def test_every_training_container_is_preempted_and_the_model_is_the_same(
    undisturbed: tuple[Path, Seen], run_pipeline: Callable[..., tuple[Path, Seen]], tmp_path: Path
) -> None:
    """KFP's own retries start the step again, as on a cluster: a new container that knows the object store only."""
    before, calm = undisturbed
    seed = int(os.environ.get("PLUMBLINE_PREEMPTION_SEED", random.randrange(10**6)))
    print(f"PLUMBLINE_PREEMPTION_SEED={seed}")  # noqa: T201  (to run it again as it was)
    draw = random.Random(seed)
    waits = {stage: [draw.uniform(0.2, 0.9) * s.seconds for s in calm if s.stage == stage] for stage in _TRAINING}
    after, seen = run_pipeline(tmp_path / "runs", waits, retries=2, retry_backoff="1s")

    preempted = [step for step in seen if step.signals]
    assert {step.stage for step in preempted} == set(_TRAINING)
    assert all(step.exit_code in (143, 137) for step in preempted), [(s.stage, s.exit_code) for s in preempted]
    assert len(seen) == len(calm) + len(preempted)
    assert latest_summary(after)["status"] == "SUCCEEDED"
    assert _digests(after) == _digests(before)


def _digests(workspace: Path) -> dict[str, dict[str, str]]:
    """sha256 of the weights of every model that the run trained."""
    artifacts = read_json(workspace / "latest" / "artifacts.json")
    roles = ("sft", "reward_model", "heldout_reward_model", "candidate")
    return {
        role: {
            name: digest
            for name, digest in read_json(Path(artifacts[role]) / "manifest.json")["files"].items()
            if name.endswith(".safetensors")
        }
        for role in roles
    }


def test_an_image_that_is_not_there_is_told_before_anything_runs(
    services: Services, world: Path, tmp_path: Path
) -> None:
    settings = _settings(world, tmp_path / "runs", services, image="localhost/no-such-image:1")
    file = write_settings(tmp_path / "settings.yaml", settings)
    command = [sys.executable, "-m", "pipelines.cli", "run", "--settings", str(file)]
    environment = {**os.environ, **services.here, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no image localhost/no-such-image:1" in done.stderr
    assert "make images" in done.stderr
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
