"""`summary.json`: the run in a few numbers, for scripts. Every key is always there; without data it is null."""

from __future__ import annotations

import math
from typing import Any

from components.report.parts import Parts, dig
from components.report.settings import RunInfo
from components.report.verdict import judge
from components.shared.trajectory import in_deviations

__all__ = ["build_summary"]


def build_summary(parts: Parts, run: RunInfo) -> dict[str, Any]:
    """The summary of a run.

    Args:
        parts: What the run left.
        run: What is known of the run itself.

    Returns:
        JSON values. `human` is about `candidate_vs_reference`: `win_rate` and `ci95` of the mean over prompts, `lower`
        and `upper` the one-sided bounds at the run's confidence. `optimization` is the training of the policy, by
        whichever optimizer; `ppo` the same figures where that is PPO. `reward_*` are raw, `*_sd` in standard deviations
        of the reward model, `kl_*` in nats per sequence. Numbers that are not finite are null.
    """
    outcome = judge(parts, run)
    summary = {
        "run_id": run.run_id,
        "status": run.status,
        "verdict": outcome.verdict,
        "reasons": outcome.reasons,
        "failure": run.failure.model_dump() if run.failure else None,
        "mode": dig(parts.decision, "mode"),
        "seed": run.seed,
        "reward_model": _reward_model(parts.reward_model),
        "heldout_reward_model": _reward_model(parts.heldout_reward_model),
        "optimization": {"optimizer": parts.optimizer if parts.history_summary else None, **_training(parts)},
        "ppo": _training(parts if parts.optimizer == "PPO" else Parts()),
        "evaluation": {
            "kl": dig(parts.metrics, "candidate", "kl", "mean"),
            "reward": dig(parts.metrics, "candidate", "reward", "mean"),
            "heldout_reward": dig(parts.metrics, "candidate", "heldout_reward", "mean"),
        },
        "human": _human(parts),
        "divergence": _select(dig(parts.decision, "divergence"), *_DIVERGENCE_KEYS),
        "candidate": {
            "version": dig(parts.decision, "version"),
            "digest": parts.digest("candidate") or dig(parts.decision, "digests", "candidate"),
        },
        "champion": _select(run.champion.model_dump() if run.champion else None, "name", "version"),
        "policy": _select(dig(parts.decision, "policy"), "name", "version", "digest", "looser_than_production"),
        "seconds": {"total": run.seconds_total, **(run.seconds or {})},
        "usage": run.usage,
        "digests": {role: manifest["digest"] for role, manifest in parts.manifests.items()},
    }
    return _finite(summary)


_TRAINING_KEYS = (
    "kl_target",
    "kl_final",
    "kl_last_third",
    "reward_start",
    "reward_final",
    "steps",
    "stopped_early",
    "stop_reason",
)
_DIVERGENCE_KEYS = ("reward_win_rate", "human_win_rate", "gap", "ci95", "slope", "human_ci95", "decided_share")


def _reward_model(evaluation: dict[str, Any] | None) -> dict[str, Any]:
    accuracy = dig(evaluation, "accuracy")
    return {
        "heldout_accuracy": dig(accuracy, "value"),
        "ci95": dig(accuracy, "ci95_clustered") or dig(accuracy, "ci95_wilson"),
        "n": dig(evaluation, "n"),
        "passed": dig(evaluation, "passed"),
    }


def _training(parts: Parts) -> dict[str, Any]:
    values = _select(parts.history_summary, *_TRAINING_KEYS)
    return {
        **values,
        "reward_start_sd": in_deviations(parts, values["reward_start"]),
        "reward_final_sd": in_deviations(parts, values["reward_final"]),
    }


def _human(parts: Parts) -> dict[str, Any]:
    comparison = dig(parts.statistics, "comparisons", "candidate_vs_reference")
    keys = ("win_rate", "ci95", "lower", "upper", "n_prompts", "n_votes")
    return {**_select(comparison, *keys), "rater_kinds": dig(parts.statistics, "rater_kinds")}


def _select(values: Any, *keys: str) -> dict[str, Any]:
    return {key: dig(values, key) for key in keys}


def _finite(value: Any) -> Any:
    """The value with NaN and infinity, which JSON does not have, as None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
