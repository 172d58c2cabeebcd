"""The two losses of PPO, as sums over real tokens.

Tokens come packed: one flat axis of real response tokens, no padding to mask. Losses are *sums*; the caller divides
by the number of real tokens of the whole minibatch, so that the gradient does not depend on how the minibatch is cut
into micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PolicyLoss", "ValueLoss", "policy_loss", "value_loss"]


@dataclass(frozen=True)
class PolicyLoss:
    """Sums over tokens.

    Attributes:
        loss: Scalar with gradient.
        clipped: Tokens whose clipped term was the one taken.
        approx_kl: Estimate k3 of KL(old || new) in nats, summed over tokens: how far the update has moved.
    """

    loss: Tensor
    clipped: Tensor
    approx_kl: Tensor


@dataclass(frozen=True)
class ValueLoss:
    """Sums over tokens: `loss` with gradient, `clipped` tokens whose clipped term was the one taken."""

    loss: Tensor
    clipped: Tensor


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_ratio: float, dual_clip: float | None = None
) -> PolicyLoss:
    """Clipped surrogate objective (Schulman et al. 2017, equation 7), negated and summed.

    Where the advantage is negative the clip leaves the loss unbounded above: a large ratio of one token can outweigh a
    whole batch. The dual clip (Ye et al. 2020, equation 5) bounds it at `-dual_clip * advantage`.

    Args:
        logprobs: `(tokens,)` under the policy being updated.
        old_logprobs: `(tokens,)` under the policy that sampled.
        advantages: `(tokens,)`.
        clip_ratio: Half-width of the range that the probability ratio may move within.
        dual_clip: Above 1; None for no bound.
    """
    log_ratio = logprobs - old_logprobs
    ratio = torch.exp(log_ratio)
    unclipped = -advantages * ratio
    clipped = -advantages * torch.clamp(ratio, 1.0 - clip_ratio, 1.0 + clip_ratio)
    loss = torch.maximum(unclipped, clipped)
    held = clipped > unclipped
    if dual_clip is not None:
        bound = -dual_clip * advantages
        beyond = (advantages < 0) & (loss > bound)
        loss, held = torch.where(beyond, bound, loss), held | beyond
    with torch.no_grad():
        approx_kl = (ratio - 1.0 - log_ratio).sum()
    return PolicyLoss(loss=loss.sum(), clipped=held.sum(), approx_kl=approx_kl)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None) -> ValueLoss:
    """Half the squared error, with the clip of OpenAI's PPO: the worse of the error with and without it.

    Args:
        values: `(tokens,)` of the value model being updated.
        old_values: `(tokens,)` at the time of sampling.
        returns: `(tokens,)`, the targets.
        clip: Half-width of the range around `old_values`; None for no clip.
    """
    error = (values - returns) ** 2
    if clip is None:
        return ValueLoss(loss=0.5 * error.sum(), clipped=torch.zeros((), dtype=torch.long, device=values.device))
    held = old_values + torch.clamp(values - old_values, -clip, clip)
    held_error = (held - returns) ** 2
    with torch.no_grad():
        taken = (held_error > error).sum()
    return ValueLoss(loss=0.5 * torch.maximum(error, held_error).sum(), clipped=taken)
