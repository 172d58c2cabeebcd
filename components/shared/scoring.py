"""Log-probabilities of answers, rewards, and KL, on token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["forbid_pad_", "response_logprobs", "rewards", "right_pad", "sequence_kl"]


def forbid_pad_(logits: torch.Tensor, pad: int) -> torch.Tensor:
    """Takes the pad token, in place, out of the distribution over the last dimension of `logits`.

    A sampled pad token would look like padding: the reward model and the text would not see it, length and KL would
    count it. So no answer has one, and what is scored is the distribution that was sampled from.
    """
    return logits.index_fill_(-1, torch.tensor(pad, device=logits.device), -torch.inf)


@torch.no_grad()
def response_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_ids: Sequence[list[int]],
    responses_ids: Sequence[list[int]],
    *,
    batch_size: int = 32,
    temperature: float = 1.0,
) -> list[torch.Tensor]:
    """log pi(token | prompt, tokens before it) of every response token, by one full forward pass.

    pi is the policy without its pad token, as in `generation`.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer (pad token).
        prompts_ids: Token ids of each prompt.
        responses_ids: Token ids of each answer.
        batch_size: Sequences a forward pass; sequences of like length share one.
        temperature: The temperature that the answers were sampled at.

    Returns:
        One float32 tensor (response_length,) an answer, in nats, on the CPU, in the order given.
    """
    pad = int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
    results: list[torch.Tensor] = [torch.empty(0)] * len(responses_ids)
    for chosen in _length_sorted_batches(prompts_ids, responses_ids, batch_size):
        rows = [prompts_ids[i] + responses_ids[i] for i in chosen]
        ids, mask = right_pad(rows, pad, model.device)
        longest_response = max(len(responses_ids[i]) for i in chosen)
        width = ids.shape[1]
        first = min(len(prompts_ids[i]) for i in chosen) - 1
        keep = max(width - first, longest_response + 1)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
        logprobs = torch.log_softmax(forbid_pad_(logits[:, :-1].float() / temperature, pad), dim=-1)
        targets = ids[:, width - keep + 1 :]
        picked = logprobs.gather(2, targets.unsqueeze(2)).squeeze(2).cpu()
        offset = width - keep + 1
        for row, index in enumerate(chosen):
            start = len(prompts_ids[index]) - offset
            results[index] = picked[row, start : start + len(responses_ids[index])].clone()
    return results


@torch.no_grad()
def rewards(
    reward_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_ids: Sequence[list[int]],
    responses_ids: Sequence[list[int]],
    *,
    batch_size: int = 64,
) -> torch.Tensor:
    """The reward model's score of each prompt and answer.

    Returns:
        (n,) float32 on the CPU, in the order given.
    """
    scores = torch.empty(len(responses_ids), dtype=torch.float32)
    for chosen in _length_sorted_batches(prompts_ids, responses_ids, batch_size):
        rows = [prompts_ids[i] + responses_ids[i] for i in chosen]
        ids, mask = right_pad(rows, int(tokenizer.pad_token_id), reward_model.device)  # pyright: ignore[reportArgumentType]
        logits = reward_model(input_ids=ids, attention_mask=mask).logits
        scores[torch.tensor(chosen)] = logits.squeeze(1).float().cpu()
    return scores


def sequence_kl(policy_logprobs: Sequence[torch.Tensor], reference_logprobs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Monte Carlo estimate of KL(policy || reference) of each sampled sequence, in nats.

    k1 of Schulman, "Approximating KL divergence" (2020): the sum over tokens of log pi - log pi_ref. Unbiased; a single
    sequence may be negative.

    Args:
        policy_logprobs: One (response_length,) tensor a sequence, under the policy that sampled it.
        reference_logprobs: The same under the reference.

    Returns:
        (n,) float32.
    """
    pairs = zip(policy_logprobs, reference_logprobs, strict=True)
    return torch.stack([(policy - reference).sum() for policy, reference in pairs])


def right_pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, time) ids and attention mask, rows flush left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def _length_sorted_batches(
    prompts_ids: Sequence[list[int]], responses_ids: Sequence[list[int]], batch_size: int
) -> Iterator[list[int]]:
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts_ids, responses_ids, strict=True)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
