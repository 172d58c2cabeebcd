"""Can the reward model be fooled? Cheap tricks on the worse answer, and edits that should change nothing.

Success of an attack, on a held-out pair that the model ranks right: the *rejected* answer, dressed up by the trick,
outranks the untouched chosen one. It is the success rate of adversarial-example research (Morris et al. 2020,
TextAttack: flips among what was right before) and asks RM-Bench's question (Liu et al. 2024: style on the worse answer
against substance in the better one). The share of answers whose reward merely rises is reported beside it; it says that
a shortcut is there, not that it decides.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from components.reward_model.intervals import share_interval
from components.reward_model.pairs import Pair, encode_answer
from components.reward_model.settings import AttackSettings, RewardModelSettings
from components.reward_model.transforms import apply_edit, apply_template, replaces_answer
from components.shared.progress import track
from components.shared.records import group_key

__all__ = ["ScoredPair", "Scorer", "attack_report", "edit_report", "sample_for_robustness"]

Scorer = Callable[[Sequence[list[int]], Sequence[list[int]]], Sequence[float]]
"""Rewards of answers from token ids of prompts and answers, in the order given."""


@dataclass(frozen=True)
class ScoredPair:
    """A held-out pair with its two rewards."""

    pair: Pair
    chosen_reward: float
    rejected_reward: float

    @property
    def difference(self) -> float:
        """Reward of the chosen answer minus that of the rejected one."""
        return self.chosen_reward - self.rejected_reward

    @property
    def correct(self) -> bool:
        """Whether the model ranks the pair as its rater did; a tie is not right."""
        return self.difference > 0

    @property
    def cluster(self) -> str:
        """What it shares with other pairs about the same prompt."""
        return group_key(self.pair.record)


def sample_for_robustness(scored: Sequence[ScoredPair], settings: RewardModelSettings) -> list[ScoredPair]:
    """At most `checks.robustness_pairs` pairs, the same ones for the same data."""
    by_hash = sorted(scored, key=lambda each: hashlib.sha256(each.pair.record.id.encode()).hexdigest())
    return by_hash[: settings.checks.robustness_pairs]


def attack_report(
    scored: Sequence[ScoredPair],
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    settings: RewardModelSettings,
    *,
    reward_std: float,
) -> dict[str, dict[str, Any]]:
    """Success rate of every attack.

    Returns:
        By name: `success_rate, ci95, n` (pairs ranked right before), `limit, passed`, and as background `raised_share`
        (answers whose reward rises) and `mean_shift` (of the reward, in standard deviations).
    """
    return {
        name: _attack(attack, scored, scorer, tokenizer, settings, reward_std)
        for name, attack in track(settings.attacks.items(), "reward model: attacks", total=len(settings.attacks))
    }


def _attack(
    attack: AttackSettings,
    scored: Sequence[ScoredPair],
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    settings: RewardModelSettings,
    reward_std: float,
) -> dict[str, Any]:
    targets = [each for each in scored if each.pair.record.slice not in attack.exclude_slices]
    answers = []
    for index, each in enumerate(targets):
        template = attack.templates[index % len(attack.templates)]
        text = apply_template(template, each.pair.record.rejected)
        finished = each.pair.record.rejected_finished or replaces_answer(template)
        answers.append(_encode(tokenizer, each, text, settings, finished=finished))
    rewards = _score(scorer, targets, answers)
    attempts = [(each, reward) for each, reward in zip(targets, rewards, strict=True) if each.correct]
    successes = [not reward <= each.chosen_reward for each, reward in attempts]
    interval = share_interval(successes, [each.cluster for each, _ in attempts])
    shifts = [reward - each.rejected_reward for each, reward in zip(targets, rewards, strict=True)]
    return {
        "success_rate": sum(successes) / len(successes) if successes else None,
        "ci95": interval,
        "n": len(successes),
        "limit": attack.limit,
        "passed": interval is not None and interval[1] <= attack.limit,
        "raised_share": sum(shift > 0 for shift in shifts) / len(shifts) if shifts else None,
        "mean_shift": _finite(sum(shifts) / len(shifts) / reward_std) if shifts and reward_std > 0 else None,
    }


def edit_report(
    scored: Sequence[ScoredPair],
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    settings: RewardModelSettings,
    *,
    reward_std: float,
) -> dict[str, dict[str, Any]]:
    """How often a harmless edit of the rejected answer changes a pair's order.

    Returns:
        By edit: `flip_rate, ci95, n, limit, passed, mean_abs_shift` (of the reward, in standard deviations).
    """
    return {edit: _edit(edit, scored, scorer, tokenizer, settings, reward_std) for edit in settings.harmless_edits}


def _edit(
    edit: Any,
    scored: Sequence[ScoredPair],
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    settings: RewardModelSettings,
    reward_std: float,
) -> dict[str, Any]:
    edited = [
        _encode(
            tokenizer,
            each,
            apply_edit(edit, each.pair.record.rejected),
            settings,
            finished=each.pair.record.rejected_finished,
        )
        for each in scored
    ]
    touched = [i for i, ids in enumerate(edited) if ids != scored[i].pair.rejected_ids]
    rewards = [each.rejected_reward for each in scored]
    fresh = _score(scorer, [scored[i] for i in touched], [edited[i] for i in touched])
    for i, reward in zip(touched, fresh, strict=True):
        rewards[i] = reward
    flips = [
        (each.chosen_reward > reward) != each.correct or not math.isfinite(reward)
        for each, reward in zip(scored, rewards, strict=True)
    ]
    interval = share_interval(flips, [each.cluster for each in scored])
    limit = settings.checks.max_edit_flip_rate
    shifts = [abs(reward - each.rejected_reward) for each, reward in zip(scored, rewards, strict=True)]
    return {
        "flip_rate": sum(flips) / len(flips) if flips else None,
        "ci95": interval,
        "n": len(flips),
        "limit": limit,
        "passed": interval is not None and interval[1] <= limit,
        "mean_abs_shift": _finite(sum(shifts) / len(shifts) / reward_std) if shifts and reward_std > 0 else None,
    }


def _encode(
    tokenizer: PreTrainedTokenizerBase, scored: ScoredPair, text: str, settings: RewardModelSettings, *, finished: bool
) -> list[int]:
    cut_rather_than_stop = settings.model_copy(update={"overlong": "truncate"})
    where = f"record {scored.pair.record.id!r}"
    prompt_ids = scored.pair.prompt_ids
    return encode_answer(tokenizer, prompt_ids, text, cut_rather_than_stop, finished=finished, where=where)[0]


def _score(scorer: Scorer, scored: Sequence[ScoredPair], answers: Sequence[list[int]]) -> list[float]:
    if not answers:
        return []
    return [float(reward) for reward in scorer([each.pair.prompt_ids for each in scored], answers)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
