"""PPO handed to Kubeflow Trainer: the same entry point under torchrun, its results where the step wants them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_ppo import run_arguments

from components.ppo.stage import STAGE, run
from components.shared.artifacts import read_artifact
from components.shared.errors import PlumblineError
from components.shared.files import read_jsonl
from components.shared.launch import launch_on_nodes
from components.shared.trainjob import TrainJobSettings

sys.path.append(str(Path(__file__).parents[1] / "shared"))

from small_cluster import small_cluster

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainJobSettings:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{Path('/usr/bin')}:{Path('/bin')}")
    (tmp_path / "shared").mkdir()
    return TrainJobSettings(nodes=2, image="registry.example.com/train:1", folder=str(tmp_path / "shared"))


def _rows(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    return list(read_jsonl(Path(arguments["output_history"]) / "history.jsonl"))


def test_two_nodes_give_what_one_process_gives_though_one_of_them_is_lost_on_the_way(
    tmp_path: Path,
    settings: TrainJobSettings,
    monkeypatch: pytest.MonkeyPatch,
    bucket: str,
    bucket_client: Any,
) -> None:
    """Nodes share no folder of checkpoints: the second job's fetch them from object storage."""
    training = {"parameterisation": "lora", "steps": 8, "save_every_steps": 2}
    here = run_arguments(tmp_path / "here", **training)
    run(**here)
    monkeypatch.setenv("PLUMBLINE_CHECKPOINTS", f"s3://{bucket}/checkpoints")
    there = run_arguments(tmp_path / "there", **training)

    def is_published() -> bool:
        found = bucket_client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return any("/published/" in one["Key"] for one in found)

    with (
        small_cluster(disks=tmp_path / "first") as cluster,
        cluster.losing(1, once=is_published),
        pytest.raises(PlumblineError),
    ):
        launch_on_nodes(STAGE, there, settings, cluster=cluster)
    with small_cluster(disks=tmp_path / "second") as cluster:
        result = launch_on_nodes(STAGE, there, settings, cluster=cluster)
        assert cluster.created[0]["spec"]["trainer"]["numNodes"] == 2

    assert b"resuming after step" in cluster.log
    assert result["step"] == 8
    assert read_artifact(there["output_policy"], "policy").digest == result["digest"]
    for one, other in zip(_rows(here), _rows(there), strict=True):
        assert other["reward_mean"] == pytest.approx(one["reward_mean"], abs=1e-4, rel=1e-3)
    assert list((tmp_path / "shared" / "trainjobs").iterdir()) == []
    assert "Contents" not in bucket_client.list_objects_v2(Bucket=bucket)
    assert list((tmp_path / "second").glob("node-*/plumbline-*/*")) == []


def test_an_error_of_the_stage_is_told_as_it_is(tmp_path: Path, settings: TrainJobSettings) -> None:
    arguments = run_arguments(tmp_path / "there", max_response_tokens=100)
    with small_cluster() as cluster, pytest.raises(PlumblineError, match="limit of 64 tokens"):
        launch_on_nodes(STAGE, arguments, settings, cluster=cluster)
