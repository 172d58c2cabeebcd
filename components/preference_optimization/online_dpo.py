"""Online DPO on token ids: TRL's experimental trainer, with two of its faults mended."""

from __future__ import annotations

import warnings
from typing import Any

from torch.utils.data import Sampler

from components.preference_optimization.sampling import SamplingFromPolicy
from components.shared.hf_training import EpochSampler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it is experimental is known; the tests watch over what is relied on
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

__all__ = ["OnlineDPO", "OnlineDPOConfig"]


class OnlineDPO(SamplingFromPolicy, OnlineDPOTrainer):
    """`OnlineDPOTrainer` on token ids: two answers to each prompt, ranked by their pay."""

    def __init__(self, lengths: list[int], **options: Any) -> None:
        """Makes the trainer.

        Args:
            lengths: Tokens of each prompt.
            **options: Of `OnlineDPOTrainer`.
        """
        super().__init__(**options)
        self._lengths = lengths
        # Its training_step leaves the mean over forward passes to accelerate, which transformers tells of one pass: the
        # gradient would be their sum, and be clipped as such.
        self.accelerator.gradient_accumulation_steps = self.args.gradient_accumulation_steps

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return EpochSampler(self._lengths, self.args.per_device_train_batch_size, self.args.seed)

    def _generate(self, model: Any, prompts: list[list[int]], images: Any = None) -> Any:
        return *self.paired_answers(prompts, max_tokens=self.args.max_new_tokens), None
