"""What counts as another recipe, so that retraining trains; and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_server import KFPServer, run_kfp_server

from components.shared.files import digest_of
from pipelines import recipe
from pipelines.cluster import schedules
from pipelines.cluster.connection import KFP, Connection
from pipelines.cluster.schedules import Schedule
from pipelines.retraining import retraining_arguments
from pipelines.settings import RunSettings, load_run_settings


def _recipe(**changes: Any) -> dict[str, str]:
    values = load_run_settings("demo").model_dump(mode="json")
    for path, value in changes.items():
        *folders, last = path.split("__")
        inner = values
        for folder in folders:
            inner = inner[folder]
        inner[last] = value
    return retraining_arguments(RunSettings.model_validate(values))["recipe"]


def _differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ppo__steps": 7}, {"ppo_settings"}),
        ({"seed": 7}, {"seed"}),
        ({"sft__epochs": 7}, {"sft_settings"}),
        ({"release_gate__policy": "production"}, {"gate_policy"}),
        ({"execution__train": {"image": "registry.example.com/train:2"}}, {"images"}),
        ({"optimizer": "preference_optimization"}, {"ppo_settings", "preference_optimization_settings", "code"}),
    ],
)
def test_what_decides_a_runs_result_is_another_recipe_and_is_named(change: dict[str, Any], said: set[str]) -> None:
    assert _differing(_recipe(), _recipe(**change)) - {"reward_rules", "reward_models"} == said


def test_where_a_run_happens_and_what_is_compared_by_content_is_none() -> None:
    same = {
        "execution__workspace": "elsewhere",
        "execution__train": {"memory": "8Gi"},
        "prerequisites__min_free_disk_gib": 9.0,
        "data__sft": "the/same/rows.jsonl",
        "base_model": "the/same/model",
    }
    assert _recipe(**same) == _recipe()


def test_a_policy_file_counts_by_its_content(tmp_path: Path) -> None:
    shipped = Path(recipe.__file__).resolve().parents[1] / "components" / "release_gate" / "policies" / "demo.yaml"
    mine = tmp_path / "policy.yaml"
    mine.write_text(shipped.read_text())
    before = _recipe(release_gate__policy=str(mine))
    assert before["gate_policy"] == _recipe()["gate_policy"]
    policy = yaml.safe_load(shipped.read_text())
    mine.write_text(yaml.safe_dump(policy | {"version": policy["version"] + 1}))
    assert _differing(before, _recipe(release_gate__policy=str(mine))) == {"gate_policy"}


def test_changed_code_is_another_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _recipe()
    monkeypatch.setattr(recipe, "code_version", lambda stage: "edited" if stage == "ppo" else "same")
    assert _differing(before, _recipe()) == {"code"}


def test_parameters_of_a_schedule_change_the_recipe_of_its_runs() -> None:
    with run_kfp_server() as server:
        kfp = KFP(Connection(server.address, timeout_seconds=5))
        schedules.apply(kfp, _make_schedule())
        assert _parameters(server) == {}, "the settings' own"
        schedules.apply(kfp, _make_schedule(parameters={"seed": 7, "model_name": "other"}))
        given = _parameters(server)
        assert given["seed"] == 7
        assert given["recipe"] == _recipe(execution__profile="dev") | {"seed": digest_of(7)}
        assert schedules.apply(kfp, _make_schedule(parameters={"seed": 7, "model_name": "other"})).change == "unchanged"


def _make_schedule(**overrides: Any) -> Schedule:
    values = {"name": "weekly", "pipeline": "retraining", "settings": "demo", "profile": "dev", "cron": "0 0 2 * * 1"}
    return Schedule.model_validate(values | overrides)


def _parameters(server: KFPServer) -> dict[str, Any]:
    (one,) = server.recurring.values()
    return one.runtime_config.parameters or {}
