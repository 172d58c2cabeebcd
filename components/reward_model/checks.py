"""The checks that decide whether a policy may be optimised against a reward model; the node that stops the pipeline.

A number that is absent or not finite never passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components.reward_model.settings import REQUIRED_ATTACKS, CheckSettings
from components.shared.artifacts import read_artifact
from components.shared.errors import PlumblineError
from components.shared.files import read_json
from components.shared.tracking import stage_run

__all__ = ["RewardModelRejected", "headline_metrics", "require_passed", "run_checks"]


class RewardModelRejected(PlumblineError):
    """A reward model did not pass its checks."""


def run_checks(report: Mapping[str, Any], thresholds: CheckSettings, *, n_not_finite: int) -> list[dict[str, Any]]:
    """Judges a report.

    Args:
        report: `evaluation.json` without its checks.
        thresholds: What it is held against.
        n_not_finite: Held-out rewards that are NaN or infinite.

    Returns:
        One row a check: `name, value, threshold, passed, reason`.
    """
    accuracy = report["accuracy"]
    checks = [
        _check("finite_rewards", n_not_finite, 0, _at_most, "{value:.0f} held-out rewards are NaN or infinite"),
        _check(
            "accuracy_lower_bound",
            accuracy["lower95_one_sided"],
            thresholds.min_accuracy_lower_bound,
            _above,
            "held-out accuracy is at least {value:.3f} with 95 % confidence",
        ),
        _check(
            "leakage_ceiling",
            accuracy["value"],
            thresholds.leakage_ceiling,
            _below,
            "held-out accuracy is {value:.3f}; more than people agree with each other suggests leakage",
        ),
    ]
    for name in dict.fromkeys((*REQUIRED_ATTACKS, *report["attacks"])):
        text = f"the {name.replace('_', ' ')} attack makes the worse answer win on up to {{value:.1%}} of pairs"
        checks.append(_upper_bound_check(f"attack:{name}", report["attacks"].get(name), text))
    for name, edit in report["edits"].items():
        text = f"the harmless edit {name.replace('_', ' ')} changes the order of up to {{value:.1%}} of pairs"
        checks.append(_upper_bound_check(f"edit:{name}", edit, text))
    return checks


def require_passed(reward_model: str | Path) -> None:
    """Stops a pipeline whose reward model failed its checks.

    Args:
        reward_model: A `reward_model` artifact.

    Raises:
        RewardModelRejected: Names every failed check in plain words.
    """
    with stage_run("reward_model_check"):  # so that whoever reads MLflow finds the step that failed, and why
        _require_passed(reward_model)


def _require_passed(reward_model: str | Path) -> None:
    artifact = read_artifact(reward_model, "reward_model")
    evaluation = read_json(artifact.file("evaluation.json"))
    failed = [check for check in evaluation["checks"] if check["passed"] is not True]
    if evaluation["passed"] is True and evaluation["checks"] and not failed:
        return
    reasons = "; ".join(f"{check['name']}: {check['reason']}" for check in failed) or "it has no checks"
    raise RewardModelRejected(
        f"the reward model must not be optimised against: {reasons}.",
        where=str(artifact.path / "evaluation.json"),
        hint="Collect more or cleaner pairs, or train it otherwise; a looser limit is a decision for the settings.",
    )


def headline_metrics(reward_model: str | Path) -> dict[str, float]:
    """The numbers of a `reward_model` artifact that belong on a dashboard; those without a value are left out."""
    evaluation = read_json(Path(reward_model) / "evaluation.json")
    metrics = {
        "accuracy": evaluation["accuracy"]["value"],
        "accuracy_lower95": evaluation["accuracy"]["lower95_one_sided"],
        "slope": evaluation["calibration"]["slope"],
        "ece": evaluation["calibration"]["ece"],
        "length_correlation": evaluation["length"]["correlation"],
    }
    metrics |= {f"attack_{name}": attack["success_rate"] for name, attack in evaluation["attacks"].items()}
    return {name: value for name, value in metrics.items() if value is not None}


def _above(value: float, threshold: float, /) -> bool:
    return value > threshold


def _below(value: float, threshold: float, /) -> bool:
    return value < threshold


def _at_most(value: float, threshold: float, /) -> bool:
    return value <= threshold


_DEMANDS = {_above: "must be above", _below: "must be below", _at_most: "must be at most"}


def _check(
    name: str, value: float | None, threshold: float | None, passes: Callable[[float, float], bool], text: str
) -> dict[str, Any]:
    if value is None or threshold is None or not math.isfinite(value):
        return {
            "name": name,
            "value": None,
            "threshold": threshold,
            "passed": False,
            "reason": "there is no number to judge",
        }
    reason = f"{text.format(value=value)} ({_DEMANDS[passes]} {threshold:g})"
    return {"name": name, "value": value, "threshold": threshold, "passed": passes(value, threshold), "reason": reason}


def _upper_bound_check(name: str, result: Mapping[str, Any] | None, text: str) -> dict[str, Any]:
    if result is None or result["ci95"] is None:
        return _check(name, None, result["limit"] if result else None, _at_most, text)
    return _check(name, result["ci95"][1], result["limit"], _at_most, text)
