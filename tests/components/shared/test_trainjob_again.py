"""A step that is tried again: its predecessor was evicted, and the TrainJob trained on, ended, or failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import quick_stage
from small_cluster import SmallCluster, small_cluster

from components.shared import launch
from components.shared.trainjob import TrainJobSettings, train_job
from components.shared.trainjob_run import TrainJobRun

_HERE = Path(__file__).parent


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallCluster]:
    monkeypatch.setenv("PYTHONPATH", f"{_HERE.parents[2]}:{_HERE}")
    monkeypatch.setenv("PLUMBLINE_RUN_ID", "run-1")
    _be_pod(monkeypatch, "second")
    with small_cluster() as cluster:
        yield cluster


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "shared").mkdir()
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "data").write_text("pairs")
    files = {name: str(tmp_path / name) for name in ("begun", "until", "fails")}
    settings = {**files, "folder": str(tmp_path / "shared"), "writes_on": 0.0}
    return {"dataset": str(tmp_path / "dataset"), "output": str(tmp_path / "output"), "settings": settings}


def _be_pod(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("KFP_POD_NAME", name)
    monkeypatch.setenv("KFP_POD_UID", f"uid-of-{name}")


def _evict_first_try(cluster: SmallCluster, arguments: dict[str, Any]) -> None:
    """A step that is killed outright while its job trains."""
    command = [sys.executable, "-m", "quick_stage", cluster.address, json.dumps(arguments | {"output": "/elsewhere"})]
    own = {"KFP_POD_NAME": "first", "KFP_POD_UID": "uid-of-first"}
    first = subprocess.Popen(command, env=os.environ | own, stderr=subprocess.DEVNULL)
    try:
        _await(lambda: Path(arguments["settings"]["begun"]).exists())
    finally:
        first.kill()
        first.wait()
    assert len(cluster.created) == 1


def _await(holds: Callable[[], Any]) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def _has_ended(cluster: SmallCluster) -> bool:
    (job,) = cluster.jobs.values()
    return "status" in job


def _try_again(cluster: SmallCluster, arguments: dict[str, Any]) -> dict[str, Any]:
    result = quick_stage.step(cluster.address, arguments)
    assert (Path(arguments["output"]) / "weights").read_text() == "pairs"
    assert cluster.jobs == {}
    assert list(Path(arguments["settings"]["folder"], "trainjobs").iterdir()) == []
    return result


def test_a_job_that_trains_on_is_followed_and_belongs_to_the_new_step(
    cluster: SmallCluster, arguments: dict[str, Any]
) -> None:
    _evict_first_try(cluster, arguments)
    (name,) = cluster.jobs
    owners: list[Any] = []

    def let_it_end() -> None:
        _await(lambda: cluster.jobs[name]["metadata"]["ownerReferences"][0]["uid"] == "uid-of-second")
        owners.extend(cluster.jobs[name]["metadata"]["ownerReferences"])
        Path(arguments["settings"]["until"]).touch()

    threading.Thread(target=let_it_end, daemon=True).start()
    assert _try_again(cluster, arguments) == {"learned": 1}
    assert owners == [{"apiVersion": "v1", "kind": "Pod", "name": "second", "uid": "uid-of-second"}]
    assert len(cluster.created) == 1


@pytest.mark.parametrize("is_there", [True, False], ids=["job there", "job collected with its pod"])
def test_a_job_that_ended_meanwhile_is_not_run_again(
    cluster: SmallCluster, arguments: dict[str, Any], is_there: bool
) -> None:
    _evict_first_try(cluster, arguments)
    Path(arguments["settings"]["until"]).touch()
    _await(lambda: _has_ended(cluster))
    if not is_there:
        cluster.jobs.clear()
    assert _try_again(cluster, arguments) == {"learned": 1}
    assert len(cluster.created) == 1


@pytest.mark.parametrize("is_there", [True, False], ids=["job there", "job collected with its pod"])
def test_a_job_that_failed_meanwhile_is_made_anew_and_its_error_is_nobodys(
    cluster: SmallCluster, arguments: dict[str, Any], is_there: bool
) -> None:
    settings = arguments["settings"]
    _evict_first_try(cluster, arguments)
    Path(settings["fails"]).touch()
    Path(settings["until"]).touch()
    _await(lambda: _has_ended(cluster))
    (told,) = Path(settings["folder"], "trainjobs").glob("*/arguments.outcome.json")
    assert "of the first try" in told.read_text()
    if not is_there:
        cluster.jobs.clear()
    Path(settings["fails"]).unlink()
    assert _try_again(cluster, arguments) == {"learned": 1}
    assert len(cluster.created) == 2


@pytest.mark.parametrize("faults", [[], [("PODS", 503)]], ids=["", "API away for a moment"])
def test_nodes_that_outlive_their_collected_job_are_waited_for(
    cluster: SmallCluster, arguments: dict[str, Any], faults: list[tuple[str, Any]]
) -> None:
    """Kubernetes collects an owner's job first, and its pods while they save: nobody else may train meanwhile."""
    settings = arguments["settings"]
    settings["writes_on"] = 1.5
    _evict_first_try(cluster, arguments)
    first, ended = list(cluster.nodes), []

    def let_it_end() -> None:
        ended.extend(process.poll() for process in first)
        Path(settings["until"]).touch()

    cluster.when_made = let_it_end
    cluster.jobs.clear()
    cluster.end()
    cluster.faults.extend(faults)
    assert _try_again(cluster, arguments) == {"learned": 1}
    assert ended == [143], "a node of the first job still ran, or could not save"
    assert len(cluster.created) == 2


def test_a_result_that_could_not_be_copied_is_taken_by_the_next_try(
    cluster: SmallCluster, arguments: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path(arguments["settings"]["until"]).touch()
    (tmp_path / "no-folder").touch()
    with pytest.raises(OSError, match="no-folder"):
        quick_stage.step(cluster.address, arguments | {"output": str(tmp_path / "no-folder" / "output")})
    assert _try_again(cluster, arguments) == {"learned": 1}
    assert "is left: its result is not taken yet" in caplog.text
    assert len(cluster.created) == 1


def test_a_result_that_a_step_which_is_ended_has_not_copied_is_taken_by_the_next_try(
    cluster: SmallCluster, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM between the end of the training and the copy, while the job is taken off the cluster."""
    command = [sys.executable, "-m", "quick_stage", cluster.address, json.dumps(arguments)]
    step = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    delete = cluster.delete

    def end_the_step_and_delete(name: str) -> None:
        step.send_signal(signal.SIGTERM)
        delete(name)

    monkeypatch.setattr(cluster, "delete", end_the_step_and_delete)
    Path(arguments["settings"]["until"]).touch()
    _, told = step.communicate(timeout=60)
    assert step.returncode == 143, told
    assert (cluster.jobs, Path(arguments["output"]).exists()) == ({}, False)
    assert _try_again(cluster, arguments) == {"learned": 1}
    assert len(cluster.created) == 1


def test_a_job_is_named_by_the_run_and_by_what_it_does_and_not_by_where(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(**overrides: Any) -> str:
        return launch._job_name(quick_stage.STAGE, arguments | overrides)

    monkeypatch.setenv("PLUMBLINE_RUN_ID", "run-1")
    first = name()
    assert name(output="elsewhere") == first
    assert name(settings={**arguments["settings"], "learning_rate": 1.0}) != first
    monkeypatch.setenv("PLUMBLINE_RUN_ID", "run-2")
    assert name() != first
    monkeypatch.setenv("PLUMBLINE_RUN_ID", "run-1")
    (Path(arguments["dataset"]) / "manifest.json").write_text("{}")
    assert name() != first
    monkeypatch.delenv("PLUMBLINE_RUN_ID")
    assert name() != name(), "without a run nobody can say that it is the same work"


def test_the_folder_stays_until_the_last_node_has_ended(cluster: SmallCluster, arguments: dict[str, Any]) -> None:
    """A node that is ended saves for a while; what it writes has a place, and is gone with the folder."""
    settings = arguments["settings"] | {"writes_on": 1.5}
    command = [sys.executable, "-m", "quick_stage", cluster.address, json.dumps(arguments | {"settings": settings})]
    step = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    _await(lambda: Path(settings["begun"]).exists())
    step.send_signal(signal.SIGTERM)
    _, told = step.communicate(timeout=30)
    assert step.returncode == 143, told
    assert [process.returncode for process in cluster.nodes] == [143], "the node could not save"
    assert cluster.jobs == {}
    assert list(Path(settings["folder"], "trainjobs").iterdir()) == []


def test_a_step_that_comes_back_leaves_the_job_of_its_successor_alone(cluster: SmallCluster) -> None:
    settings = TrainJobSettings(nodes=1, image="registry.example.com/train:1")
    code = "import time; time.sleep(2)"
    job = train_job("job", settings, [sys.executable, "-c", code], environment={}, owner=("first", "uid-of-first"))

    def take_over() -> None:
        _await(lambda: "job" in cluster.jobs)
        owners = [{"apiVersion": "v1", "kind": "Pod", "name": "second", "uid": "uid-of-second"}]
        found = cluster.jobs["job"]
        cluster.change(found, lambda: found["metadata"].update(ownerReferences=owners))

    threading.Thread(target=take_over, daemon=True).start()
    run = TrainJobRun(job, cluster=cluster)
    run.follow()
    assert (cluster.deleted, run.is_gone) == ([], False)


def test_a_folder_that_nobody_came_back_for_is_removed_in_the_end(
    cluster: SmallCluster, arguments: dict[str, Any]
) -> None:
    Path(arguments["settings"]["until"]).touch()
    places = Path(arguments["settings"]["folder"], "trainjobs")

    def make_place(name: str, **days: int) -> None:
        (places / name).mkdir(parents=True)
        for file, age in days.items():
            told = places / name / f"{file}.json"
            told.write_text("{}")
            begun = time.time() - age * 86_400
            os.utime(told, (begun, begun))

    make_place("plumbline-sft-old", arguments=30)
    make_place("plumbline-sft-old-result", **{"arguments": 40, "arguments.outcome": 30})
    make_place("plumbline-sft-new", arguments=3)
    make_place("plumbline-sft-new-result", **{"arguments": 30, "arguments.outcome": 3})
    make_place("plumbline-sft-queued", arguments=30)
    cluster.jobs["plumbline-sft-queued"] = {"metadata": {"name": "plumbline-sft-queued"}}
    quick_stage.step(cluster.address, arguments)
    left = sorted(place.name for place in places.iterdir())
    assert left == ["plumbline-sft-new", "plumbline-sft-new-result", "plumbline-sft-queued"]


def test_a_job_may_be_there_unless_the_api_says_that_it_is_not(cluster: SmallCluster) -> None:
    settings = TrainJobSettings(nodes=1, image="registry.example.com/train:1")
    run = TrainJobRun(train_job("job", settings, ["true"], environment={}), cluster=cluster)
    cluster.faults.extend([("GET", 503), ("GET", 403)])
    assert [run.may_be_there("other") for _ in range(3)] == [True, True, False]
