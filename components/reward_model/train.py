"""Bradley-Terry training of a scalar head on the policy's weights, with TRL's `RewardTrainer`.

loss = -log sigmoid(r(chosen) - r(rejected) - margin)
(Ouyang et al. 2022, equation 1; the margin: Touvron et al. 2023, section 3.2.2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from components.reward_model.pairs import Pair
from components.reward_model.settings import RewardModelSettings
from components.shared.hf_checkpoints import TrainingFolder
from components.shared.hf_training import (
    LengthGroupedBatches,
    lora_config,
    trained_weights_in_float32,
    training_arguments,
)

__all__ = ["make_trainer", "training_rows"]


class _Trainer(LengthGroupedBatches, RewardTrainer):
    """`RewardTrainer` whose batches depend on seed and epoch alone."""


def training_rows(pairs: Sequence[Pair], settings: RewardModelSettings) -> datasets.Dataset:
    """Rows for `RewardTrainer`: `chosen_ids`, `rejected_ids`, and `margin` when strengths differ."""
    columns: dict[str, list[Any]] = {
        "chosen_ids": [pair.prompt_ids + pair.chosen_ids for pair in pairs],
        "rejected_ids": [pair.prompt_ids + pair.rejected_ids for pair in pairs],
    }
    strengths = [pair.record.strength for pair in pairs]
    if settings.use_margin_from_strength and len(set(strengths)) > 1:
        columns["margin"] = [settings.margin_scale * strength for strength in strengths]
    return datasets.Dataset.from_dict(columns)


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    settings: RewardModelSettings,
    *,
    folder: TrainingFolder,
    seed: int,
) -> RewardTrainer:
    """A trainer of `model` on `pairs`.

    `max_length` stays unset: TRL drops overlong pairs without a word, ours were cut by `read_pairs` already.
    """
    datasets.disable_progress_bars()
    config = RewardConfig(
        **training_arguments(settings, folder=folder, seed=seed),
        max_length=None,
        center_rewards_coefficient=settings.center_rewards_coefficient or None,
    )
    trainer = _Trainer(
        model=model,
        args=config,
        train_dataset=training_rows(pairs, settings),
        processing_class=tokenizer,
        peft_config=lora_config(settings, task_type="SEQ_CLS"),
    )
    trained_weights_in_float32(trainer.model, settings)
    return trainer
