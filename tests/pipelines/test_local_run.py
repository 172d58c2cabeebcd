"""Whole pipelines on this machine, for real: every step a process of its own, as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from small_run import latest_summary, make_small_world, plumbline, small_settings, write_settings

from components.shared.artifacts import read_artifact
from components.shared.files import read_json, read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.xdist_group("local_run")]

_STAGES = {
    "prerequisites",
    "data_validation",
    "sft",
    "collection",
    "data_validation_pairs",
    "reward_model",
    "ppo",
    "evaluation",
    "human_eval",
    "release_gate",
}

_BRANCHES = {"ppo", "reward_model_divergence"}
"""Neither needs the other."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small world of Llama shape and a finished run."""
    folder = tmp_path_factory.mktemp("llama")
    make_small_world(folder / "world")
    write_settings(folder / "run.yaml", small_settings(folder / "world", folder / "runs"))
    result = plumbline("run", "--settings", "run.yaml", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["status"] == "SUCCEEDED"
    return folder


def test_the_run_leaves_a_report_and_a_summary_of_every_stage(finished: Path) -> None:
    summary = latest_summary(finished / "runs")
    assert summary["verdict"] in {"PROMOTE", "HOLD", "BLOCK"}
    assert summary["reasons"]
    assert set(summary["seconds"]) >= _STAGES | {"total"}
    assert 0 < summary["reward_model"]["heldout_accuracy"] < 1
    assert summary["ppo"]["steps"] == 3
    assert summary["human"]["n_prompts"] > 0
    page = (finished / "runs" / "latest" / "report.html").read_text()
    assert summary["verdict"] in page
    assert "<script" not in page


def test_artifacts_name_the_digests_that_they_were_made_from(finished: Path) -> None:
    paths = read_json(finished / "runs" / "latest" / "artifacts.json")
    candidate = read_artifact(paths["candidate"], "policy")
    assert read_artifact(paths["sft"], "policy").digest in candidate.manifest["inputs"].values()
    assert read_artifact(paths["reward_model"], "reward_model").digest in candidate.manifest["inputs"].values()
    models = read_json(Path(paths["evaluation"]) / "models.json")
    assert models["candidate"]["digest"] == candidate.digest


def test_the_human_evaluation_prompts_never_trained(finished: Path) -> None:
    paths = read_json(finished / "runs" / "latest" / "artifacts.json")
    dataset, pairs = Path(paths["dataset"]), Path(paths["preferences"])
    frozen = {row["prompt"] for row in read_jsonl(dataset / "prompts" / "human_eval.jsonl")}
    for trained in (dataset / "sft/train.jsonl", dataset / "prompts/train.jsonl", pairs / "preferences/train.jsonl"):
        assert not frozen & {row["prompt"] for row in read_jsonl(trained)}, trained


def test_mlflow_has_one_run_a_step_under_one_parent(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{finished}/runs/state/mlflow.db")
    experiment = client.get_experiment_by_name("plumbline")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    run_id = (finished / "runs" / "latest").resolve().name
    mine = [run for run in runs if run.data.tags.get("plumbline.run_id") == run_id]
    parents = [run for run in mine if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert {run.info.run_name for run in mine} >= {"sft", "ppo", "evaluation"}
    assert {run.info.status for run in mine} == {"FINISHED"}
    ppo = next(run for run in mine if run.info.run_name == "ppo")
    assert len(client.get_metric_history(ppo.info.run_id, "kl")) == 3


def test_ledger_history_and_status_tell_the_same_story(finished: Path) -> None:
    status = json.loads(plumbline("status", "--json", cwd=finished).stdout)
    assert status["runs"][0]["verdict"] == latest_summary(finished / "runs")["verdict"]
    history = json.loads(plumbline("history", "small", "--json", cwd=finished).stdout)
    assert history[0]["event"] == "register"
    verified = plumbline("verify", "small", "--json", cwd=finished)
    assert verified.returncode == 0
    assert json.loads(verified.stdout)["entries"] == len(history)


def test_an_unchanged_second_run_reuses_every_pure_step(finished: Path) -> None:
    before = latest_summary(finished / "runs")
    result = plumbline("run", "--settings", "run.yaml", cwd=finished)
    assert result.returncode == 0, result.stderr
    for stage in ("data_validation", "sft", "collection", "reward_model", "ppo"):
        assert any(line.split()[1:2] == [stage] and "reused" in line for line in result.stderr.splitlines()), stage
    after = latest_summary(finished / "runs")
    assert after["candidate"]["digest"] == before["candidate"]["digest"]
    assert after["run_id"] != before["run_id"]


def test_changed_data_is_not_taken_from_the_cache(finished: Path) -> None:
    world = finished / "world"
    rows = (world / "sft.jsonl").read_text().splitlines()
    changed = finished / "changed"
    changed.mkdir()
    (changed / "sft.jsonl").write_text("\n".join(rows[:700]) + "\n")
    settings = small_settings(world, finished / "runs", data={"sft": str(changed / "sft.jsonl")}, ppo={"steps": 1})
    write_settings(finished / "changed.yaml", settings)
    result = plumbline("run", "--settings", "changed.yaml", cwd=finished)
    assert result.returncode == 0, result.stderr
    ran = latest_summary(finished / "runs")["seconds"]
    assert {"data_validation", "sft", "ppo"} <= {stage for stage, seconds in ran.items() if seconds}


def test_a_step_that_is_killed_fails_the_run_and_the_next_run_goes_on(finished: Path) -> None:
    settings = small_settings(finished / "world", finished / "runs", ppo={"steps": 30})
    write_settings(finished / "long.yaml", settings)
    command = [sys.executable, "-m", "pipelines.cli", "run", "--settings", "long.yaml"]
    with subprocess.Popen(command, cwd=finished, stderr=subprocess.PIPE, text=True) as process:
        victim = _wait_for_checkpoint(process, finished / "runs" / "state" / "checkpoints")
        os.kill(victim, signal.SIGKILL)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "FAILED in ppo" in errors
    summary = latest_summary(finished / "runs")
    assert summary["failure"]["stage"] == "ppo"
    assert (finished / "runs" / "latest" / "report.html").is_file()

    result = plumbline("run", "--settings", "long.yaml", cwd=finished)
    assert result.returncode == 0, result.stderr
    assert latest_summary(finished / "runs")["ppo"]["steps"] == 30
    log = (finished / "runs" / "latest" / "pipeline.log").read_text()
    assert "resum" in log.lower()


def test_an_interrupted_run_starts_no_further_step_and_the_same_command_goes_on(finished: Path) -> None:
    runs = finished / "runs"
    settings = small_settings(finished / "world", runs, ppo={"steps": 31}, reward_model={"learning_rate": 9e-4})
    write_settings(finished / "stop.yaml", settings)
    command = [sys.executable, "-m", "pipelines.cli", "run", "--settings", "stop.yaml"]
    with subprocess.Popen(command, cwd=finished, stderr=subprocess.PIPE, text=True) as process:
        ended = _wait_for_step(process, runs, *_BRANCHES)  # whichever kfp takes first
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Run the same command again" in errors
    summary = latest_summary(runs)
    assert summary["failure"]["stage"] == ended
    assert "interrupted by SIGTERM" in summary["failure"]["message"]
    other = (_BRANCHES - {ended}).pop()
    assert other not in summary["seconds"], "it does not need the step that was ended, so kfp went on with it"

    with subprocess.Popen(command, cwd=finished, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        _wait_for_checkpoint(process, runs / "state" / "checkpoints")
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does at Ctrl-C
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGINT
    assert latest_summary(runs)["failure"]["stage"] in _BRANCHES

    result = plumbline("run", "--settings", "stop.yaml", cwd=finished)
    assert result.returncode == 0, result.stderr
    assert latest_summary(runs)["ppo"]["steps"] == 31
    assert "resum" in (runs / "latest" / "pipeline.log").read_text().lower()


def _wait_for_step(process: subprocess.Popen[str], runs: Path, *stages: str) -> str:
    """The first of these steps to tell that it started."""
    before = (runs / "latest").resolve()
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        progress = runs / "latest" / "progress.jsonl"
        if (runs / "latest").resolve() != before and progress.is_file():
            started = [event for event in read_jsonl(progress) if event["event"] == "started"]
            if started and started[-1]["stage"] in stages:
                return started[-1]["stage"]
        time.sleep(0.1)
    raise AssertionError(f"{stages} did not start in time")


def _wait_for_checkpoint(process: subprocess.Popen[str], checkpoints: Path) -> int:
    """Process id of the step that trains, once it has saved a checkpoint."""
    deadline = time.monotonic() + 400
    known = set(checkpoints.rglob("*"))
    while time.monotonic() < deadline and process.poll() is None:
        saved = [path for path in checkpoints.rglob("*.json") if path not in known]
        for child in psutil.Process(process.pid).children(recursive=True):
            if saved and "executor_main" in " ".join(child.cmdline()) and not child.children():
                return child.pid
        time.sleep(0.1)
    raise AssertionError("no checkpoint was saved in time")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        ("no_data", "no such sft file"),
        ("no_weights", "no safetensors weights"),
        ("not_jsonl", "is not JSON"),
        ("wrong_columns", "columns"),
    ],
)
def test_bad_input_stops_the_run_with_the_cause_and_a_report(tmp_path: Path, break_it: str, said: str) -> None:
    world = make_small_world(tmp_path / "world")
    match break_it:
        case "no_data":
            (world / "sft.jsonl").unlink()
        case "no_weights":
            (world / "model" / "model.safetensors").unlink()
        case "not_jsonl":
            (world / "sft.jsonl").write_text("prompt,completion\nhello,world\n")
        case "wrong_columns":
            (world / "sft.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    write_settings(tmp_path / "run.yaml", small_settings(world, tmp_path / "runs"))
    result = plumbline("run", "--settings", "run.yaml", cwd=tmp_path)
    assert result.returncode == 1
    assert "FAILED in" in result.stderr
    assert said in " ".join(result.stderr.split())
    summary = latest_summary(tmp_path / "runs")
    assert summary["status"] == "FAILED"
    assert said in summary["failure"]["message"]
    assert not list((tmp_path / "runs" / "state" / "mlartifacts").rglob("*.safetensors")), "nothing was registered"


def test_a_gpt2_shaped_model_and_the_other_preference_format_go_through(tmp_path: Path) -> None:
    world = make_small_world(tmp_path / "world", shape="gpt2", preference_format="candidates")
    write_settings(tmp_path / "run.yaml", small_settings(world, tmp_path / "runs", ppo={"steps": 2}))
    result = plumbline("run", "--settings", "run.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert latest_summary(tmp_path / "runs")["verdict"] in {"PROMOTE", "HOLD", "BLOCK"}
