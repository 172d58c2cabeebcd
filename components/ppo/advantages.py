"""From scores to advantages: rewards per token, generalised advantage estimation, whitening.

All arrays are `(batch, time)` over response tokens, right-padded; `mask` is True on real tokens. All arithmetic is
float32 (or wider, when given so).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Advantages",
    "estimate_advantages",
    "generalised_advantages",
    "masked_mean",
    "masked_variance",
    "token_rewards",
    "whiten",
]


@dataclass(frozen=True)
class Advantages:
    """What the update learns from.

    Attributes:
        advantages: `(batch, time)`, whitened over real tokens, zero on padding.
        returns: `(batch, time)`, targets of the value model, zero on padding.
    """

    advantages: Tensor
    returns: Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is True (any equal shapes)."""
    return (values * mask).sum() / mask.sum()


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Population variance of `values` where `mask` is True."""
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask)


def token_rewards(scores: Tensor, log_ratio: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Reward of each token: the KL penalty `-kl_coef * log_ratio`, plus the score at the last token.

    Ziegler et al. 2019, equation 2, spread over tokens as in their code.

    Args:
        scores: `(batch,)`, the shaped score of each response.
        log_ratio: `(batch, time)`, log pi - log pi_ref of the sampled tokens, in nats.
        mask: `(batch, time)`; each row is a run of True, at least one, then False.
        kl_coef: Units of score per nat.

    Returns:
        `(batch, time)`, zero on padding.
    """
    rewards = torch.where(mask, -kl_coef * log_ratio, torch.zeros_like(log_ratio))
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores.to(rewards.dtype).unsqueeze(1))


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16).

    `delta_t = r_t + gamma * V_{t+1} - V_t`, `A_t = delta_t + gamma * lam * A_{t+1}`, where the value after the last
    token is zero: a response cut at the length limit ends there too.

    Args:
        rewards: `(batch, time)`.
        values: `(batch, time)`, value of the state *before* each token.
        mask: `(batch, time)`.
        gamma: Discount in (0, 1].
        lam: In [0, 1]: 0 is one-step temporal difference, 1 is Monte Carlo.

    Returns:
        Advantages and returns (`advantages + values`), both `(batch, time)` and zero on padding.
    """
    values = values * mask
    rewards = rewards * mask
    advantages = torch.zeros_like(values)
    next_advantage = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Zero mean and unit variance over real tokens; zero on padding. A constant becomes zero."""
    centred = (values - masked_mean(values, mask)) * mask
    return centred * torch.rsqrt(masked_variance(values, mask) + epsilon)


def estimate_advantages(
    scores: Tensor, log_ratio: Tensor, values: Tensor, mask: Tensor, *, kl_coef: float, gamma: float, lam: float
) -> Advantages:
    """Token rewards, then GAE, then whitening over the batch. See the functions above for shapes."""
    rewards = token_rewards(scores, log_ratio, mask, kl_coef=kl_coef)
    advantages, returns = generalised_advantages(rewards, values, mask, gamma=gamma, lam=lam)
    return Advantages(advantages=whiten(advantages, mask), returns=returns)
