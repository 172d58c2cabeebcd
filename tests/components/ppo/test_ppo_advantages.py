"""Advantages: hand-worked numbers and invariances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.ppo.advantages import (
    estimate_advantages,
    generalised_advantages,
    masked_mean,
    masked_variance,
    token_rewards,
    whiten,
)


def _mask(*lengths: int, width: int | None = None) -> torch.Tensor:
    return torch.arange(width or max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def test_gae_follows_a_hand_worked_table() -> None:
    """gamma 0.5, lambda 0.5, so each step back takes a quarter of the advantage after it.

    row 0: r = 1 0 2, V = 0.5 1 1.5    delta = 1+.5*1-.5 = 1     0+.5*1.5-1 = -0.25     2-1.5 = 0.5
           A2 = 0.5    A1 = -0.25+.125 = -0.125    A0 = 1-.03125 = 0.96875
    row 1: r = -1 1, V = 2 0           delta = -1+0-2 = -3       1-0 = 1
           A1 = 1      A0 = -3+.25 = -2.75
    """
    rewards = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 1.0, 99.0]])
    values = torch.tensor([[0.5, 1.0, 1.5], [2.0, 0.0, 99.0]])

    advantages, returns = generalised_advantages(rewards, values, _mask(3, 2), gamma=0.5, lam=0.5)

    assert torch.allclose(advantages, torch.tensor([[0.96875, -0.125, 0.5], [-2.75, 1.0, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[1.46875, 0.875, 2.0], [-0.75, 1.0, 0.0]]))


def test_gae_with_lambda_one_is_the_reward_to_go_minus_the_value() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0]])
    values = torch.tensor([[0.1, 0.2, 0.3]])

    advantages, returns = generalised_advantages(rewards, values, _mask(3), gamma=1.0, lam=1.0)

    assert torch.allclose(returns, torch.tensor([[6.0, 5.0, 3.0]]))
    assert torch.allclose(advantages, returns - values)


def test_score_is_paid_at_the_last_real_token_and_kl_at_every_token() -> None:
    log_ratio = torch.tensor([[0.1, -0.2, 0.3], [0.5, 7.0, 7.0]])

    rewards = token_rewards(torch.tensor([2.0, -1.0]), log_ratio, _mask(3, 1), kl_coef=0.5)

    assert torch.allclose(rewards, torch.tensor([[-0.05, 0.1, 1.85], [-1.25, 0.0, 0.0]]))


def test_whitening_uses_real_tokens_only() -> None:
    mask = _mask(3, 1)
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, 100.0, 100.0]])

    white = whiten(values, mask)

    assert float(masked_mean(white, mask)) == pytest.approx(0.0, abs=1e-6)
    assert float(masked_variance(white, mask)) == pytest.approx(1.0, abs=1e-5)
    assert white[1, 1:].tolist() == [0.0, 0.0]


def test_whitening_a_constant_gives_zero() -> None:
    assert whiten(torch.full((2, 2), 5.0), _mask(2, 2)).abs().max() == 0


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    extra=st.integers(0, 5),
    seed=st.integers(0, 2**16),
    gamma=st.floats(0.1, 1.0),
    lam=st.floats(0.0, 1.0),
)
def test_padding_and_what_it_holds_change_nothing(
    lengths: list[int], extra: int, seed: int, gamma: float, lam: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    wide = max(lengths) + extra
    scores, log_ratio, values = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((len(lengths),), (len(lengths), wide), (len(lengths), wide))
    )
    options = {"kl_coef": 0.3, "gamma": gamma, "lam": lam}

    padded = estimate_advantages(scores, log_ratio, values, _mask(*lengths, width=wide), **options)
    width = max(lengths)
    tight = estimate_advantages(scores, log_ratio[:, :width], values[:, :width], _mask(*lengths), **options)

    assert torch.allclose(padded.advantages[:, :width], tight.advantages)
    assert torch.allclose(padded.returns[:, :width], tight.returns)
    assert padded.advantages[:, width:].abs().sum() == 0
