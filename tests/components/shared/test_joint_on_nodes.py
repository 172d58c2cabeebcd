"""A stage on Hugging Face's Trainer handed to Kubeflow Trainer: nodes without a common folder of checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.extend(str(Path(__file__).resolve().parents[1] / stage) for stage in ("sft", "reward_model"))

import joint_world as given
from small_cluster import small_cluster

from components.sft.stage import STAGE
from components.shared.artifacts import read_artifact
from components.shared.errors import PlumblineError
from components.shared.hf_checkpoints import CHECKPOINTS_VARIABLE
from components.shared.launch import launch_on_nodes
from components.shared.trainjob import TrainJobSettings

pytestmark = pytest.mark.slow

_LONG = {"epochs": 20, "save_every_steps": 10, "evaluate_each_epoch": False}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainJobSettings:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    (tmp_path / "shared").mkdir()
    given.make_inputs(tmp_path)
    return TrainJobSettings(nodes=2, image="registry.example.com/train:1", folder=str(tmp_path / "shared"))


def _arguments(folder: Path) -> dict[str, Any]:
    return {
        "dataset": str(folder / "demonstrations"),
        "output": str(folder / "on-nodes"),
        "base_model": str(folder / "base"),
        "seed": 0,
        "settings": given.sft_settings("sft-full", **_LONG),
    }


def _is_published(client: Any, bucket: str) -> bool:
    return any("/published/" in one["Key"] for one in client.list_objects_v2(Bucket=bucket).get("Contents", []))


def test_a_training_that_lost_a_node_goes_on_on_fresh_ones_from_object_storage(
    tmp_path: Path,
    settings: TrainJobSettings,
    monkeypatch: pytest.MonkeyPatch,
    bucket: str,
    bucket_client: Any,
) -> None:
    given.run_sft(tmp_path, "here", "sft-full", processes=2, **_LONG)
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, f"s3://{bucket}/checkpoints")
    arguments = _arguments(tmp_path)
    with (
        small_cluster(disks=tmp_path / "first") as cluster,
        cluster.losing(1, once=lambda: _is_published(bucket_client, bucket)),
        pytest.raises(PlumblineError),
    ):
        launch_on_nodes(STAGE, arguments, settings, cluster=cluster)
    assert not Path(arguments["output"]).exists()

    with small_cluster(disks=tmp_path / "second") as cluster:
        result = launch_on_nodes(STAGE, arguments, settings, cluster=cluster)

    assert b"Resuming from" in cluster.log
    assert read_artifact(arguments["output"], "policy").digest == result["digest"]
    assert given.difference(tmp_path / "here" / "sft-full", tmp_path / "on-nodes") == 0.0
    assert "Contents" not in bucket_client.list_objects_v2(Bucket=bucket)
    assert list((tmp_path / "second").glob("node-*/plumbline-*/*")) == []
    assert list((tmp_path / "shared" / "trainjobs").iterdir()) == []
    assert not (tmp_path / "shared" / "checkpoints").exists()


def test_an_error_of_the_stage_is_told_as_it_is(tmp_path: Path, settings: TrainJobSettings) -> None:
    arguments = _arguments(tmp_path) | {"base_model": str(tmp_path / "nowhere")}
    with small_cluster() as cluster, pytest.raises(PlumblineError, match="nowhere"):
        launch_on_nodes(STAGE, arguments, settings, cluster=cluster)
