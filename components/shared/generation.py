"""Sampling exactly from the policy that is scored.

`transformers.generate` fills in sampling defaults at run time (top_k=50 among them); what it then samples is not the
policy whose log-probabilities are taken. This loop samples from softmax(logits / temperature) over all tokens but the
pad token, and from nothing else, returns the log-probability of each sampled token, and drops finished rows from the
batch and from the KV cache. Log-probabilities are taken without the pad token everywhere (`scoring.forbid_pad_`).

Every answer has a random stream of its own, named by the seed and the answer's number. What it says depends neither on
which other answers share its batch, nor on their order, nor on how many processes the work is divided among (up to the
rounding of the forward pass).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from components.shared.models import stop_token_ids

__all__ = ["Generation", "generate"]


@dataclass
class Generation:
    """One sampled answer.

    Attributes:
        prompt_ids: Token ids of the prompt.
        response_ids: Token ids of the answer, its stop token included when it is finished.
        logprobs: log pi(token) of each response token, in nats, at the sampling temperature.
        finished: True when the answer ended with a stop token, False when it was cut at the length limit.
        entropies: Entropy of the distribution that each token was sampled from, in nats.
        observed: What `observe` made of the hidden state that each token was sampled from; empty without it.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    finished: bool
    entropies: list[float] = field(default_factory=list)
    observed: list[float] = field(default_factory=list)


@torch.no_grad()
def generate(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_ids: Sequence[list[int]],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    samples_per_prompt: int = 1,
    batch_size: int = 64,
    numbers: Sequence[int] | None = None,
    observe: Callable[[Tensor], Tensor] | None = None,
    anyone: Callable[[bool], bool] | None = None,
) -> list[Generation]:
    """Samples answers, in the order of `prompts_ids`; those of one prompt follow each other.

    Args:
        policy: Causal language model.
        tokenizer: Its tokenizer (pad and stop tokens).
        prompts_ids: Token ids of each prompt.
        max_new_tokens: Longest answer, in tokens.
        seed: Of the random streams.
        temperature: Sampling temperature; 0 takes the most likely token.
        samples_per_prompt: Answers to each prompt; the prompt is read once for all of them.
        batch_size: Answers sampled together; prompts of like length share a batch.
        numbers: Number of each answer's random stream; by default its place in the result.
        observe: Called with the last hidden states `(batch, hidden)` before each token, returns `(batch,)` numbers to
            keep. For models with an output head.
        anyone: For a policy that several processes can only run together, each with as many prompts: called after each
            token with whether this process has a row to go on with, says whether any process has. One that has none
            keeps running the policy as long as others need it.

    Returns:
        `samples_per_prompt` generations a prompt.
    """
    if temperature < 0 or max_new_tokens < 1:
        raise ValueError(f"need temperature >= 0 and max_new_tokens >= 1, got {temperature} and {max_new_tokens}")
    count = len(prompts_ids) * samples_per_prompt
    numbers = range(count) if numbers is None else numbers
    if len(numbers) != count:
        raise ValueError(f"{len(numbers)} numbers for {count} answers")
    sampler = _Sampler(policy, tokenizer, max_new_tokens, temperature, samples_per_prompt, observe, anyone)
    was_training = policy.training
    policy.eval()
    order = sorted(range(len(prompts_ids)), key=lambda index: len(prompts_ids[index]))
    width = max(1, batch_size // samples_per_prompt)
    results: dict[int, Generation] = {}
    for start in range(0, len(order), width):
        prompts = order[start : start + width]
        answers = [index * samples_per_prompt + sample for index in prompts for sample in range(samples_per_prompt)]
        uniforms = np.stack([np.random.default_rng([seed, numbers[i]]).random(max_new_tokens) for i in answers])
        sampled = sampler.sample([prompts_ids[index] for index in prompts], uniforms)
        results.update(zip(answers, sampled, strict=True))
    policy.train(was_training)
    return [results[index] for index in range(count)]


@dataclass(frozen=True)
class _Sampler:
    """What all batches of a call share."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    temperature: float
    samples_per_prompt: int
    observe: Callable[[Tensor], Tensor] | None
    anyone: Callable[[bool], bool] | None

    def sample(self, prompts_ids: list[list[int]], uniforms: np.ndarray) -> list[Generation]:
        """Left-pads the prompts, then decodes token by token; rows leave the batch as they finish.

        Args:
            prompts_ids: Prompts of the batch.
            uniforms: `(answers, max_new_tokens)` in [0, 1): the random number of each token.
        """
        device, copies = self.policy.device, self.samples_per_prompt
        pad = int(self.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        stops = torch.tensor(stop_token_ids(self.tokenizer, self.policy), device=device)
        draws = torch.from_numpy(uniforms).to(device=device, dtype=_sum_dtype(device))
        results = [Generation(prompt, [], [], False) for prompt in prompts_ids for _ in range(copies)]
        active = torch.arange(len(results), device=device)
        ids, mask = _left_pad(prompts_ids, pad, device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.policy.config)
        for step in range(self.max_new_tokens):
            logits, observed = self._forward(ids, mask, positions, cache)
            if step == 0 and copies > 1:
                logits, mask, positions = (each.repeat_interleave(copies, dim=0) for each in (logits, mask, positions))
                observed = None if observed is None else observed.repeat_interleave(copies, dim=0)
                cache.batch_repeat_interleave(copies)
            tokens, logprobs, entropies = _choose(logits, pad, self.temperature, draws[active, step])
            stopped = torch.isin(tokens, stops)
            _append(results, active, tokens, logprobs, entropies, observed, stopped)
            keep = (~stopped).nonzero().squeeze(1)
            if step == self.max_new_tokens - 1 or not self._goes_on(len(keep) > 0):
                break
            if len(keep) == 0:
                self._keep_pace(ids[:1, -1:], self.max_new_tokens - 1 - step)
                break
            if len(keep) < len(active):
                cache.batch_select_indices(keep)
                active, mask, positions, tokens = active[keep], mask[keep], positions[keep], tokens[keep]
            ids = tokens.unsqueeze(1)
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return results

    def _goes_on(self, busy: bool) -> bool:
        return busy if self.anyone is None else self.anyone(busy)

    def _keep_pace(self, ids: Tensor, tokens: int) -> None:
        """Runs the policy for others' sake, for as long as they decode and for at most `tokens` tokens."""
        for left in reversed(range(tokens)):
            self.policy(input_ids=ids, use_cache=False, logits_to_keep=1)
            if left == 0 or not self._goes_on(False):
                return

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of the next token `(batch, vocabulary)`, float32, and what is observed of its hidden state."""
        seen: list[Tensor] = []
        head = self.policy.get_output_embeddings() if self.observe is not None else None
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) if head is not None else None
        try:
            output = self.policy(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        finally:
            if hook is not None:
                hook.remove()
        observed = self.observe(seen[0][:, -1]) if self.observe is not None else None
        return output.logits[:, -1].float(), observed


def _append(
    results: list[Generation],
    active: Tensor,
    tokens: Tensor,
    logprobs: Tensor,
    entropies: Tensor,
    observed: Tensor | None,
    stopped: Tensor,
) -> None:
    """Adds one token to each active row."""
    columns = [each.tolist() for each in (active, tokens, logprobs, entropies, stopped)]
    for row, token, logprob, entropy, stop in zip(*columns, strict=True):
        result = results[row]
        result.response_ids.append(token)
        result.logprobs.append(logprob)
        result.entropies.append(entropy)
        result.finished = stop
    if observed is not None:
        for row, number in zip(columns[0], observed.tolist(), strict=True):
            results[row].observed.append(number)


def _left_pad(rows: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(batch, time) ids and mask, rows flush right."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _sum_dtype(device: torch.device) -> torch.dtype:
    """Wide enough that no token's share of the cumulative probability is rounded away, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _choose(logits: Tensor, pad: int, temperature: float, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Samples by inverting the cumulative distribution.

    Args:
        logits: `(batch, vocabulary)`, float32; changed in place.
        pad: The token that is never sampled.
        temperature: 0 takes the most likely token.
        uniforms: `(batch,)` in [0, 1).

    Returns:
        Tokens, their log-probabilities and the entropies, `(batch,)` each, nats.
    """
    if temperature not in (0.0, 1.0):
        logits.div_(temperature)
    pad_index = torch.tensor(pad, device=logits.device)
    logits.index_fill_(1, pad_index, -torch.inf)
    shifted = logits.sub_(logits.amax(1, keepdim=True))
    weights = shifted.exp()
    total = weights.sum(1)
    shifted.index_fill_(1, pad_index, 0.0)  # its weight is 0, and 0 times -inf is not a number
    entropies = total.log() - (weights * shifted).sum(1) / total
    if temperature == 0:
        tokens = weights.argmax(1)
    else:
        cumulative = weights.to(uniforms.dtype).cumsum(1)
        thresholds = (uniforms * cumulative[:, -1]).unsqueeze(1)
        tokens = torch.searchsorted(cumulative, thresholds, right=True).squeeze(1)
        tokens.clamp_(max=logits.shape[1] - 1)
    logprobs = shifted.gather(1, tokens.unsqueeze(1)).squeeze(1) - total.log()
    return tokens, logprobs, entropies
