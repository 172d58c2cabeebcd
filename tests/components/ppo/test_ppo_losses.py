"""The two losses: known numbers and where their gradient vanishes."""

from __future__ import annotations

import math

import pytest
import torch

from components.ppo.losses import policy_loss, value_loss


def test_policy_loss_of_known_ratios() -> None:
    """Clip 0.2. Ratios 1.5, 0.5, 1.1, 0.5 with advantages 1, 1, -2, -1:

    min(1.5, 1.2) = 1.2 (clipped)   min(0.5, 0.8) = 0.5   min(-2.2, -2.2) = -2.2   min(-0.5, -0.8) = -0.8 (clipped)
    """
    logprobs = torch.tensor([1.5, 0.5, 1.1, 0.5]).log()

    result = policy_loss(logprobs, torch.zeros(4), torch.tensor([1.0, 1.0, -2.0, -1.0]), clip_ratio=0.2)

    assert float(result.loss) == pytest.approx(-(1.2 + 0.5 - 2.2 - 0.8), abs=1e-6)
    assert int(result.clipped) == 2
    assert float(result.approx_kl) == pytest.approx(sum(r - 1 - math.log(r) for r in (1.5, 0.5, 1.1, 0.5)), abs=1e-6)


def test_clipped_tokens_have_no_gradient() -> None:
    logprobs = torch.tensor([1.5, 0.5]).log().requires_grad_(True)

    policy_loss(logprobs, torch.zeros(2), torch.tensor([1.0, 1.0]), clip_ratio=0.2).loss.backward()

    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.0, -0.5])


def test_gradient_at_ratio_one_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([0.7, -0.3])

    policy_loss(logprobs, logprobs.detach(), advantages, clip_ratio=0.2).loss.backward()

    assert torch.allclose(logprobs.grad, -advantages)  # pyright: ignore


def test_value_loss_takes_the_worse_of_clipped_and_unclipped_error() -> None:
    """Old value 0, clip 0.2. Value 1, return 1: error 0, clipped (0.2 - 1)^2 = 0.64. Value 1, return 0: 1, 0.04."""
    result = value_loss(torch.tensor([1.0, 1.0]), torch.zeros(2), torch.tensor([1.0, 0.0]), clip=0.2)

    assert float(result.loss) == pytest.approx(0.5 * (0.64 + 1.0))
    assert int(result.clipped) == 1


def test_value_loss_without_clip_is_half_the_squared_error() -> None:
    result = value_loss(torch.tensor([1.0, 3.0]), torch.zeros(2), torch.tensor([0.0, 1.0]), clip=None)

    assert float(result.loss) == pytest.approx(2.5)
    assert int(result.clipped) == 0


def test_dual_clip_bounds_the_loss_of_a_negative_advantage_and_its_gradient() -> None:
    logprobs = torch.log(torch.tensor([1.0, 2.0, 10.0, 10.0])).requires_grad_()
    advantages = torch.tensor([-1.0, -1.0, -1.0, 1.0])

    bounded = policy_loss(logprobs, torch.zeros(4), advantages, clip_ratio=0.2, dual_clip=3.0)
    unbounded = policy_loss(logprobs, torch.zeros(4), advantages, clip_ratio=0.2)

    assert bounded.loss.item() == pytest.approx(1.0 + 2.0 + 3.0 - 1.2)
    assert unbounded.loss.item() == pytest.approx(1.0 + 2.0 + 10.0 - 1.2)
    assert int(bounded.clipped) == 2
    bounded.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([1.0, 2.0, 0.0, 0.0])
