"""What PPO reaches: the closed-form optimum of KL-regularised reward, and the KL target."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_ppo import make_models, make_policy, make_settings, make_tokenizer
from torch import Tensor, nn

from components.ppo.packing import pack
from components.ppo.rollout import EncodedPrompt
from components.ppo.trainer import PPOTrainer

BETA = 0.5
PROMPT = [1, 4]


class _TokenReward(nn.Module):
    """Pays a fixed amount for each response token: the sum over positions after the prompt."""

    def __init__(self, values: Tensor, *, prompt_tokens: int) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self._prompt_tokens = prompt_tokens
        self.device = values.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        paid = self.values[input_ids] * attention_mask  # pyright: ignore
        return SimpleNamespace(logits=paid[:, self._prompt_tokens :].sum(dim=1, keepdim=True))


def _make_trainer(values: Tensor, prompts: list[list[int]], *, seed: int = 0, **overrides: Any) -> PPOTrainer:
    """Raw rewards, no penalties, value model from zero."""
    reward = {"normalise": "none", "clip": None, "missing_eos_penalty": 0.0}
    settings = make_settings(value_init="policy", reward=reward, microbatch=256, **overrides)
    return PPOTrainer(
        make_models(settings, policy=make_policy(initializer_range=0.02)),
        _TokenReward(values, prompt_tokens=len(prompts[0])),  # pyright: ignore
        make_tokenizer(),
        [EncodedPrompt(ids=ids, slice="all") for ids in prompts],
        settings=settings,
        seed=seed,
    )


@pytest.mark.parametrize("tokens", [1, 2])
def test_toy_reaches_the_closed_form_optimum(tokens: int) -> None:
    """pi* is proportional to pi_ref exp(r / beta): reward and KL within 5 % of it, by enumeration of all answers."""
    rewards = torch.linspace(-1.0, 1.0, 14)[torch.randperm(14, generator=torch.Generator().manual_seed(0))]
    trainer = _make_trainer(
        rewards,
        [PROMPT],
        steps=80,
        episodes_per_step=256,
        max_response_tokens=tokens,
        ppo_epochs=2,
        policy_learning_rate=1e-3 * tokens,
        value_learning_rate=1e-2,
        value_clip=None,
        kl={"control": "fixed", "init_coef": BETA},
    )
    answers = _every_answer(tokens)
    paid = torch.stack([rewards[answer].sum() for answer in answers])
    reference = _answer_logprobs(trainer, answers)
    optimum = torch.log_softmax(reference + paid / BETA, dim=0)

    trainer.train()

    best_reward, best_kl = _reward_and_kl(optimum, reference, paid)
    reward, kl = _reward_and_kl(_answer_logprobs(trainer, answers), reference, paid)
    assert float(reference.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert best_kl > 0.3  # far enough from the reference to mean something
    assert reward == pytest.approx(best_reward, rel=0.05)
    assert kl == pytest.approx(best_kl, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("target", [2.0, 6.0])
@pytest.mark.parametrize("value_model", ["separate", "shared_trunk"])
def test_kl_reaches_its_target_where_reward_pays_for_drift(target: float, seed: int, value_model: str) -> None:
    """Mean KL over the last third within 15 % of the target."""
    trainer = _make_trainer(
        torch.linspace(-1.0, 1.0, 14),
        [[1, token] for token in range(4, 14)],
        seed=seed,
        steps=120,
        episodes_per_step=64,
        max_response_tokens=8,
        ppo_epochs=2,
        policy_learning_rate=3e-3,
        value_learning_rate=1e-2,
        value_model=value_model,
        kl={"target_nats": target, "init_coef": 0.15},
    )

    trainer.train()

    last_third = [row["kl"] for row in trainer.history[-40:]]
    assert sum(last_third) / 40 == pytest.approx(target, rel=0.15)
    assert trainer.history[-1]["reward_mean"] > trainer.history[0]["reward_mean"] + 1.0


def _every_answer(tokens: int) -> list[list[int]]:
    """Every answer of at most `tokens` tokens that sampling can give: EOS (2) ends it, pad (0) is not sampled."""
    if tokens == 1:
        return [[token] for token in range(1, 14)]
    return [[2], *([first, *rest] for first in range(1, 14) if first != 2 for rest in _every_answer(tokens - 1))]


def _answer_logprobs(trainer: PPOTrainer, answers: list[list[int]]) -> Tensor:
    """log pi of each answer, `(answers,)`."""
    batch = pack([PROMPT] * len(answers), answers, pad_id=0, device=torch.device("cpu"))
    logprobs = trainer.models.policy_logprobs(batch, temperature=1.0).logprobs.detach()
    return torch.zeros(len(answers)).index_add(0, batch.rows, logprobs)


def _reward_and_kl(logprobs: Tensor, reference: Tensor, rewards: Tensor) -> tuple[float, float]:
    probabilities = logprobs.exp()
    return float((probabilities * rewards).sum()), float((probabilities * (logprobs - reference)).sum())
