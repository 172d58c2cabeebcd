"""Scoring a rollout: rewards, log-probabilities under policy and reference, values, KL."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.ppo.errors import NotFiniteError
from components.ppo.kl_control import sequence_k1, sequence_k3
from components.ppo.models import ActorCritic
from components.ppo.packing import PackedBatch, length_sorted_chunks, pack, response_mask, unpack
from components.ppo.reward_shaping import RewardShaper
from components.ppo.rollout import Rollout
from components.shared.scoring import rewards as reward_scores

__all__ = ["Scores", "require_finite", "score_rollout", "token_logprobs"]


@dataclass(frozen=True)
class Scores:
    """What is known about a rollout before anything is learned from it; float32, no gradient.

    Attributes:
        rewards: `(batch,)`, the reward model's raw numbers.
        scores: `(batch,)`, shaped: what PPO is paid at the end of a response.
        logprobs: `(batch, time)`, log pi of each response token by a full forward pass, nats.
        reference_logprobs: `(batch, time)`, the same under the reference.
        values: `(batch, time)`, value before each token.
        entropy: `(batch, time)`, of the policy's distribution before each token, nats.
        mask: `(batch, time)`, True on real tokens.
        kl: `(batch,)`, k1, nats per sequence.
        kl_k3: `(batch,)`, k3, nats per sequence.
        decode_gap: Largest difference between a log-probability seen while decoding and the one recomputed, nats.
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

    @property
    def log_ratio(self) -> Tensor:
        """log pi - log pi_ref, `(batch, time)`, nats."""
        return self.logprobs - self.reference_logprobs


def token_logprobs(logits: Tensor, batch: PackedBatch, *, temperature: float) -> Tensor:
    """log-probability of each response token, `(tokens,)`, from logits `(tokens, vocabulary)`."""
    scaled = logits / temperature if temperature != 1.0 else logits
    picked = scaled.gather(1, batch.targets.unsqueeze(1)).squeeze(1)
    return picked - torch.logsumexp(scaled, dim=1)


@torch.no_grad()
def score_rollout(
    models: ActorCritic,
    reward_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rollout: Rollout,
    *,
    shaper: RewardShaper,
    temperature: float,
    microbatch: int,
) -> Scores:
    """Scores every episode.

    Raises:
        NotFiniteError: A reward, log-probability or value is NaN or infinite.
    """
    mask = response_mask(rollout.responses_ids, device=models.device)
    columns = {name: torch.zeros(mask.shape, device=models.device) for name in ("pi", "ref", "value", "entropy")}
    pad_id = int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
    for chosen in length_sorted_chunks(range(len(rollout)), rollout.sequence_lengths, microbatch):
        responses = [rollout.responses_ids[i] for i in chosen]
        batch = pack([rollout.prompts_ids[i] for i in chosen], responses, pad_id=pad_id, device=models.device)
        logits = models.policy_logits(batch)
        packed = {
            "pi": token_logprobs(logits, batch, temperature=temperature),
            "entropy": _entropy(logits / temperature),
            "ref": token_logprobs(models.reference_logits(batch), batch, temperature=temperature),
            "value": models.values(batch),
        }
        rows = torch.tensor(chosen, device=models.device)
        for name, values in packed.items():
            columns[name][rows] = unpack(values, mask[rows])
    raw = reward_scores(reward_model, tokenizer, rollout.prompts_ids, rollout.responses_ids).to(models.device)
    require_finite("the reward model's rewards", raw)
    require_finite("log-probabilities or values", *columns.values())
    lengths = [len(response) for response in rollout.responses_ids]
    log_ratio = columns["pi"] - columns["ref"]
    return Scores(
        rewards=raw,
        scores=shaper.shape(raw, finished=rollout.finished, lengths=lengths),
        logprobs=columns["pi"],
        reference_logprobs=columns["ref"],
        values=columns["value"],
        entropy=columns["entropy"],
        mask=mask,
        kl=sequence_k1(log_ratio, mask),
        kl_k3=sequence_k3(log_ratio, mask),
        decode_gap=_decode_gap(rollout, columns["pi"], mask),
    )


def require_finite(what: str, *tensors: Tensor) -> None:
    """Stops the training on NaN or infinity.

    Raises:
        NotFiniteError: Some number is not finite.
    """
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise NotFiniteError(
            f"{what} became NaN or infinite; nothing more was learned.",
            where="ppo",
            hint="Resume from the last checkpoint with lower learning rates, or check the reward model.",
        )


def _entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits), `(tokens,)`, nats."""
    return torch.special.entr(torch.softmax(logits, dim=1)).sum(dim=1)


def _decode_gap(rollout: Rollout, logprobs: Tensor, mask: Tensor) -> float:
    seen = torch.tensor([p for row in rollout.decode_logprobs for p in row], device=logprobs.device)
    return float((seen - logprobs[mask]).abs().max())
