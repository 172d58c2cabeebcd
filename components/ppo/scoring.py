"""Scoring a rollout: rewards, log-probabilities under policy and reference, values, KL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from components.ppo.errors import NotFiniteError
from components.ppo.kl_control import sequence_k1, sequence_k3
from components.ppo.models import ActorCritic
from components.ppo.packing import PackedBatch, length_sorted_chunks, pack, response_mask, unpack
from components.ppo.rewards import Rewards
from components.ppo.rollout import Rollout
from components.ppo.settings import PPOSettings
from components.ppo.sharding import all_finite
from components.shared.world import World

__all__ = ["Scores", "require_finite", "score_rollout"]


@dataclass(frozen=True)
class Scores:
    """What is known about a rollout before anything is learned from it; float32, no gradient.

    Attributes:
        rewards: `(batch,)`, the main reward model's raw numbers.
        scores: `(batch,)`, shaped: what PPO is paid at the end of a response.
        logprobs: `(batch, time)`, log pi of each response token, nats.
        reference_logprobs: `(batch, time)`, the same under the reference.
        values: `(batch, time)`, value before each token.
        entropy: `(batch, time)`, of the policy's distribution before each token, nats.
        mask: `(batch, time)`, True on real tokens.
        kl: `(batch,)`, k1, nats per sequence.
        kl_k3: `(batch,)`, k3, nats per sequence.
        decode_gap: Largest difference between a log-probability seen while decoding and the one computed again, nats.
        recomputed: Whether that was above the tolerance, so that all were computed again.
        reward_parts: `(batch,)` each, by column of the history; see `ShapedRewards.parts`.
    """

    rewards: Tensor
    scores: Tensor
    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    entropy: Tensor
    mask: Tensor
    kl: Tensor
    kl_k3: Tensor
    decode_gap: float
    recomputed: bool = False
    reward_parts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def log_ratio(self) -> Tensor:
        """log pi - log pi_ref, `(batch, time)`, nats."""
        return self.logprobs - self.reference_logprobs


@torch.no_grad()
def score_rollout(
    models: ActorCritic,
    rewards: Rewards,
    tokenizer: PreTrainedTokenizerBase,
    rollout: Rollout,
    *,
    settings: PPOSettings,
    check: int = 0,
    world: World | None = None,
) -> Scores:
    """Scores every episode.

    What decoding saw of the policy (log-probabilities, entropy, values of a shared trunk) is taken as it is where it
    agrees with a full forward pass: one micro-batch is computed again in every step, and if it differs by more than
    `decode_tolerance_nats` all of them are.

    Args:
        models: Policy, reference and value model.
        rewards: Says what each response is worth.
        tokenizer: Of all models.
        rollout: The episodes.
        settings: Of the run.
        check: Which micro-batch is computed again; counts on from step to step.
        world: Each process scores its share.

    Raises:
        NotFiniteError: A reward, log-probability or value is NaN or infinite.
        RewardRuleError: A rule failed.
    """
    world = world or World()
    passes = _Passes(models, rollout, settings, pad_id=int(tokenizer.pad_token_id), world=world)  # pyright: ignore
    gap = passes.policy([check % len(passes.chunks)])
    recomputed = gap > settings.decode_tolerance_nats
    if recomputed:
        gap = max(gap, passes.policy([i for i in range(len(passes.chunks)) if i != check % len(passes.chunks)]))
    passes.reference_and_values(values_at_decode=models.trunk_is_shared and not recomputed)
    columns, mask = passes.columns, passes.mask
    turns = world.turns(range(len(rollout)))
    mine = [row for row, counts in turns if counts]
    raw = torch.zeros((len(rewards.names), len(rollout)), device=models.device)
    if turns:
        raw[:, mine] = rewards.raw(rollout, [row for row, _ in turns]).to(models.device)[:, : len(mine)]
    world.sum_(raw)
    shaped = rewards.shape(raw, rollout)
    require_finite("log-probabilities or values", *columns.values())
    log_ratio = columns["pi"] - columns["ref"]
    return Scores(
        rewards=raw[0],
        scores=shaped.scores,
        reward_parts=shaped.parts,
        logprobs=columns["pi"],
        reference_logprobs=columns["ref"],
        values=columns["value"],
        entropy=columns["entropy"],
        mask=mask,
        kl=sequence_k1(log_ratio, mask),
        kl_k3=sequence_k3(log_ratio, mask),
        decode_gap=gap,
        recomputed=recomputed,
    )


class _Passes:
    """Forward passes over a rollout, micro-batch by micro-batch, into `(batch, time)` columns.

    Attributes:
        mask: `(batch, time)`, True on real tokens.
        columns: `pi`, `entropy`, `ref` and `value`, zero on padding; the first two start as decoding saw them.
        chunks: Episodes of each micro-batch.
    """

    def __init__(
        self, models: ActorCritic, rollout: Rollout, settings: PPOSettings, *, pad_id: int, world: World
    ) -> None:
        self._models = models
        self._rollout = rollout
        self._temperature = settings.temperature
        self._pad_id = pad_id
        self._world = world
        self.mask = response_mask(rollout.responses_ids, device=models.device)
        self.chunks = list(length_sorted_chunks(range(len(rollout)), rollout.sequence_lengths, settings.microbatch))
        self.columns = {
            "pi": self._decoded(rollout.decode_logprobs),
            "entropy": self._decoded(rollout.decode_entropies),
            "ref": self._zeros(),
            "value": self._decoded(rollout.decode_values),
        }

    def policy(self, chunks: list[int]) -> float:
        """Computes these micro-batches' log-probabilities and entropies again.

        Returns:
            Largest difference between a log-probability seen while decoding and the one computed here, nats.
        """
        before = self.columns["pi"].clone()
        fresh = {"pi": self._zeros(), "entropy": self._zeros()}
        for index, counts in self._world.turns(chunks):
            batch = self._pack(self.chunks[index])
            found = self._models.policy_logprobs(batch, temperature=self._temperature, entropy=True)
            if counts:
                self._put(fresh, self.chunks[index], {"pi": found.logprobs, "entropy": found.entropy})
        self._world.sum_(*fresh.values())
        chosen = [row for index in chunks for row in self.chunks[index]]
        rows = torch.tensor(chosen, dtype=torch.long, device=self.mask.device)
        for name, values in fresh.items():
            self.columns[name][rows] = values[rows]
        return float((self.columns["pi"] - before)[rows].abs().max()) if len(rows) else 0.0

    def reference_and_values(self, *, values_at_decode: bool) -> None:
        """Log-probabilities under the reference, and values unless decoding has seen them."""
        fresh = {"ref": self._zeros()} | ({} if values_at_decode else {"value": self._zeros()})
        for index, counts in self._world.turns(range(len(self.chunks))):
            batch = self._pack(self.chunks[index])
            found = {"ref": self._models.reference_logprobs(batch, temperature=self._temperature)}
            if not values_at_decode:
                found["value"] = self._models.values(batch)
            if counts:
                self._put(fresh, self.chunks[index], found)
        self._world.sum_(*fresh.values())
        self.columns |= fresh

    def _pack(self, chosen: list[int]) -> PackedBatch:
        prompts = [self._rollout.prompts_ids[i] for i in chosen]
        responses = [self._rollout.responses_ids[i] for i in chosen]
        return pack(prompts, responses, pad_id=self._pad_id, device=self._models.device)

    def _put(self, columns: dict[str, Tensor], chosen: list[int], packed: Mapping[str, Tensor | None]) -> None:
        rows = torch.tensor(chosen, device=self.mask.device)
        for name, values in packed.items():
            if values is not None:
                columns[name][rows] = unpack(values, self.mask[rows])

    def _decoded(self, numbers: list[list[float]]) -> Tensor:
        if not numbers:
            return self._zeros()
        flat = torch.tensor([number for row in numbers for number in row], device=self.mask.device)
        return unpack(flat, self.mask)

    def _zeros(self) -> Tensor:
        return torch.zeros(self.mask.shape, device=self.mask.device)


def require_finite(what: str, *tensors: Tensor) -> None:
    """Stops the training on NaN or infinity.

    Raises:
        NotFiniteError: Some number is not finite.
    """
    if not all_finite(tensors):
        raise NotFiniteError(
            f"{what} became NaN or infinite; nothing more was learned.",
            where="ppo",
            hint="Resume from the last checkpoint with lower learning rates, or check the reward model.",
        )
