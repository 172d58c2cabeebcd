from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.reward_model import component
from components.reward_model.checks import RewardModelRejected, headline_metrics, require_passed
from components.shared.artifacts import write_artifact
from components.shared.files import write_json

PASSED = {"name": "leakage_ceiling", "value": 0.7, "threshold": 0.95, "passed": True, "reason": "fine"}
FAILED = {
    "name": "attack:padding",
    "value": 0.8,
    "threshold": 0.3,
    "passed": False,
    "reason": "padding makes the worse answer win on up to 80.0% of pairs (must be at most 0.3)",
}


def make_artifact(folder: Path, **overrides: Any) -> Path:
    report = {
        "accuracy": {"value": 0.7, "lower95_one_sided": 0.65},
        "calibration": {"slope": 1.1, "ece": None},
        "length": {"correlation": 0.2},
        "attacks": {"padding": {"success_rate": 0.1}},
        "checks": [PASSED],
        "passed": True,
    }
    with write_artifact(folder, "reward_model", stage="reward_model") as draft:
        write_json(draft.path / "evaluation.json", report | overrides)
    return folder


@pytest.mark.parametrize(
    ("shell", "metadata_file"),
    [
        (component.reward_model, "metadata.yaml"),
        (component.reward_model_check, "reward_model_check.metadata.yaml"),
    ],
)
def test_metadata_describes_the_component_as_it_is(shell, metadata_file):
    metadata = yaml.safe_load(Path(component.__file__).with_name(metadata_file).read_text())
    assert metadata["name"].replace("_", "-") == shell.component_spec.name.replace("_", "-")
    assert {entry["name"] for entry in metadata["inputs"]} == set(shell.component_spec.inputs or {})
    assert {entry["name"] for entry in metadata["outputs"]} == set(shell.component_spec.outputs or {})


def test_a_reward_model_that_passed_lets_the_pipeline_go_on(tmp_path):
    require_passed(make_artifact(tmp_path / "rm"))


def test_a_reward_model_that_failed_stops_the_pipeline_and_says_why(tmp_path):
    artifact = make_artifact(tmp_path / "rm", checks=[PASSED, FAILED], passed=False)
    with pytest.raises(
        RewardModelRejected, match=r"attack:padding: padding makes the worse answer win on up to 80\.0%"
    ):
        require_passed(artifact)


@pytest.mark.parametrize(
    "evaluation",
    [
        {"checks": [], "passed": True},
        {"checks": [FAILED], "passed": True},
        {"checks": [PASSED], "passed": False},
        {"checks": [{**PASSED, "passed": None}], "passed": True},
    ],
)
def test_an_evaluation_that_contradicts_itself_never_passes(tmp_path, evaluation):
    with pytest.raises(RewardModelRejected):
        require_passed(make_artifact(tmp_path / "rm", **evaluation))


def test_metrics_without_a_value_are_left_out(tmp_path):
    assert headline_metrics(make_artifact(tmp_path / "rm")) == {
        "accuracy": 0.7,
        "accuracy_lower95": 0.65,
        "slope": 1.1,
        "length_correlation": 0.2,
        "attack_padding": 0.1,
    }
