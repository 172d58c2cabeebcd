"""A run's settings: strict, with errors that name the path; the shipped ones are what they claim to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.shared.errors import InputError
from components.shared.settings import as_parameter, parse_settings
from pipelines.settings import RunSettings, find_settings, load_run_settings, shipped_settings

_MINIMAL = {
    "name": "mine",
    "model_name": "mine",
    "base_model": "some/model",
    "data": {"sft": "s.jsonl", "prompts": "p.jsonl", "preferences": "q.jsonl"},
}


def _write(tmp_path: Path, **overrides: Any) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(_MINIMAL | overrides))
    return str(path)


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flatten(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}


@pytest.mark.parametrize("name", shipped_settings())
def test_shipped_settings_are_valid(name: str) -> None:
    assert load_run_settings(name).name


def test_the_overoptimized_demo_differs_in_ppos_kl_settings_and_steps_and_in_nothing_else() -> None:
    good, bad = (_flatten(load_run_settings(name).model_dump()) for name in ("demo", "demo-overoptimized"))
    differing = {key for key in good.keys() | bad.keys() if good.get(key) != bad.get(key)}
    assert differing - {"name"} == {"ppo.steps", "ppo.kl.control"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"pppo": {}}, "pppo: unknown setting"),
        ({"ppo": {"kl": {"target": 6}}}, "ppo.kl.target: unknown setting"),
        ({"ppo": {"steps": "many"}}, "ppo.steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"model_name": "mein modell/ü"}, "model_name: 'mein modell/ü' cannot name a registered model"),
        ({"model_name": ""}, "model_name"),
        ({"model_name": "mine.drill"}, "model_name: cannot end in .drill"),
        ({"ppo": {"policy_learning_rate": float("inf")}}, "ppo.policy_learning_rate"),
        ({"ppo": {"steps": 10**30}}, "ppo.steps: larger than"),
        ({"name": "Bad Name"}, "name"),
        ({"data": {"sft": "s.jsonl", "prompts": "p.jsonl"}}, "data.preferences must name"),
        ({"collection": {"source": "raters"}}, "raters"),
        ({"execution": {"train": {"accelerator": "nvidia.com/gpu"}}}, "go together"),
    ],
)
def test_a_faulty_setting_is_refused_with_its_path(tmp_path: Path, overrides: dict, said: str) -> None:
    with pytest.raises(InputError, match=r"run\.yaml") as caught:
        load_run_settings(_write(tmp_path, **overrides))
    assert said in str(caught.value)


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(InputError, match="demo-overoptimized"):
        find_settings("no-such-settings")


def test_settings_survive_the_way_through_a_kfp_parameter(tmp_path: Path) -> None:
    """KFP has no null and makes every number a float."""
    ppo = load_run_settings(_write(tmp_path, ppo={"value_clip": None, "steps": 7})).ppo
    sent = as_parameter(ppo)
    assert sent["value_clip"] == "null"
    floats = {key: float(value) if type(value) is int else value for key, value in sent.items()}
    assert parse_settings(floats, type(ppo), where="test") == ppo


def test_run_settings_survive_being_saved_and_loaded(tmp_path: Path) -> None:
    settings = load_run_settings("demo")
    (tmp_path / "saved.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    assert load_run_settings(str(tmp_path / "saved.yaml")) == settings
    assert isinstance(settings, RunSettings)
