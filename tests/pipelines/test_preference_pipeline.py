"""The preference pipeline: PPO's place taken by another optimiser, and nothing else changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import latest_summary, make_small_world, plumbline, small_settings, write_settings
from test_compile import _compile, _tasks

from components.shared.artifacts import read_artifact
from components.shared.code_version import code_version
from components.shared.files import read_json, read_jsonl
from pipelines.cluster import compile_pipeline
from pipelines.settings import load_run_settings


def test_it_is_the_rlhf_pipeline_with_one_step_exchanged(tmp_path: Path) -> None:
    rlhf, preference = (_tasks(_compile(tmp_path, name)) for name in ("rlhf", "preference"))
    assert set(preference) == set(rlhf) - {"ppo"} | {"preference_optimization"}
    for name in set(rlhf) - {"ppo", "prerequisites"}:  # PPO's own rewards are checked there
        assert _renamed(rlhf[name]) == _renamed(preference[name]), name


def _renamed(task: dict[str, Any]) -> dict[str, Any]:
    """The task with whichever optimiser called `optimizer`, and what it waits for in order."""
    text = json.dumps(task).replace('"ppo"', '"optimizer"').replace('"preference-optimization"', '"optimizer"')
    renamed = json.loads(text)
    return renamed | {"dependentTasks": sorted(renamed.get("dependentTasks", []))}


def test_the_step_waits_for_the_reward_models_check_and_gets_the_pairs(tmp_path: Path) -> None:
    task = _tasks(_compile(tmp_path, "preference"))["preference_optimization"]
    assert "reward-model-check" in task["dependentTasks"]
    assert task["cachingOptions"]["enableCache"]
    artifacts = {name: source["taskOutputArtifact"]["producerTask"] for name, source in _inputs(task).items()}
    assert artifacts["dataset"] == "data-validation"
    assert artifacts["pairs"] == "data-validation-2"
    given = task["inputs"]["parameters"]["code_digest"]["runtimeValue"]["constant"]
    assert given == code_version("preference_optimization")


def _inputs(task: dict[str, Any]) -> dict[str, Any]:
    return task["inputs"]["artifacts"]


@pytest.mark.parametrize(("settings", "name"), [("demo", "plumbline-rlhf"), ("demo-dpo", "plumbline-preference")])
def test_the_settings_choose_the_pipeline_that_is_compiled(tmp_path: Path, settings: str, name: str) -> None:
    path = compile_pipeline(load_run_settings(settings), None, tmp_path / "pipeline.yaml")
    assert next(iter(yaml.safe_load_all(path.read_text())))["pipelineInfo"]["name"] == name


def test_the_dpo_demo_differs_in_the_optimizer_and_in_nothing_else() -> None:
    ppo, dpo = (load_run_settings(name).model_dump() for name in ("demo", "demo-dpo"))
    differing = {key for key in ppo if ppo[key] != dpo[key]}
    assert differing == {"name", "optimizer", "ppo", "preference_optimization"}
    assert dpo["preference_optimization"]["method"] == "dpo"


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.xdist_group("local_run")
def test_a_run_with_dpo_reaches_a_verdict(tmp_path: Path) -> None:
    """As a user starts it, every step a process of its own."""
    make_small_world(tmp_path / "world")
    settings = small_settings(tmp_path / "world", tmp_path / "runs")
    settings["optimizer"] = "preference_optimization"
    settings["preference_optimization"] |= {
        "method": "dpo",
        "parameterisation": "full",
        "max_steps": 4,
        "learning_rate": 3e-4,
        "batch_size": 16,
        "gradient_accumulation": 1,
        "max_tokens": 64,
        "max_response_tokens": 32,
        "evaluate_every_steps": 2,
    }
    write_settings(tmp_path / "run.yaml", settings)

    result = plumbline("run", "--settings", "run.yaml", "--json", cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    summary = latest_summary(tmp_path / "runs")
    assert summary["verdict"] in {"PROMOTE", "HOLD", "BLOCK"}
    assert summary["optimization"]["optimizer"] == "DPO"
    assert summary["optimization"]["steps"] == 4
    assert summary["seconds"]["preference_optimization"] > 0
    paths = read_json(tmp_path / "runs" / "latest" / "artifacts.json")
    candidate = read_artifact(paths["candidate"], "policy")
    assert candidate.manifest["stage"] == "preference_optimization"
    assert read_artifact(paths["preferences"], "dataset").digest in candidate.manifest["inputs"].values()
    metrics, models = (read_json(Path(paths["evaluation"]) / name) for name in ("metrics.json", "models.json"))
    assert models["candidate"]["digest"] == candidate.digest
    assert {"reference", "step-0002"} <= set(models)
    _require_kl_of_the_evaluation(paths, summary, metrics)
    assert "DPO training" in (tmp_path / "runs" / "latest" / "report.html").read_text()


def _require_kl_of_the_evaluation(paths: dict[str, str], summary: dict[str, Any], metrics: dict[str, Any]) -> None:
    """The KL that the gate judges is what evaluation measured on its own prompts, not what the trainer said."""
    answers = read_jsonl(Path(paths["evaluation"]) / "generations.jsonl")
    measured = [row["kl"] for row in answers if row["role"] == "candidate"]
    assert metrics["candidate"]["kl"]["mean"] == pytest.approx(sum(measured) / len(measured), rel=1e-6)
    assert summary["evaluation"]["kl"] == metrics["candidate"]["kl"]["mean"]
    assert summary["evaluation"]["kl"] != summary["optimization"]["kl_final"]
    [criterion] = [
        c for c in read_json(Path(paths["decision"]) / "decision.json")["criteria"] if c["name"] == "kl.sequence"
    ]
    assert "evaluation" in criterion["source"]
