"""How far each checkpoint moved: reward of both reward models, KL and human preference, against the reference.

Gains are paired: a checkpoint is compared with the reference on the prompts that both answered, and divided by the
standard deviation of the reward model's score, so that two reward models share one axis.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from components.report.parts import Parts, dig

__all__ = [
    "Checkpoint",
    "Estimate",
    "checkpoints",
    "in_deviations",
    "mean_estimate",
    "paired_gain",
    "slices_of",
    "standard_deviation",
]

_Z95 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; all None without data."""

    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    n: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """What is known of the policy after some training steps.

    Attributes:
        role: Its role in the evaluation.
        step: Training step.
        reward: Gain over the reference by the reward model it was trained against, in its standard deviations.
        heldout: The same by the second reward model.
        kl: KL from the reference, nats per sequence.
        human: Human win rate against the reference with its 95 % interval.
    """

    role: str
    step: int
    reward: Estimate
    heldout: Estimate
    kl: Estimate
    human: Estimate


def checkpoints(parts: Parts, slice_name: str | None = None) -> list[Checkpoint]:
    """The reference (step 0), the evaluated checkpoints and the candidate, by step.

    Args:
        parts: What the run left.
        slice_name: Only this slice; None for all.
    """
    answers = _answers_by_role(parts, slice_name)
    steps = {role: _step(parts, role) for role in parts.models if role not in ("reference", "champion")}
    candidate_step = steps.get("candidate")
    trained = [
        _checkpoint(parts, answers, role, step, slice_name)
        for role, step in steps.items()
        if step is not None and (role == "candidate" or step != candidate_step)
    ]
    if not trained:
        return []
    zero = Estimate(0.0, 0.0, 0.0, len(answers.get("reference", {})))
    start = Checkpoint("reference", 0, zero, zero if parts.heldout_scale else Estimate(), zero, Estimate())
    return [start, *sorted(trained, key=lambda checkpoint: checkpoint.step)]


def slices_of(parts: Parts) -> list[str]:
    """The slices of the evaluation, by name; of the human evidence when there is no evaluation."""
    names = {row["slice"] for row in parts.generations} or {row["slice"] for row in parts.outcomes}
    return sorted(names)


def paired_gain(parts: Parts, role: str, key: str, slice_name: str | None = None, base: str = "reference") -> Estimate:
    """Mean gain of a role over `base` on the prompts that both answered, in standard deviations.

    Args:
        parts: What the run left.
        role: Role in the evaluation.
        key: `reward` or `heldout_reward`.
        slice_name: Only this slice; None for all.
        base: The role it is compared with.
    """
    return _gain(parts, _answers_by_role(parts, slice_name), role, key, base)


def mean_estimate(values: list[float]) -> Estimate:
    """Mean and normal 95 % interval, which needs two values."""
    if not values:
        return Estimate()
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None, 1)
    margin = _Z95 * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - margin, mean + margin, len(values))


def standard_deviation(parts: Parts, key: str) -> float | None:
    """Standard deviation of the raw score of the reward model behind `reward` or `heldout_reward`."""
    scale = parts.reward_scale if key == "reward" else parts.heldout_scale
    deviation = dig(scale, "std")
    return deviation if deviation and math.isfinite(deviation) and deviation > 0 else None


def in_deviations(parts: Parts, reward: float | None) -> float | None:
    """A raw reward of the optimised reward model, in its standard deviations from its mean on held-out answers."""
    mean, deviation = dig(parts.reward_scale, "mean"), standard_deviation(parts, "reward")
    if reward is None or mean is None or deviation is None:
        return None
    return (reward - mean) / deviation


def _checkpoint(parts: Parts, answers: dict, role: str, step: int, slice_name: str | None) -> Checkpoint:
    kl = [row["kl"] for row in answers.get(role, {}).values() if row.get("kl") is not None]
    return Checkpoint(
        role=role,
        step=step,
        reward=_gain(parts, answers, role, "reward"),
        heldout=_gain(parts, answers, role, "heldout_reward"),
        kl=mean_estimate(kl),
        human=_human(parts, role, slice_name),
    )


def _gain(parts: Parts, answers: dict, role: str, key: str, base: str = "reference") -> Estimate:
    deviation = standard_deviation(parts, key)
    if deviation is None:
        return Estimate()
    reference = answers.get(base, {})
    gains = [
        (row[key] - reference[prompt][key]) / deviation
        for prompt, row in answers.get(role, {}).items()
        if prompt in reference and row.get(key) is not None and reference[prompt].get(key) is not None
    ]
    return mean_estimate(gains)


def _human(parts: Parts, role: str, slice_name: str | None) -> Estimate:
    comparison = dig(parts.statistics, "comparisons", f"{role}_vs_reference")
    if slice_name is not None:
        comparison = dig(comparison, "slices", slice_name)
    if comparison is None:
        return Estimate()
    lower, upper = comparison.get("ci95") or (comparison.get("lower"), comparison.get("upper"))
    return Estimate(comparison.get("win_rate"), lower, upper, comparison.get("n_prompts") or 0)


def _answers_by_role(parts: Parts, slice_name: str | None) -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
    """Answers by role, then by prompt set and prompt."""
    answers: dict[str, dict[tuple[str, str], dict[str, Any]]] = defaultdict(dict)
    for row in parts.generations:
        if slice_name is None or row["slice"] == slice_name:
            answers[row["role"]][row.get("prompt_set") or "", row["prompt_id"]] = row
    return answers


def _step(parts: Parts, role: str) -> int | None:
    """Training step of a role: as recorded, else as its name says; the last of the history for the candidate."""
    step = dig(parts.models, role, "step")
    if step is not None:
        return int(step)
    if role.startswith("step-") and role[5:].isdigit():
        return int(role[5:])
    if role == "candidate" and parts.history:
        return int(parts.history[-1]["step"])
    return None
