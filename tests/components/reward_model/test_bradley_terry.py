"""TRL's own reward loss on a teaching example whose numbers are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_pairs import make_tokenizer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

N_PAIRS, EPOCHS, LEARNING_RATE = 3, 300, 0.2
BASELINE, FIRST_CHOSEN = 4, 5
"""Token ids: one for every rejected answer, and one for each of the three chosen answers."""

FEATURE_DIFFERENCES = [[1.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0], [0, 0, 1.0, 0, 1.0]]


class LinearScorer(PreTrainedModel):
    """reward = weights . features of the answer's only token."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        features = torch.zeros(FIRST_CHOSEN + N_PAIRS, len(FEATURE_DIFFERENCES[0]))
        features[FIRST_CHOSEN:] = torch.tensor(FEATURE_DIFFERENCES)
        self.register_buffer("features", features)
        self.score = nn.Linear(features.shape[1], 1, bias=False)
        nn.init.zeros_(self.score.weight)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights start at zero."""

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.score(self.features[input_ids[:, 0]]))


def make_trainer(folder: Path) -> RewardTrainer:
    config = RewardConfig(
        output_dir=str(folder),
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        max_length=None,
    )
    rows = {"chosen_ids": [[FIRST_CHOSEN + i] for i in range(N_PAIRS)], "rejected_ids": [[BASELINE]] * N_PAIRS}
    return RewardTrainer(
        model=LinearScorer(PretrainedConfig(num_labels=1)),
        args=config,
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=make_tokenizer(),
    )


def test_trls_reward_loss_reproduces_the_teaching_example(tmp_path):
    trainer = make_trainer(tmp_path)
    model = trainer.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    average_losses = []
    for _ in range(EPOCHS):
        losses = []
        for pair in trainer.train_dataset:
            loss = trainer.compute_loss(model, trainer.data_collator([pair]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        average_losses.append(sum(losses) / N_PAIRS)

    assert [average_losses[epoch] for epoch in (0, 100, 200)] == pytest.approx([0.6931, 0.0441, 0.0217], abs=5e-5)
    weights = model.score.weight.detach().flatten().tolist()
    assert weights == pytest.approx([4.048, 4.048, 2.381, 0.0, 2.381], abs=5e-4)


def test_a_margin_asks_for_that_much_more_reward_difference(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = {"input_ids": torch.tensor([[FIRST_CHOSEN], [BASELINE]]), "attention_mask": torch.ones(2, 1)}

    loss = trainer.compute_loss(trainer.model, {**batch, "margin": torch.tensor([0.7])})

    assert loss.item() == pytest.approx(math.log1p(math.exp(0.7)))
