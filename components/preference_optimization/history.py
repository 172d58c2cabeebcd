"""The training history: one row a measurement, with what the trainer logged since the one before; and its summary.

A row tells of the policy after `step` updates; row 0 is the reference itself: KL 0. The columns that PPO's history has
too have its names and units. What TRL logs stands beside them as `trainer/<its name>`: figures of its own, on its own
batches, in its own units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from components.preference_optimization.settings import METHOD_NAMES, PreferenceOptimizationSettings
from components.shared.policy_optimization import metric_name

__all__ = ["TrainerFigures", "history_rows", "metrics_of_row", "summarise"]

_COMMON = {"loss": "policy_loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}
"""What TRL logs that PPO's history knows, and its name there."""

_NOT_FIGURES = frozenset({"step", "epoch", "num_tokens", "step_time"})
_OVER_PADDING = frozenset({"objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward"})
"""Online DPO sums these over padding as well (TRL 1.16): no figure is better than a wrong one."""


class TrainerFigures:
    """A tracking run under which what TRL logs cannot be taken for what is measured here."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs the trainer's figures under the names that they have in the history."""
        self._run.log_metrics({metric_name(name): value for name, value in _figures(metrics).items()}, step=step)


def history_rows(measured: Sequence[dict[str, Any]], logged: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `history.jsonl`: each measurement, with the means of what was logged since the one before.

    Args:
        measured: Rows with `step`, by step.
        logged: The trainer's log, by step.
    """
    rows = []
    before = 0
    for row in measured:
        since = [_figures(entry) for entry in logged if before < entry["step"] <= row["step"]]
        names = sorted({name for figures in since for name in figures})  # a log that was resumed has another order
        means = {name: _mean([figures[name] for figures in since if name in figures]) for name in names}
        rows.append(row | means)
        before = row["step"]
    return rows


def metrics_of_row(row: Mapping[str, Any]) -> dict[str, float]:
    """A measurement as flat metrics, slices as `slice/<name>/<metric>`, for a tracking server."""
    flat = {name: value for name, value in row.items() if name not in ("slices", "step")}
    for name, figures in row["slices"].items():
        flat |= {f"slice/{metric_name(name)}/{metric}": value for metric, value in figures.items()}
    return flat


def summarise(rows: Sequence[dict[str, Any]], settings: PreferenceOptimizationSettings) -> dict[str, Any]:
    """`summary.json` of the artifact: the keys of PPO's, and which method it was.

    Unlike PPO's, the final figures are of the candidate itself: it is measured after the last update.

    Args:
        rows: All rows, the reference's first.
        settings: Settings of the run.
    """
    third = rows[-max(1, len(rows) // 3) :]
    return {
        "optimizer": METHOD_NAMES[settings.method],
        "method": settings.method,
        "beta": settings.kl_weight,
        "steps": rows[-1]["step"],
        "kl_target": None,
        "kl_final": rows[-1]["kl"],
        "kl_last_third": _mean([row["kl"] for row in third]),
        "reward_start": rows[0]["reward_mean"],
        "reward_final": rows[-1]["reward_mean"],
        "stopped_early": False,
        "stop_reason": None,
    }


def _figures(logged: Mapping[str, Any]) -> dict[str, float]:
    """What a log entry says that is a finite number and right."""
    return {
        _COMMON.get(name, f"trainer/{name}"): float(value)
        for name, value in logged.items()
        if name not in _NOT_FIGURES | _OVER_PADDING and isinstance(value, int | float) and math.isfinite(value)
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
