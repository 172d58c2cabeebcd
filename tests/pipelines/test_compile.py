"""The compiled pipelines: what runs after what, what may be cached, what each step gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.shared.code_version import code_version
from components.shared.errors import InputError
from components.shared.release_orders import make_order
from pipelines.cluster import compile_pipeline
from pipelines.release import release_run_arguments
from pipelines.settings import RunSettings, load_run_settings

_PURE = {
    "data_validation",
    "data_validation_pairs",
    "preference_check",
    "sft",
    "collection",
    "reward_model",
    "reward_model_divergence",
    "ppo",
    "evaluation",
}


def _compile(tmp_path: Path, pipeline: str, settings: RunSettings | None = None) -> dict[str, Any]:
    path = compile_pipeline(settings or load_run_settings("demo"), pipeline, tmp_path / f"{pipeline}.yaml")
    return next(iter(yaml.safe_load_all(path.read_text())))


def _tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every leaf task by its display name, from whatever depth."""
    found: dict[str, dict[str, Any]] = {}

    def walk(dag: dict[str, Any]) -> None:
        for task in dag["tasks"].values():
            component = spec["components"][task["componentRef"]["name"]]
            if "dag" in component:
                walk(component["dag"])
            elif "importer" not in spec["deploymentSpec"]["executors"][component["executorLabel"]]:
                found[task["taskInfo"]["name"]] = task

    walk(spec["root"]["dag"])
    return found


def test_rlhf_has_every_stage_and_caches_the_pure_ones_only(tmp_path: Path) -> None:
    tasks = _tasks(_compile(tmp_path, "rlhf"))
    others = {
        "finish",
        "prerequisites",
        "reward_model_check",
        "human_eval",
        "release_gate",
        "promote",
        "keep_champion",
        "report",
    }
    assert set(tasks) == _PURE | others
    cached = {name for name, task in tasks.items() if (task.get("cachingOptions") or {}).get("enableCache")}
    assert cached == _PURE


def test_nothing_is_trained_before_the_users_pairs_are_judged(tmp_path: Path) -> None:
    for pipeline in ("rlhf", "preference"):
        tasks = _tasks(_compile(tmp_path, pipeline))
        assert "preference-check" in tasks["sft"]["dependentTasks"]
        assert not {"sft", "collection"} & set(tasks["preference_check"]["dependentTasks"])


def test_ppo_waits_for_the_reward_model_check(tmp_path: Path) -> None:
    tasks = _tasks(_compile(tmp_path, "rlhf"))
    assert "reward-model-check" in tasks["ppo"]["dependentTasks"]


def test_every_cached_step_sees_a_change_of_its_code(tmp_path: Path) -> None:
    tasks = _tasks(_compile(tmp_path, "rlhf"))
    for name, stage in {"sft": "sft", "ppo": "ppo", "reward_model_divergence": "reward_model"}.items():
        given = tasks[name]["inputs"]["parameters"]["code_digest"]["runtimeValue"]["constant"]
        assert given == code_version(stage)


def test_ppo_sees_a_change_of_its_further_rewards(tmp_path: Path) -> None:
    source = {"name": "polite", "rule": "my_rules:polite"}
    model = {"name": "safe", "role": "safety", "reward_model": "runs:/1/safety"}
    demo = load_run_settings("demo").model_dump(mode="json")
    demo["ppo"]["reward"]["sources"] = [source, model]
    spec = _compile(tmp_path, "rlhf", RunSettings.model_validate(demo))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert parameters["reward_rules"]["defaultValue"] == ["my_rules:polite"]
    assert parameters["reward_models"]["defaultValue"] == ["runs:/1/safety"]
    tasks = _tasks(spec)
    digest = tasks["ppo"]["inputs"]["parameters"]["reward_digest"]
    assert digest["taskOutputParameter"]["outputParameterKey"] == "reward_digest"
    assert "reward_digest" not in tasks["collection"]["inputs"]["parameters"]


def test_soak_never_caches(tmp_path: Path) -> None:
    tasks = _tasks(_compile(tmp_path, "soak"))
    assert set(tasks) == {
        "finish",
        "live_models",
        "evaluation",
        "human_eval",
        "release_gate",
        "roll_back",
        "keep_champion",
        "report",
    }
    assert not any((task.get("cachingOptions") or {}).get("enableCache") for task in tasks.values())


@pytest.mark.parametrize(("pipeline", "move"), [("release", "promote"), ("release-live", "roll_back")])
def test_a_release_run_opens_before_it_judges_and_finds_everything_by_address(
    tmp_path: Path, pipeline: str, move: str
) -> None:
    spec = _compile(tmp_path, pipeline)
    tasks = _tasks(spec)
    assert set(tasks) == {"finish", "open_release", "human_eval", "release_gate", move, "keep_champion", "report"}
    assert not any((task.get("cachingOptions") or {}).get("enableCache") for task in tasks.values())
    judging = next(
        task
        for dag in [spec["root"]["dag"], *(found["dag"] for found in spec["components"].values() if "dag" in found)]
        for task in dag["tasks"].values()
        if "open-release" in task.get("dependentTasks", [])
    )
    assert judging["taskInfo"]["name"].startswith("plumbline-judge")
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    required = {
        name for name, found in parameters.items() if "defaultValue" not in found and not found.get("isOptional")
    }
    assert required == {name for name in parameters if name.endswith("_uri")} | {"digests"}


def test_the_parameters_of_an_order_are_those_of_the_compiled_pipeline(tmp_path: Path) -> None:
    roles = {"candidate", "evaluation", "dataset", "reward_model", "heldout_reward_model", "history"}
    order = make_order(
        batch_id="b",
        model="demo",
        version="1",
        mode="candidate",
        run="r",
        policy="demo",
        seed=0,
        settings={},
        artifacts={role: {"uri": f"s3://bucket/{role}", "digest": "d"} for role in roles},
    )
    parameters = _compile(tmp_path, "release")["root"]["inputDefinitions"]["parameters"]
    assert set(release_run_arguments(order, attempt=1)) == set(parameters)


def test_resources_and_images_come_from_the_settings(tmp_path: Path) -> None:
    spec = _compile(tmp_path, "rlhf", load_run_settings("gpu-example"))
    tasks = _tasks(spec)
    executor = spec["components"][tasks["ppo"]["componentRef"]["name"]]["executorLabel"]
    container = spec["deploymentSpec"]["executors"][executor]["container"]
    assert container["resources"]["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert container["resources"]["resourceMemoryLimit"] == "96Gi"
    assert container["image"].startswith("plumbline-train:")
    assert tasks["ppo"]["retryPolicy"]["maxRetryCount"] == 2
    assert "pip install" not in " ".join(container["command"])


def test_parameters_have_the_settings_as_defaults(tmp_path: Path) -> None:
    parameters = _compile(tmp_path, "rlhf")["root"]["inputDefinitions"]["parameters"]
    assert parameters["model_name"]["defaultValue"] == "demo-assistant"
    assert parameters["ppo_settings"]["defaultValue"]["kl"]["control"] == "adaptive"


def test_an_output_that_is_no_yaml_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.yaml"):
        compile_pipeline(load_run_settings("demo"), "rlhf", tmp_path / "pipeline.txt")
