"""How far each checkpoint moved: reward of both reward models, KL and human preference, against the reference.

The run report and the release page draw their one chart from it. Gains are paired: a checkpoint is compared with the
reference on the prompts that both answered, and divided by the standard deviation of the reward model's score, so that
two reward models share one axis.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Protocol

from components.shared.charts import Panel, Series

__all__ = [
    "Checkpoint",
    "Estimate",
    "TrainingEvidence",
    "checkpoints",
    "dig",
    "in_deviations",
    "mean_estimate",
    "paired_gain",
    "slices_of",
    "standard_deviation",
    "thin",
    "trajectory_in_words",
    "trajectory_panels",
]

_Z95 = 1.959964
_MOST_HISTORY_POINTS = 400


class TrainingEvidence(Protocol):
    """What the trajectory is computed from; parts that are missing are None or empty.

    Attributes:
        models: `models.json` of the evaluation.
        generations: A row an answer, with reward, held-out reward and KL.
        outcomes: A row a comparison and prompt of the human evidence.
        statistics: Its `statistics.json`.
        reward_scale: `reward.json` of the optimised reward model.
        heldout_scale: The same of the other one.
        history: A row a training step.
        history_summary: `summary.json` of the training history.
    """

    @property
    def models(self) -> dict[str, Any]: ...
    @property
    def generations(self) -> list[dict[str, Any]]: ...
    @property
    def outcomes(self) -> list[dict[str, Any]]: ...
    @property
    def statistics(self) -> dict[str, Any] | None: ...
    @property
    def reward_scale(self) -> dict[str, Any] | None: ...
    @property
    def heldout_scale(self) -> dict[str, Any] | None: ...
    @property
    def history(self) -> list[dict[str, Any]]: ...
    @property
    def history_summary(self) -> dict[str, Any] | None: ...


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


def checkpoints(found: TrainingEvidence, slice_name: str | None = None) -> list[Checkpoint]:
    """The reference (step 0), the evaluated checkpoints and the candidate, by step.

    Args:
        found: What the run left.
        slice_name: Only this slice; None for all.
    """
    answers = _answers_by_role(found, slice_name)
    steps = {role: _step(found, role) for role in found.models if role not in ("reference", "champion")}
    candidate_step = steps.get("candidate")
    trained = [
        _checkpoint(found, answers, role, step, slice_name)
        for role, step in steps.items()
        if step is not None and (role == "candidate" or step != candidate_step)
    ]
    if not trained:
        return []
    zero = Estimate(0.0, 0.0, 0.0, len(answers.get("reference", {})))
    start = Checkpoint("reference", 0, zero, zero if found.heldout_scale else Estimate(), zero, Estimate())
    return [start, *sorted(trained, key=lambda checkpoint: checkpoint.step)]


def slices_of(found: TrainingEvidence) -> list[str]:
    """The slices of the evaluation, by name; of the human evidence when there is no evaluation."""
    names = {row["slice"] for row in found.generations} or {row["slice"] for row in found.outcomes}
    return sorted(names)


def paired_gain(
    found: TrainingEvidence, role: str, key: str, slice_name: str | None = None, base: str = "reference"
) -> Estimate:
    """Mean gain of a role over `base` on the prompts that both answered, in standard deviations.

    Args:
        found: What the run left.
        role: Role in the evaluation.
        key: `reward` or `heldout_reward`.
        slice_name: Only this slice; None for all.
        base: The role it is compared with.
    """
    return _gain(found, _answers_by_role(found, slice_name), role, key, base)


def mean_estimate(values: list[float]) -> Estimate:
    """Mean and normal 95 % interval, which needs two values."""
    if not values:
        return Estimate()
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None, 1)
    margin = _Z95 * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - margin, mean + margin, len(values))


def standard_deviation(found: TrainingEvidence, key: str) -> float | None:
    """Standard deviation of the raw score of the reward model behind `reward` or `heldout_reward`."""
    scale = found.reward_scale if key == "reward" else found.heldout_scale
    deviation = dig(scale, "std")
    return deviation if deviation and math.isfinite(deviation) and deviation > 0 else None


def in_deviations(found: TrainingEvidence, reward: float | None) -> float | None:
    """A raw reward of the optimised reward model, in its standard deviations from its mean on held-out answers."""
    mean, deviation = dig(found.reward_scale, "mean"), standard_deviation(found, "reward")
    if reward is None or mean is None or deviation is None:
        return None
    return (reward - mean) / deviation


def trajectory_panels(found: TrainingEvidence, points: Sequence[Checkpoint]) -> list[Panel]:
    """The three panels: reward gain, KL, human win rate, over training steps."""
    target = dig(found.history_summary, "kl_target")
    rows = thin(found.history)
    training = (
        [Series("training prompts", [r["step"] for r in rows], [r.get("kl") for r in rows], colour=3, faint=True)]
        if rows
        else []
    )
    return [
        Panel(
            "reward gain (sd)",
            [
                _series("optimised reward model", points, "reward"),
                _series("held-out reward model", points, "heldout"),
            ],
            {"baseline": 0.0},
            height=1.9,
        ),
        Panel(
            "KL (nats per answer)",
            [_series("held-out prompts", points, "kl", colour=3), *training],
            {"target": target} if target is not None else {},
        ),
        Panel(
            "human win rate",
            [_series("people, against the baseline", points, "human", colour=2)],
            {"as good as the baseline": 0.5},
            (0.0, 1.0),
        ),
    ]


def trajectory_in_words(points: Sequence[Checkpoint]) -> str:
    """The end of the trajectory in a sentence, for screen readers."""
    last = points[-1]
    return (
        f"At step {last.step}: reward gain {_number(last.reward.value)} sd, held-out reward model "
        f"{_number(last.heldout.value)} sd, KL {_number(last.kl.value)} nats, human win rate "
        f"{_number(last.human.value)}."
    )


def thin(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """At most a few hundred rows, evenly spaced, the last one included: more cannot be seen on a chart."""
    if len(rows) <= _MOST_HISTORY_POINTS:
        return rows
    stride = -(-len(rows) // _MOST_HISTORY_POINTS)
    return [*rows[:-1][::stride], rows[-1]]


def dig(value: Any, *keys: str) -> Any:
    """`value[a][b]...`, or None as soon as something on the way is absent."""
    for key in keys:
        if not isinstance(value, Mapping) or value.get(key) is None:
            return None
        value = value[key]
    return value


def _checkpoint(found: TrainingEvidence, answers: dict, role: str, step: int, slice_name: str | None) -> Checkpoint:
    kl = [row["kl"] for row in answers.get(role, {}).values() if row.get("kl") is not None]
    return Checkpoint(
        role=role,
        step=step,
        reward=_gain(found, answers, role, "reward"),
        heldout=_gain(found, answers, role, "heldout_reward"),
        kl=mean_estimate(kl),
        human=_human(found, role, slice_name),
    )


def _gain(found: TrainingEvidence, answers: dict, role: str, key: str, base: str = "reference") -> Estimate:
    deviation = standard_deviation(found, key)
    if deviation is None:
        return Estimate()
    reference = answers.get(base, {})
    gains = [
        (row[key] - reference[prompt][key]) / deviation
        for prompt, row in answers.get(role, {}).items()
        if prompt in reference and row.get(key) is not None and reference[prompt].get(key) is not None
    ]
    return mean_estimate(gains)


def _human(found: TrainingEvidence, role: str, slice_name: str | None) -> Estimate:
    comparison = dig(found.statistics, "comparisons", f"{role}_vs_reference")
    if slice_name is not None:
        comparison = dig(comparison, "slices", slice_name)
    if comparison is None:
        return Estimate()
    lower, upper = comparison.get("ci95") or (comparison.get("lower"), comparison.get("upper"))
    return Estimate(comparison.get("win_rate"), lower, upper, comparison.get("n_prompts") or 0)


def _answers_by_role(
    found: TrainingEvidence, slice_name: str | None
) -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
    """Answers by role, then by prompt set and prompt."""
    answers: dict[str, dict[tuple[str, str], dict[str, Any]]] = defaultdict(dict)
    for row in found.generations:
        if slice_name is None or row["slice"] == slice_name:
            answers[row["role"]][row.get("prompt_set") or "", row["prompt_id"]] = row
    return answers


def _step(found: TrainingEvidence, role: str) -> int | None:
    """Training step of a role: as recorded, else as its name says; the last of the history for the candidate."""
    step = dig(found.models, role, "step")
    if step is not None:
        return int(step)
    if role.startswith("step-") and role[5:].isdecimal():
        return int(role[5:])
    if role == "candidate" and found.history:
        return int(found.history[-1]["step"])
    return None


def _series(name: str, points: Sequence[Checkpoint], key: str, colour: int | None = None) -> Series:
    estimates: list[Estimate] = [getattr(point, key) for point in points]
    return Series(
        name,
        [point.step for point in points],
        [estimate.value for estimate in estimates],
        [estimate.lower for estimate in estimates],
        [estimate.upper for estimate in estimates],
        markers=True,
        colour=colour,
    )


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}".replace("-", "\u2212")
