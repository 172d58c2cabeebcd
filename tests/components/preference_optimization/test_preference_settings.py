"""Settings: each method has a coefficient of its own, and what cannot work is refused before a model is loaded."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from tiny_preferences import make_settings

from components.preference_optimization.settings import METHOD_NAMES, Method, PreferenceOptimizationSettings
from components.shared.errors import InputError
from components.shared.settings import as_parameter, parse_settings


def _parse(values: dict[str, Any]) -> PreferenceOptimizationSettings:
    return parse_settings(values, PreferenceOptimizationSettings, where="test")


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_is_held_near_the_reference_by_default(method: str) -> None:
    settings = _parse({"method": method})
    assert settings.kl_weight > 0
    assert _parse({"method": method, "beta": 0.7}).kl_weight == 0.7
    assert method in METHOD_NAMES


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": "ppo"}, "method"),
        ({"method": "grpo", "beta": 0.0}, "beta"),
        ({"mehtod": "dpo"}, "mehtod: unknown setting"),
        ({"method": "grpo", "batch_size": 6, "gradient_accumulation": 1}, "multiple of group_size"),
        ({"method": "kto", "batch_size": 1}, "batch_size of 2 or more"),
        ({"max_tokens": 64, "max_response_tokens": 64}, "must be below max_tokens"),
        ({"lora": {"dropout": 0.1}}, "dropout must be 0"),
    ],
)
def test_what_cannot_work_is_refused_with_its_path(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        _parse(values)
    assert said in str(caught.value)


def test_settings_survive_the_way_through_a_kfp_parameter() -> None:
    settings = _parse(make_settings("grpo"))
    assert as_parameter(settings)["beta"] == "null"
    assert _parse(as_parameter(settings)) == settings
