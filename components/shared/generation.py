"""Sampling exactly from the policy that is scored.

`transformers.generate` fills in sampling defaults at run time (top_k=50 among them); what it then samples is not the
policy whose log-probabilities are taken. This loop samples from softmax(logits / temperature) over all tokens but the
pad token, and from nothing else, returns the log-probability of each sampled token, and drops finished rows from the
batch and from the KV cache. Log-probabilities are taken without the pad token everywhere (`scoring.forbid_pad_`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from components.shared.models import stop_token_ids
from components.shared.scoring import forbid_pad_

__all__ = ["Generation", "generate"]


@dataclass
class Generation:
    """One sampled answer.

    Attributes:
        prompt_ids: Token ids of the prompt.
        response_ids: Token ids of the answer, its stop token included when it is finished.
        logprobs: log pi(token) of each response token, in nats, at the sampling temperature.
        finished: True when the answer ended with a stop token, False when it was cut at the length limit.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    finished: bool


@torch.no_grad()
def generate(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_ids: Sequence[list[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> list[Generation]:
    """Samples one answer a prompt, in the order of `prompts_ids`.

    Args:
        policy: Causal language model.
        tokenizer: Its tokenizer (pad and stop tokens).
        prompts_ids: Token ids of each prompt.
        max_new_tokens: Longest answer, in tokens.
        temperature: Sampling temperature; 0 takes the most likely token.
        batch_size: Answers sampled together; prompts of like length share a batch.
        seed: Seeds a generator of its own; without `seed` and `generator` torch's global one is used.
        generator: Random source, on the policy's device.

    Returns:
        One `Generation` a prompt.
    """
    if temperature < 0 or max_new_tokens < 1:
        raise ValueError(f"need temperature >= 0 and max_new_tokens >= 1, got {temperature} and {max_new_tokens}")
    device = policy.device
    if generator is None and seed is not None:
        generator = torch.Generator(device=device).manual_seed(seed)
    stops = torch.tensor(stop_token_ids(tokenizer, policy), device=device)
    was_training = policy.training
    policy.eval()
    order = sorted(range(len(prompts_ids)), key=lambda index: len(prompts_ids[index]))
    results: dict[int, Generation] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [prompts_ids[index] for index in chosen]
        pad = int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        sampled = _generate_batch(policy, batch, pad, stops, max_new_tokens, temperature, generator)
        results.update(zip(chosen, sampled, strict=True))
    policy.train(was_training)
    return [results[index] for index in range(len(prompts_ids))]


def _generate_batch(
    policy: PreTrainedModel,
    prompts_ids: list[list[int]],
    pad: int,
    stops: torch.Tensor,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
) -> list[Generation]:
    """Left-pads the prompts, then decodes token by token; rows leave the batch as they finish."""
    device = policy.device
    ids, mask = _left_pad(prompts_ids, pad, device)
    results = [Generation(prompt, [], [], False) for prompt in prompts_ids]
    active = torch.arange(len(prompts_ids), device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=policy.config)
    for step in range(max_new_tokens):
        output = policy(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens, logprobs = _sample(forbid_pad_(output.logits[:, -1].float(), pad), temperature, generator)
        stopped = torch.isin(tokens, stops)
        for row, token, logprob, stop in zip(
            active.tolist(), tokens.tolist(), logprobs.tolist(), stopped.tolist(), strict=True
        ):
            results[row].response_ids.append(token)
            results[row].logprobs.append(logprob)
            results[row].finished = stop
        keep = (~stopped).nonzero().squeeze(1)
        if len(keep) == 0 or step == max_new_tokens - 1:
            break
        if len(keep) < len(active):
            cache.batch_select_indices(keep)
            active, mask, positions, tokens = active[keep], mask[keep], positions[keep], tokens[keep]
        ids = tokens.unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return results


def _left_pad(rows: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, time) ids and mask, rows flush right."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _sample(
    logits: torch.Tensor, temperature: float, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (batch,) and their log-probabilities (batch,) from logits (batch, vocabulary)."""
    logprobs = torch.log_softmax(logits / temperature if temperature > 0 else logits, dim=-1)
    if temperature > 0:
        tokens = torch.multinomial(logprobs.exp(), 1, generator=generator).squeeze(1)
    else:
        tokens = logprobs.argmax(dim=-1)
    return tokens, logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)
