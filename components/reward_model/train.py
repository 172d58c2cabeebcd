"""Bradley-Terry training of a scalar head on the policy's weights, with TRL's `RewardTrainer`.

loss = -log sigmoid(r(chosen) - r(rejected) - margin)
(Ouyang et al. 2022, equation 1; the margin: Touvron et al. 2023, section 3.2.2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

from components.reward_model.pairs import Pair
from components.reward_model.settings import RewardModelSettings
from components.shared.hf_checkpoints import TrainingFolder
from components.shared.hf_training import (
    LengthGroupedBatches,
    fill_last_batch,
    lora_config,
    trained_weights_in_float32,
    training_arguments,
)
from components.shared.world import World

__all__ = ["make_trainer", "training_rows"]

_COUNTS = "counts"
"""Column that is 1 for a pair and 0 for what fills a batch up; only there where something does."""


class _Trainer(LengthGroupedBatches, RewardTrainer):
    """`RewardTrainer` whose batches depend on seed and epoch alone."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's; where something fills the batch up, the same of the pairs alone, over all processes."""
        counts = inputs.pop(_COUNTS, None)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        scores: Any = outputs.logits.squeeze(-1)  # pyright: ignore[reportAttributeAccessIssue]
        if counts is not None:
            pairs: Any = self.accelerator.reduce(counts.sum())
            if pairs < len(counts) * self.args.world_size:
                loss = self._loss_of_pairs(scores, inputs.get("margin", 0.0), counts, pairs)
        return (loss, outputs) if return_outputs else loss

    def _loss_of_pairs(self, scores: Any, margin: Any, counts: Any, pairs: Any) -> Any:
        """The mean over the pairs once processes are averaged; TRL's figures of the batch are made right as well.

        Args:
            scores: `(2 rows,)`, the chosen ones first.
            margin: `(rows,)`, or a number.
            counts: `(rows,)`, 1 for a pair.
            pairs: How many there are over all processes.
        """
        chosen, rejected = scores.chunk(2)
        centring: float | None = self.args.center_rewards_coefficient  # pyright: ignore[reportAttributeAccessIssue]
        losses = -logsigmoid(chosen - rejected - margin)
        if centring is not None:
            losses = losses + centring * (chosen + rejected) ** 2
        with torch.no_grad():
            means = torch.stack([chosen > rejected, chosen - rejected, (chosen + rejected) / 2]) * counts
            means = (self.accelerator.reduce(means.sum(1)) / pairs).tolist()
            real = self.accelerator.gather(torch.stack([scores, counts.repeat(2)], dim=1))
            real = real[real[:, 1] == 1, 0]
        figures = dict(zip(("accuracy", "margin", "mean_reward"), means, strict=True))
        figures |= {"min_reward": real.min().item(), "max_reward": real.max().item()}
        for name, value in figures.items():
            self._metrics["train"][name][-1] = value
        return (losses * counts).sum() * self.args.world_size / pairs


class _Collator(DataCollatorForPreference):
    """TRL's, that hands on which rows are pairs."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        return batch | {_COUNTS: torch.tensor([example[_COUNTS] for example in examples])}


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
    world: World | None = None,
) -> RewardTrainer:
    """A trainer of `model` on `pairs`.

    `max_length` stays unset: TRL drops overlong pairs without a word, ours were cut by `read_pairs` already.
    """
    datasets.disable_progress_bars()
    config = RewardConfig(
        **training_arguments(settings, folder=folder, seed=seed, world=world),
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
    _fill_last_batch(trainer, tokenizer)
    return trainer


def _fill_last_batch(trainer: _Trainer, tokenizer: PreTrainedTokenizerBase) -> None:
    rows: Any = trainer.train_dataset
    if trainer.args.world_size == 1:
        return
    trainer.train_dataset = rows.add_column(_COUNTS, [1.0] * len(rows))
    fill_last_batch(trainer, lambda row: row | {_COUNTS: 0.0})
    if not trainer.fill:
        trainer.train_dataset = rows
        return
    trainer.args.remove_unused_columns = False  # the rows have no others, and TRL's trainer does not know the new one
    trainer.data_collator = _Collator(pad_token_id=int(tokenizer.pad_token_id))  # pyright: ignore[reportArgumentType]
