"""What the containers of a local run are given; that they run is tested in tests/docker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kfp import local
from pydantic import ValidationError
from rich.console import Console

from components.shared.errors import InputError
from pipelines.containers import ContainerSettings, require_containers, step_options
from pipelines.local import run_local
from pipelines.rlhf import build_rlhf, rlhf_arguments
from pipelines.runs import workspace_status
from pipelines.settings import RunSettings, load_run_settings
from pipelines.workspace import RunFolder, Workspace


def _make_settings(**containers: Any) -> RunSettings:
    return load_run_settings("demo").executed(runner="docker", containers=ContainerSettings(**containers))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "runs")


@pytest.fixture
def run(workspace: Workspace) -> RunFolder:
    return workspace.new_run("small")


def _mounts(options: dict[str, Any]) -> dict[str, bool]:
    """Whether each mounted folder is read-only."""
    return {mount["Source"]: bool(mount["ReadOnly"]) for mount in options["mounts"]}


@pytest.mark.parametrize("user", ["0:0", "0:1000", "somebody", "1000"])
def test_root_and_names_are_refused_as_the_steps_user(user: str) -> None:
    with pytest.raises(ValidationError):
        ContainerSettings(user=user)


def test_steps_have_no_rights(workspace: Workspace, run: RunFolder) -> None:
    options = step_options(_make_settings(), workspace, run)
    assert options["read_only"]
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges"]
    own = os.geteuid()
    assert options["user"] == (f"{own}:{os.getegid()}" if own else "65532:65532")
    assert step_options(_make_settings(user="7:8"), workspace, run)["user"] == "7:8"


def test_steps_write_to_the_workspace_and_only_read_what_the_settings_name(
    workspace: Workspace, run: RunFolder, tmp_path: Path
) -> None:
    data, extra = tmp_path / "sft.jsonl", tmp_path / "extra"
    data.touch()
    extra.mkdir()
    settings = _make_settings(mounts=[{"source": str(extra), "target": "/extra"}])
    named = settings.data.model_copy(update={"sft": str(data), "prompts": "s3://bucket/prompts.jsonl"})
    options = step_options(settings.model_copy(update={"data": named}), workspace, run)
    assert _mounts(options) == {str(workspace.root): False, str(data): True, str(extra): True}
    assert [mount["Target"] for mount in options["mounts"]][-1] == "/extra"


def test_a_mount_that_is_not_there_is_told_by_its_setting(workspace: Workspace, run: RunFolder) -> None:
    with pytest.raises(InputError, match=r"execution\.containers\.mounts"):
        step_options(_make_settings(mounts=[{"source": "/no/such/folder"}]), workspace, run)


def test_steps_get_the_services_variables_and_the_settings_win(
    workspace: Workspace, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-test-1")
    monkeypatch.setenv("SOMEBODYS_PASSWORD", "secret")
    settings = _make_settings(environment={"MLFLOW_TRACKING_URI": "http://mlflow:5000"})
    environment = step_options(settings, workspace, run)["environment"]
    assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert environment["AWS_DEFAULT_REGION"] == "eu-test-1"
    assert not {"SOMEBODYS_PASSWORD", "PATH", "HOME", "PYTHONPATH"} & set(environment)


def test_limits_are_left_to_docker_unless_set(workspace: Workspace, run: RunFolder) -> None:
    assert "mem_limit" not in step_options(_make_settings(), workspace, run)
    assert step_options(_make_settings(memory="2g"), workspace, run)["mem_limit"] == "2g"


def test_gpus_are_asked_for_as_docker_run_does(workspace: Workspace, run: RunFolder) -> None:
    assert "device_requests" not in step_options(_make_settings(), workspace, run)
    (every,) = step_options(_make_settings(gpus="all"), workspace, run)["device_requests"]
    assert (every["Count"], every["Capabilities"]) == (-1, [["gpu"]])
    (two,) = step_options(_make_settings(gpus=2), workspace, run)["device_requests"]
    assert two["Count"] == 2
    local.DockerRunner(**step_options(_make_settings(gpus=2), workspace, run))  # kfp takes it
    for wrong in (0, "some"):
        with pytest.raises(ValidationError):
            ContainerSettings(gpus=wrong)  # pyright: ignore[reportArgumentType]


def test_the_keys_of_the_review_service_and_of_kfp_are_no_steps_business(
    workspace: Workspace, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PLUMBLINE_REVIEW_SECRET", "PLUMBLINE_KFP_COOKIE"):
        monkeypatch.setenv(name, "key")
    assert "key" not in step_options(_make_settings(), workspace, run)["environment"].values()


def test_without_an_engine_there_is_no_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(InputError, match="Docker Engine cannot be reached"):
        require_containers(_make_settings(), workspace, {"plumbline-light:0.1.0"})
    settings = _make_settings().executed(workspace=str(workspace.root))
    data = dict.fromkeys(("sft", "prompts", "preferences"), str(tmp_path))
    settings = settings.model_copy(update={"data": settings.data.model_copy(update=data)})
    workspace.root.mkdir()
    with pytest.raises(InputError, match="Docker Engine cannot be reached"):
        run_local(settings, build_rlhf(settings), rlhf_arguments(settings), name="small", console=Console(quiet=True))
    assert workspace_status(str(workspace.root))["runs"] == []
    assert not (workspace.root / "latest").is_symlink()


def test_a_run_that_nobody_runs_any_more_was_killed(workspace: Workspace, run: RunFolder) -> None:
    assert run.state == "KILLED"
    with run.going_on():
        assert run.state == "RUNNING"
        look = "from pipelines.workspace import Workspace as W; import sys; print(W(sys.argv[1]).runs()[0].state)"
        run.settings.touch()
        command = [sys.executable, "-c", look, str(workspace.root)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "RUNNING\n"
    assert run.state == "KILLED"


def test_an_input_that_the_steps_may_not_read_is_told_before_they_start(
    workspace: Workspace, run: RunFolder, tmp_path: Path
) -> None:
    private = tmp_path / "model" / "model.safetensors"
    private.parent.mkdir()
    private.touch(mode=0o600)
    mine = f"{max(os.geteuid(), 1)}:{max(os.getegid(), 1)}"
    os.chown(private, *map(int, mine.split(":")))
    for user, readable in ((mine, True), ("65533:65533", False)):
        settings = _make_settings(user=user).model_copy(update={"base_model": str(private.parent)})
        if readable:
            step_options(settings, workspace, run)
        else:
            with pytest.raises(InputError, match=r"model\.safetensors.*may not read"):
                step_options(settings, workspace, run)
