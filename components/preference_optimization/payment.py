"""What an answer is paid: the reward model's score of its token ids, in standard deviations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.preference_optimization.settings import RewardSettings
from components.shared.policy_optimization import RewardScale
from components.shared.scoring import rewards

__all__ = ["Payment"]


class Payment:
    """A reward function as TRL calls it, that reads token ids and no text.

    TRL's own reward path decodes an answer and tokenizes it again: the reward model would read other tokens than were
    sampled, and no EOS.
    """

    __name__ = "payment"  # what TRL logs it as

    def __init__(
        self,
        reward_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        scale: RewardScale,
        settings: RewardSettings,
        *,
        stops: Collection[int],
        batch_size: int,
    ) -> None:
        """Takes what it needs to pay.

        Args:
            reward_model: Sequence classifier with one label.
            tokenizer: Shared with the policy.
            scale: Mean and deviation of its raw rewards.
            settings: Clip and penalty.
            stops: Tokens that end an answer.
            batch_size: Answers a forward pass.
        """
        self._reward_model = reward_model
        self._tokenizer = tokenizer
        self._scale = scale
        self._settings = settings
        self._stops = frozenset(stops)
        self._batch_size = batch_size

    def raw(self, prompts_ids: Sequence[list[int]], responses_ids: Sequence[list[int]]) -> torch.Tensor:
        """The reward model's own numbers, `(n,)` float32."""
        return rewards(self._reward_model, self._tokenizer, prompts_ids, responses_ids, batch_size=self._batch_size)

    def __call__(self, prompts: Sequence[list[int]], completion_ids: Sequence[list[int]], **_: Any) -> list[float]:
        """Pay of each answer.

        Args:
            prompts: Token ids of each prompt.
            completion_ids: Token ids of each answer; padding at the end is taken off.
        """
        answers = [self._without_padding(ids) for ids in completion_ids]
        scores = (self.raw(prompts, answers) - self._scale.mean) / self._scale.std
        if self._settings.clip is not None:
            scores = scores.clamp(-self._settings.clip, self._settings.clip)
        finished = torch.tensor([answer[-1] in self._stops for answer in answers])
        return (scores - self._settings.missing_eos_penalty * ~finished).tolist()

    def _without_padding(self, ids: Sequence[int]) -> list[int]:
        """The answer itself: no sampled answer has a pad token, so what there is of them is padding."""
        return [token for token in ids if token != self._tokenizer.pad_token_id]
