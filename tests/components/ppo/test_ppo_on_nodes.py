"""PPO handed to Kubeflow Trainer: the same entry point under torchrun, its results where the step wants them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_ppo import run_arguments

from components.ppo.launch import launch_on_nodes
from components.ppo.stage import run
from components.shared.artifacts import read_artifact
from components.shared.errors import PlumblineError
from components.shared.files import read_jsonl
from components.shared.trainjob import TrainJobSettings

sys.path.append(str(Path(__file__).parents[1] / "shared"))

from small_cluster import small_cluster

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainJobSettings:
    monkeypatch.setenv("PLUMBLINE_CHECKPOINTS", "s3://nowhere/checkpoints")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{Path('/usr/bin')}:{Path('/bin')}")
    (tmp_path / "shared").mkdir()
    return TrainJobSettings(nodes=2, image="registry.example.com/train:1", folder=str(tmp_path / "shared"))


def _rows(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    return list(read_jsonl(Path(arguments["output_history"]) / "history.jsonl"))


def test_two_nodes_give_what_one_process_gives(tmp_path: Path, settings: TrainJobSettings) -> None:
    there = run_arguments(tmp_path / "there", parameterisation="lora", steps=2)
    with small_cluster() as cluster:
        result = launch_on_nodes(there, settings, cluster=cluster)
        assert cluster.created[0]["spec"]["trainer"]["numNodes"] == 2
    here = run_arguments(tmp_path / "here", parameterisation="lora", steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PLUMBLINE_CHECKPOINTS")
        run(**here)
    assert result["step"] == 2
    assert read_artifact(there["output_policy"], "policy").digest == result["digest"]
    for one, other in zip(_rows(here), _rows(there), strict=True):
        assert other["reward_mean"] == pytest.approx(one["reward_mean"], abs=1e-4, rel=1e-3)
    assert list((tmp_path / "shared" / "trainjobs").iterdir()) == []


def test_an_error_of_the_stage_is_told_as_it_is(tmp_path: Path, settings: TrainJobSettings) -> None:
    arguments = run_arguments(tmp_path / "there", max_response_tokens=100)
    with small_cluster() as cluster, pytest.raises(PlumblineError, match="limit of 64 tokens"):
        launch_on_nodes(arguments, settings, cluster=cluster)
