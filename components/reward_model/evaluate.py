"""The reward model before the judge: does it rank held-out pairs as people do, is it calibrated, can it be fooled?

Everything is computed on token ids of held-out pairs, with the weights as saved. TRL's own evaluation is not used: its
accuracy is a mean of batch means, has no interval, and silently leaves out long pairs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit
from transformers import PreTrainedTokenizerBase

from components.reward_model.checks import run_checks
from components.reward_model.intervals import clustered_interval, share_interval, share_lower_bound
from components.reward_model.pairs import Pair
from components.reward_model.robustness import ScoredPair, Scorer, attack_report, edit_report, sample_for_robustness
from components.reward_model.settings import RewardModelSettings
from components.shared.errors import InputError
from components.shared.statistics import brier_score, expected_calibration_error, logistic_slope, wilson_interval

__all__ = ["Evaluation", "evaluate"]

_BINS = 5


@dataclass(frozen=True)
class Evaluation:
    """What is known about a reward model.

    Attributes:
        report: `evaluation.json` of docs/architecture.md.
        predictions: One row a held-out pair.
        scale: `mean`, `std` and `slope` of `reward.json`.
    """

    report: dict[str, Any]
    predictions: list[dict[str, Any]]
    scale: dict[str, float | None]


def evaluate(
    pairs: Sequence[Pair], scorer: Scorer, tokenizer: PreTrainedTokenizerBase, settings: RewardModelSettings
) -> Evaluation:
    """Scores held-out pairs and judges the scorer.

    Args:
        pairs: Held-out pairs.
        scorer: The reward model.
        tokenizer: Its tokenizer, for the answers that attacks make.
        settings: Attacks, edits and thresholds.

    Raises:
        InputError: No held-out pairs.
    """
    if not pairs:
        raise InputError(
            "there are no held-out pairs: nothing can be said about the reward model.",
            where="preferences/heldout.jsonl",
            hint="Collect more pairs or give held-out a larger share.",
        )
    scored = _score(pairs, scorer)
    predictions = [_prediction(each) for each in scored]
    rewards = np.array([[each.chosen_reward, each.rejected_reward] for each in scored])
    n_not_finite = int((~np.isfinite(rewards)).sum())
    if n_not_finite:
        report = _empty_report(len(scored))
        scale: dict[str, float | None] = {"mean": None, "std": None, "slope": None}
    else:
        scale = {"mean": float(rewards.mean()), "std": float(rewards.std()), "slope": _slope(scored)}
        report = _report(scored, scorer, tokenizer, settings, scale)
    checks = run_checks(report, settings.checks, n_not_finite=n_not_finite)
    report |= {"checks": checks, "passed": all(check["passed"] for check in checks)}
    return Evaluation(report, predictions, scale)


def _score(pairs: Sequence[Pair], scorer: Scorer) -> list[ScoredPair]:
    prompts = [pair.prompt_ids for pair in pairs]
    answers = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    rewards = [float(reward) for reward in scorer(prompts + prompts, answers)]
    return [
        ScoredPair(pair, chosen, rejected)
        for pair, chosen, rejected in zip(pairs, rewards[: len(pairs)], rewards[len(pairs) :], strict=True)
    ]


def _prediction(each: ScoredPair) -> dict[str, Any]:
    record = each.pair.record
    numbers = {
        "chosen_reward": each.chosen_reward,
        "rejected_reward": each.rejected_reward,
        "difference": each.difference,
    }
    return {
        "id": record.id,
        "slice": record.slice,
        "group": each.cluster,
        "rater": record.rater,
        "strength": record.strength,
        "correct": each.correct,
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "chosen_tokens": len(each.pair.chosen_ids),
        "rejected_tokens": len(each.pair.rejected_ids),
    }


def _empty_report(n: int) -> dict[str, Any]:
    accuracy = dict.fromkeys(("value", "ci95_wilson", "ci95_clustered", "lower95_one_sided"))
    return {
        "n": n,
        "accuracy": accuracy,
        "slices": {},
        "raters": {},
        "calibration": {"slope": None, "brier": None, "ece": None, "bins": []},
        "length": {"correlation": None, "bins": []},
        "separability": {"bins": []},
        "attacks": {},
        "edits": {},
        "margin": {"mean": None, "std": None},
        "rewards": {"mean": None, "std": None},
    }


def _report(
    scored: Sequence[ScoredPair],
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    settings: RewardModelSettings,
    scale: dict[str, float | None],
) -> dict[str, Any]:
    differences = np.array([each.difference for each in scored])
    robustness = (sample_for_robustness(scored, settings), scorer, tokenizer, settings)
    std = scale["std"] or 0.0
    return {
        "n": len(scored),
        "accuracy": _accuracy(scored),
        "slices": _by(scored, lambda each: each.pair.record.slice),
        "raters": _by(scored, lambda each: each.pair.record.rater),
        "calibration": _calibration(differences, scale["slope"]),
        "length": _length(scored),
        "separability": {"bins": _binned(scored, lambda each: each.pair.record.strength)},
        "attacks": attack_report(*robustness, reward_std=std),
        "edits": edit_report(*robustness, reward_std=std),
        "margin": {"mean": float(differences.mean()), "std": float(differences.std())},
        "rewards": {"mean": scale["mean"], "std": scale["std"]},
    }


def _accuracy(scored: Sequence[ScoredPair]) -> dict[str, Any]:
    correct = [each.correct for each in scored]
    clusters = [each.cluster for each in scored]
    return {
        "value": sum(correct) / len(correct),
        "ci95_wilson": list(wilson_interval(sum(correct), len(correct))),
        "ci95_clustered": clustered_interval(correct, clusters),
        "lower95_one_sided": share_lower_bound(correct, clusters),
        "ties": sum(each.difference == 0 for each in scored),
    }


def _share(scored: Sequence[ScoredPair]) -> dict[str, Any]:
    correct = [each.correct for each in scored]
    return {
        "n": len(correct),
        "accuracy": sum(correct) / len(correct),
        "ci95": share_interval(correct, [each.cluster for each in scored]),
    }


def _by(scored: Sequence[ScoredPair], key: Callable[[ScoredPair], str | None]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[ScoredPair]] = defaultdict(list)
    for each in scored:
        name = key(each)
        if name is not None:
            groups[name].append(each)
    return {name: _share(groups[name]) for name in sorted(groups)}


def _binned(scored: Sequence[ScoredPair], key: Callable[[ScoredPair], float]) -> list[dict[str, Any]]:
    """Accuracy and mean margin in bins of about equal size along `key`; equal values share a bin."""
    values = np.array([key(each) for each in scored])
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
    bin_of = np.searchsorted(edges, values, side="right")
    bins = []
    for index in np.unique(bin_of):
        inside = [each for each, other in zip(scored, bin_of, strict=True) if other == index]
        held = values[bin_of == index]
        margin = float(np.mean([each.difference for each in inside]))
        bins.append({"low": float(held.min()), "high": float(held.max()), "margin_mean": margin, **_share(inside)})
    return bins


def _slope(scored: Sequence[ScoredPair]) -> float | None:
    differences = [each.difference for each in scored]
    return logistic_slope(differences) if any(differences) else None


def _calibration(differences: np.ndarray, slope: float | None) -> dict[str, Any]:
    """Is sigmoid(difference) the probability that a person agrees?

    Which answer comes first is arbitrary, so each pair is read from the side that the model prefers: probability
    sigmoid(|d|), label 1 if the rater agreed, 0.5 at a tie. `slope` a is what the difference must be multiplied by
    (below 1: over-confident); `ece_scaled` is what remains after that.
    """
    labels = np.where(differences > 0, 1.0, np.where(differences < 0, 0.0, 0.5))
    probabilities = expit(np.abs(differences))
    error, bins = expected_calibration_error(probabilities, labels)
    scaled = None
    if slope is not None and slope > 0:
        scaled = expected_calibration_error(expit(slope * np.abs(differences)), labels)[0]
    return {
        "slope": slope,
        "brier": brier_score(probabilities, labels),
        "ece": error,
        "ece_scaled": scaled,
        "bins": bins,
    }


def _length(scored: Sequence[ScoredPair]) -> dict[str, Any]:
    """How much of the reward is length: over answers, within pairs, and what length alone would score."""
    chosen = np.array([len(each.pair.chosen_ids) for each in scored], dtype=float)
    rejected = np.array([len(each.pair.rejected_ids) for each in scored], dtype=float)
    rewards = np.array([each.chosen_reward for each in scored] + [each.rejected_reward for each in scored])
    differences = np.array([each.difference for each in scored])
    return {
        "correlation": _correlation(np.concatenate([chosen, rejected]), rewards),
        "difference_correlation": _correlation(chosen - rejected, differences),
        "longer_is_better_accuracy": float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected))),
        "bins": _binned(scored, lambda each: len(each.pair.chosen_ids) - len(each.pair.rejected_ids)),
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's; None where one of the two does not vary."""
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
