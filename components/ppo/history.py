"""The training history: one row a step, and its summary.

A row describes the policy *before* the step's update (the one that sampled) and what the update then did. Row 1 is
therefore the reference itself: KL 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from components.ppo.advantages import Advantages, masked_mean, masked_variance
from components.ppo.rollout import Rollout
from components.ppo.scoring import Scores
from components.ppo.settings import KLSettings
from components.ppo.update import UpdateStatistics
from components.shared.policy_optimization import metric_name, repetition_share

__all__ = ["explained_variance", "history_row", "metrics_of_row", "summarise"]

_FINAL_WINDOW = 5
"""Steps that `final` figures average over: one batch's mean is too noisy to compare runs by."""

_NOT_METRICS = frozenset({"alarms", "slices", "step"})

_UPDATE_FIELDS = tuple(UpdateStatistics.__dataclass_fields__)


def history_row(
    *,
    step: int,
    rollout: Rollout,
    scores: Scores,
    advantages: Advantages | None,
    update: UpdateStatistics | None,
    kl_coef: float,
    learning_rate: float,
    seconds: float,
) -> dict[str, Any]:
    """A row of `history.jsonl`; docs/architecture.md lists the columns.

    Args:
        step: Number of the step, from 1.
        rollout: The step's episodes.
        scores: Their scores.
        advantages: Their advantages; None when training stopped before the update.
        update: What the update did; None when there was none.
        kl_coef: The coefficient that this step's rewards were computed with.
        learning_rate: The policy's.
        seconds: Wall-clock time of the step.
    """
    tokens = rollout.response_tokens
    kl = float(scores.kl.mean())
    return {
        "step": step,
        "episodes": len(rollout),
        "reward_mean": float(scores.rewards.mean()),
        "reward_std": float(scores.rewards.std(unbiased=False)),
        "score_mean": float(scores.scores.mean()),
        **{name: float(values.mean()) for name, values in scores.reward_parts.items()},
        "kl": kl,
        "kl_k3": float(scores.kl_k3.mean()),
        "kl_per_token": float(scores.kl.sum()) / tokens,
        "kl_coef": kl_coef,
        "entropy": float(masked_mean(scores.entropy, scores.mask)),
        **(asdict(update) if update else dict.fromkeys(_UPDATE_FIELDS)),
        "explained_variance": explained_variance(scores, advantages) if advantages else None,
        "learning_rate": learning_rate,
        "response_tokens": tokens / len(rollout),
        "finished_share": sum(rollout.finished) / len(rollout),
        "repetition_share": sum(map(repetition_share, rollout.responses_ids)) / len(rollout),
        "logprob_gap": scores.decode_gap,
        "logprobs_recomputed": scores.recomputed,
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "slices": _slices(rollout, scores),
    }


def explained_variance(scores: Scores, advantages: Advantages) -> float:
    """1 - var(returns - values) / var(returns) over real tokens; 0 when returns do not vary."""
    variance = masked_variance(advantages.returns, scores.mask)
    if float(variance) < 1e-12:
        return 0.0
    return float(1.0 - masked_variance(advantages.returns - scores.values, scores.mask) / variance)


def metrics_of_row(row: dict[str, Any]) -> dict[str, float]:
    """A row as flat metrics, slices as `slice/<name>/<metric>`, for a tracking server."""
    flat = {name: value for name, value in row.items() if name not in _NOT_METRICS and value is not None}
    for name, figures in row["slices"].items():
        safe = metric_name(name).replace("/", "_")
        flat |= {f"slice/{safe}/{metric}": value for metric, value in figures.items()}
    return flat


def summarise(history: Sequence[dict[str, Any]], kl: KLSettings, *, stop_reason: str | None) -> dict[str, Any]:
    """`summary.json` of the artifact.

    `steps` counts the updates done. `reward_start` and `kl_final`, `reward_final` are raw rewards and nats; final ones
    are means of the last five steps. `alarms` counts the steps of each alarm. A row without an update is of a policy
    above the KL ceiling, which is thrown away: no figure is taken from it.

    Args:
        history: All rows, at least one.
        kl: KL settings.
        stop_reason: Why training ended before its last step; None when it did not.
    """
    kept = [row for row in history if row["value_loss"] is not None]
    described = kept or history
    last = described[-_FINAL_WINDOW:]
    third = described[-max(1, len(described) // 3) :]
    return {
        "steps": len(kept),
        "kl_target": kl.target_nats if kl.control == "adaptive" else None,
        "kl_final": _mean([row["kl"] for row in last]),
        "kl_last_third": _mean([row["kl"] for row in third]),
        "reward_start": history[0]["reward_mean"],
        "reward_final": _mean([row["reward_mean"] for row in last]),
        "stopped_early": stop_reason is not None,
        "stop_reason": stop_reason,
        "alarms": {name: sum(name in row["alarms"] for row in history) for name in _alarm_names(history)},
    }


def _slices(rollout: Rollout, scores: Scores) -> dict[str, dict[str, float]]:
    members: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(rollout.slices):
        members[name].append(index)
    lengths = scores.mask.sum(dim=1).float()
    return {
        name: {
            "n": len(members[name]),
            "reward": _mean_of(scores.rewards, members[name]),
            **{part: _mean_of(values, members[name]) for part, values in scores.reward_parts.items()},
            "kl": _mean_of(scores.kl, members[name]),
            "response_tokens": _mean_of(lengths, members[name]),
        }
        for name in sorted(members)
    }


def _alarm_names(history: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({name for row in history for name in row["alarms"]})


def _mean_of(values: Tensor, indices: list[int]) -> float:
    return float(values[torch.tensor(indices, device=values.device)].mean())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
