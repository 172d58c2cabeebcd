"""The update: a few passes over a step's episodes with the clipped losses.

Every optimizer step works on a minibatch; a minibatch is cut into micro-batches only to bound memory and to divide it
among processes, and its gradient is the sum over its real tokens divided by their number, however it is cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from components.ppo.advantages import Advantages
from components.ppo.losses import policy_loss, value_loss
from components.ppo.models import ActorCritic
from components.ppo.packing import PackedBatch, length_sorted_chunks, pack
from components.ppo.rollout import Rollout
from components.ppo.scoring import Scores, require_finite
from components.ppo.settings import PPOSettings
from components.ppo.sharding import clip_gradients, gather_optimizer, is_sharded, load_optimizer
from components.shared.world import World

__all__ = ["UpdateStatistics", "Updater"]

_ADAM = {"betas": (0.9, 0.95), "eps": 1e-5, "weight_decay": 0.0}
"""eps 1e-5 as in OpenAI's PPO; beta2 0.95 because an update sees few steps."""


@dataclass(frozen=True)
class UpdateStatistics:
    """Means over the update's optimizer steps; losses and shares are means over real tokens.

    Attributes:
        policy_loss: Clipped surrogate, negated.
        value_loss: Half the clipped squared error.
        clip_fraction: Share of tokens whose ratio was clipped.
        value_clip_fraction: Share of tokens whose value was clipped.
        approx_kl_update: k3 of KL(old || new) a token, nats: how far this update moved the policy.
        grad_norm: Norm of the policy's gradient before its clip.
        value_grad_norm: The same of the value model.
    """

    policy_loss: float
    value_loss: float
    clip_fraction: float
    value_clip_fraction: float
    approx_kl_update: float
    grad_norm: float
    value_grad_norm: float


@dataclass(frozen=True)
class _Part:
    """A micro-batch: its sequences, and of its tokens `(tokens,)` what was known before the update."""

    batch: PackedBatch
    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    @classmethod
    def of(
        cls,
        rollout: Rollout,
        scores: Scores,
        advantages: Advantages,
        chosen: list[int],
        *,
        pad_id: int,
        device: torch.device,
    ) -> _Part:
        prompts = [rollout.prompts_ids[i] for i in chosen]
        responses = [rollout.responses_ids[i] for i in chosen]
        rows = torch.tensor(chosen, device=device)
        mask = scores.mask[rows]
        known = (scores.logprobs, scores.values, advantages.advantages, advantages.returns)
        return cls(pack(prompts, responses, pad_id=pad_id, device=device), *(each[rows][mask] for each in known))


class Updater:
    """Holds the two optimizers and makes the updates."""

    def __init__(self, models: ActorCritic, settings: PPOSettings, *, pad_id: int, world: World | None = None) -> None:
        self._models = models
        self._world = world or World()
        self._settings = settings
        self._pad_id = pad_id
        self._policy_parameters = list(models.policy_parameters().values())
        self._value_parameters = list(models.value_parameters().values())
        self._policy_optimizer = _adam(self._policy_parameters, settings.policy_learning_rate)
        self._value_optimizer = _adam(self._value_parameters, settings.value_learning_rate)

    def update(
        self,
        rollout: Rollout,
        scores: Scores,
        advantages: Advantages,
        *,
        policy_rate: float = 1.0,
        value_rate: float = 1.0,
        train_policy: bool = True,
        seed: int = 0,
    ) -> UpdateStatistics:
        """Makes `ppo_epochs * minibatches` optimizer steps.

        Args:
            rollout: The episodes.
            scores: Their scores, before this update.
            advantages: Their advantages and returns.
            policy_rate: Factor on the policy's learning rate, in [0, 1].
            value_rate: Factor on the value model's.
            train_policy: False while only the value model learns.
            seed: Of the minibatches' order.

        Raises:
            NotFiniteError: A loss or gradient is NaN or infinite; the weights are those before that step.
        """
        _set_learning_rate(self._policy_optimizer, self._settings.policy_learning_rate * policy_rate)
        _set_learning_rate(self._value_optimizer, self._settings.value_learning_rate * value_rate)
        steps = [
            self._optimizer_step(rollout, scores, advantages, minibatch, train_policy=train_policy)
            for minibatch in self._minibatches(len(rollout), seed)
        ]
        return UpdateStatistics(
            **{f.name: sum(getattr(step, f.name) for step in steps) / len(steps) for f in fields(UpdateStatistics)}
        )

    def accumulate_gradients(
        self,
        rollout: Rollout,
        scores: Scores,
        advantages: Advantages,
        minibatch: list[int],
        *,
        train_policy: bool = True,
    ) -> dict[str, float]:
        """Adds the gradient of both losses on a minibatch to the parameters' `.grad`, over all processes.

        Returns:
            `policy_loss`, `value_loss`, `clip_fraction`, `value_clip_fraction`, `approx_kl_update`: means over tokens.
        """
        tokens = sum(len(rollout.responses_ids[i]) for i in minibatch)
        names = ("policy_loss", "value_loss", "clip_fraction", "value_clip_fraction", "approx_kl_update")
        sums = torch.zeros(len(names), dtype=torch.float64, device=self._models.device)
        chunks = list(length_sorted_chunks(minibatch, rollout.sequence_lengths, self._settings.microbatch))
        for chosen, counts in self._world.turns(chunks):
            part = _Part.of(rollout, scores, advantages, chosen, pad_id=self._pad_id, device=self._models.device)
            over = tokens if counts else math.inf  # a pass that does not count has a gradient of zero
            found = self._shared_pass(part, over, train_policy) if self._models.trunk_is_shared else {}
            if not self._models.trunk_is_shared:
                # One backward pass after the other: switching adapters in between would freeze what the first needs.
                found = self._value_pass(part, over)
                found |= self._policy_pass(part, over) if train_policy else {}
            if not counts:
                continue
            sums += torch.stack([found.get(name, torch.zeros(())).to(sums) for name in names])
        self._world.sum_(sums)
        self._world.sum_gradients(self._value_parameters)
        if train_policy:
            self._world.sum_gradients(self._policy_parameters)
        return dict(zip(names, (sums / tokens).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Both optimizers' state, whole; all processes take part, the first alone gets what was sharded."""
        keep = self._world.is_main
        return {
            "policy": gather_optimizer(self._policy_optimizer, keep=keep),
            "value": gather_optimizer(self._value_optimizer, keep=keep),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        load_optimizer(self._policy_optimizer, state["policy"])
        load_optimizer(self._value_optimizer, state["value"])

    def _minibatches(self, episodes: int, seed: int) -> Iterator[list[int]]:
        random = np.random.default_rng(seed)
        for _ in range(self._settings.ppo_epochs):
            for part in np.array_split(random.permutation(episodes), self._settings.minibatches):
                yield part.tolist()

    def _value_pass(self, part: _Part, tokens: float) -> dict[str, Tensor]:
        """Backward pass of the value loss over `tokens`; sums over the part's tokens."""
        loss, found = self._value_loss(self._models.values(part.batch), part)
        (loss / tokens).backward()
        return found

    def _policy_pass(self, part: _Part, tokens: float) -> dict[str, Tensor]:
        """Backward pass of the policy loss over `tokens`; sums over the part's tokens."""
        scored = self._models.policy_logprobs(part.batch, temperature=self._settings.temperature)
        loss, found = self._policy_loss(scored.logprobs, part)
        (loss / tokens).backward()
        return found

    def _shared_pass(self, part: _Part, tokens: float, train_policy: bool) -> dict[str, Tensor]:
        """Both in one pass through the shared trunk; while the critic warms up, the head alone learns."""
        logprobs, values = self._models.policy_logprobs_and_values(
            part.batch, temperature=self._settings.temperature, detach_trunk=not train_policy
        )
        value, found = self._value_loss(values, part)
        total = self._settings.value_coef * value
        if train_policy:
            policy, more = self._policy_loss(logprobs, part)
            total, found = total + policy, found | more
        (total / tokens).backward()
        return found

    def _value_loss(self, values: Tensor, part: _Part) -> tuple[Tensor, dict[str, Tensor]]:
        found = value_loss(values, part.old_values, part.returns, clip=self._settings.value_clip)
        return found.loss, {"value_loss": found.loss.detach(), "value_clip_fraction": found.clipped}

    def _policy_loss(self, logprobs: Tensor, part: _Part) -> tuple[Tensor, dict[str, Tensor]]:
        found = policy_loss(
            logprobs,
            part.old_logprobs,
            part.advantages,
            clip_ratio=self._settings.clip_ratio,
            dual_clip=self._settings.dual_clip,
        )
        return found.loss, {
            "policy_loss": found.loss.detach(),
            "clip_fraction": found.clipped,
            "approx_kl_update": found.approx_kl,
        }

    def _optimizer_step(
        self, rollout: Rollout, scores: Scores, advantages: Advantages, minibatch: list[int], *, train_policy: bool
    ) -> UpdateStatistics:
        self._policy_optimizer.zero_grad(set_to_none=True)
        self._value_optimizer.zero_grad(set_to_none=True)
        means = self.accumulate_gradients(rollout, scores, advantages, minibatch, train_policy=train_policy)
        limit = self._settings.max_grad_norm
        value_norm = clip_gradients(self._value_parameters, limit)
        policy_norm = clip_gradients(self._policy_parameters, limit) if train_policy else torch.zeros(())
        require_finite("a loss or its gradient", value_norm, policy_norm, torch.tensor(list(means.values())))
        self._value_optimizer.step()
        if train_policy:
            self._policy_optimizer.step()
        return UpdateStatistics(**means, grad_norm=float(policy_norm), value_grad_norm=float(value_norm))


def _adam(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.AdamW:
    kinds = [[p for p in parameters if is_sharded(p) is kind] for kind in (False, True)]  # one kernel takes one kind
    groups = [{"params": of_kind} for of_kind in kinds if of_kind]
    return torch.optim.AdamW(groups, lr=learning_rate, **_ADAM)  # pyright: ignore[reportArgumentType]


def _set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
