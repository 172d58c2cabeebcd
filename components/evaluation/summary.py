"""Rows of answers condensed to the figures of `metrics.json`: by role, and within a role by slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from components.evaluation.answers import AnswerRow
from components.evaluation.metrics import block_distinct_n, is_refusal, mean, repetition_share, standard_error
from components.evaluation.settings import EvaluationSettings

__all__ = ["flat_figures", "summarise"]


def summarise(rows: Sequence[AnswerRow], settings: EvaluationSettings) -> dict[str, Any]:
    """Figures of one role.

    Args:
        rows: Its answers, one a prompt.
        settings: What counts as a refusal, and where.

    Returns:
        `n`, the figures, and the same by slice under `slices`.
    """
    slices = sorted({row.slice for row in rows})
    return {
        **_figures(rows, settings),
        "slices": {name: _figures([row for row in rows if row.slice == name], settings) for name in slices},
    }


def flat_figures(summary: dict[str, Any]) -> dict[str, float]:
    """A role's overall figures as numbers by name, for tracking; figures without data are left out."""
    flat: dict[str, float] = {}
    for name, value in summary.items():
        if name == "slices" or value is None:
            continue
        if isinstance(value, dict):
            flat.update({f"{name}_{part}": float(number) for part, number in value.items() if number is not None})
        else:
            flat[name] = float(value)
    return flat


def _figures(rows: Sequence[AnswerRow], settings: EvaluationSettings) -> dict[str, Any]:
    return {
        "n": len(rows),
        "reward": _mean_and_error([row.reward for row in rows]),
        "heldout_reward": _mean_and_error([row.heldout_reward for row in rows]),
        "kl": _kl(rows),
        "response_tokens": mean([row.n_tokens for row in rows]),
        "finished_share": mean([float(row.finished) for row in rows]),
        "refusal_rate": _refusals(rows, settings.must_refuse_slices, settings, everywhere_if_none=True),
        "over_refusal_rate": _refusals(rows, settings.must_answer_slices, settings),
        "repetition_share": mean([repetition_share(row.response) for row in rows]),
        "distinct_2": block_distinct_n([row.response for row in rows], 2),
    }


def _mean_and_error(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": mean(values), "se": standard_error(values)}


def _kl(rows: Sequence[AnswerRow]) -> dict[str, float | None] | None:
    """Mean k1 in nats per sequence with its standard error, and per token; None where it was not measured."""
    measured = [(row.kl, row.n_tokens) for row in rows if row.kl is not None]
    if not measured:
        return None
    values = [kl for kl, _ in measured]
    return {**_mean_and_error(values), "per_token": math.fsum(values) / sum(tokens for _, tokens in measured)}


def _refusals(
    rows: Sequence[AnswerRow],
    slices: Sequence[str],
    settings: EvaluationSettings,
    *,
    everywhere_if_none: bool = False,
) -> float | None:
    """Share of refusals among the rows of `slices`."""
    everywhere = everywhere_if_none and not slices
    asked = [row for row in rows if everywhere or row.slice in slices]
    return mean([float(is_refusal(row.response, settings.refusal_patterns)) for row in asked])
