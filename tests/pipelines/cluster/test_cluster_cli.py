"""The cluster commands as a user types them: exit statuses, errors in one line, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from kfp_server import KFPServer
from kubernetes_server import run_kubernetes_server

from pipelines.cli import cli


def _run(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(cli, list(arguments), env={"KF_PIPELINES_ENDPOINT": None} | environment)


def _json(*arguments: str) -> Any:
    result = _run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_compile_writes_pipeline_manifest_and_components(tmp_path: Path) -> None:
    told = _json(
        *("compile", "--settings", "demo", "--profile", "dev", "-o", str(tmp_path / "rlhf.yaml")),
        *("--manifest", str(tmp_path / "gitops.yaml"), "--components", str(tmp_path / "components")),
    )
    pipeline, version = list(yaml.safe_load_all((tmp_path / "gitops.yaml").read_text()))
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert version["metadata"] == {"name": told["version"], "namespace": "plumbline"}
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "plumbline-rlhf"
    assert version["spec"]["platformSpec"], "secrets and volumes travel with the version"
    from kfp import components

    assert {path.stem for path in (tmp_path / "components").iterdir()} >= {"sft", "ppo", "release_gate", "finish"}
    assert components.load_component_from_file(str(tmp_path / "components" / "ppo.yaml")).name == "ppo"
    again = _json("compile", "--settings", "demo", "--profile", "dev", "--manifest", str(tmp_path / "again.yaml"))
    assert again["version"] == told["version"], "the same content has the same name"
    assert _run("compile", "--settings", "demo").exit_code == 2


def test_submit_status_and_cancel(server: KFPServer) -> None:
    host = ("--host", server.address)
    run = _json("submit", "--settings", "demo", "--profile", "dev", "--pipeline", "soak", *host)
    run_id = run["run_id"]
    server.step(run_id, "live-models", "FAILED", error="no champion", pod="p1")
    assert _json("status", "--run", run_id, *host)["steps"][0]["error"] == "no champion"
    assert _json("cancel", run_id, *host)["state"] == "CANCELING"
    server.end(run_id, "FAILED")
    shown = _run("status", "--run", run_id, "--watch", *host)
    assert shown.exit_code == 1
    assert "Failed at live-models: no champion" in shown.output
    assert f"plumbline logs {run_id} --step live-models" in shown.output


def test_upload_brings_a_pipeline_once_and_starts_nothing(server: KFPServer) -> None:
    arguments = ("upload", "--settings", "demo", "--profile", "dev", "--pipeline", "release", "--host", server.address)
    first, again = _json(*arguments), _json(*arguments)
    assert (first["was_there"], again["was_there"]) == (False, True)
    assert first["version_id"] == again["version_id"]
    assert [one.name for one in server.pipelines.values()] == ["plumbline-release"], (
        "the name that release runs ask for"
    )
    assert not server.runs


def test_schedule_commands(server: KFPServer, tmp_path: Path) -> None:
    file = tmp_path / "weekly.yaml"
    file.write_text("{name: weekly, pipeline: soak, settings: demo, profile: dev, cron: 0 0 2 * * 1}")
    host = ("--host", server.address)
    assert _json("schedule", "apply", str(file), *host)[0]["change"] == "created"
    said = _run("schedule", "apply", str(file), *host).output
    assert said.startswith("weekly: unchanged. It runs at 02:00:00 UTC, on Monday; next 20")
    assert _run("schedule", "pause", "weekly", *host).output == "weekly: paused.\n"
    assert "paused" in _run("schedule", "list", *host).output
    assert _run("schedule", "resume", "weekly", *host).exit_code == 0
    assert len(_json("schedule", "delete", "weekly", *host)["deleted"]) == 1
    assert _run("schedule", "list", *host).output == "No schedules.\n"


def test_doctor_leaves_with_one_when_something_is_missing(server: KFPServer, tmp_path: Path) -> None:
    with run_kubernetes_server() as kubernetes:
        config = kubernetes.kubeconfig(tmp_path / "kubeconfig", namespace="plumbline")
        arguments = ("doctor", "--profile", "dev", "--host", server.address)
        result = _run(*arguments, KUBECONFIG=str(config))
        assert result.exit_code == 1
        assert "FAIL    namespace: plumbline is not there" in result.output
        assert "PASS    Kubeflow Pipelines: answers, for one user" in result.output
        lines = json.loads(_run(*arguments, "--json", KUBECONFIG=str(config)).stdout)
        assert {line["result"] for line in lines} <= {"pass", "fail", "unknown"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit", "--settings", "demo"], "KF_PIPELINES_ENDPOINT"),
        (["submit", "--settings", "demo", "--profile", "prod", "--host", "http://127.0.0.1:1"], "not pinned by digest"),
        (["status", "--run", "x", "--host", "http://127.0.0.1:1", "--timeout", "1"], "cannot be reached"),
        (["schedule", "apply", "absent.yaml", "--host", "http://127.0.0.1:1"], "cannot read settings"),
        (["logs", "x"], "no cluster is configured"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[3])
    hidden = {"KF_PIPELINES_ENDPOINT", "KUBERNETES_SERVICE_HOST"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"PYTHONPATH": root, "KUBECONFIG": str(tmp_path / "none")}
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in result.stderr


def test_watch_without_a_run_is_wrong_use() -> None:
    assert "--watch needs --run" in _run("status", "--watch").output
