"""From hidden states to log-probabilities of the response tokens, a bounded number of logits at a time.

A vocabulary of 152,000 tokens in float32 is 0.6 MB for every token scored: the logits of a micro-batch outweigh all
its other activations. Here they are made a chunk of tokens at a time and thrown away:

- where the head is frozen (adapters), the gradient of log p(token) with respect to the hidden state,
  `(W[token] - sum_v p(v) W[v]) / temperature`, is taken in the forward pass, while the chunk's probabilities are there;
- where the head is trained, a chunk is computed again in the backward pass, unless one chunk holds everything.

Some architectures scale or cap their logits after the head; a probe tells, and for them the whole model is run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from components.ppo.packing import PackedBatch
from components.shared.scoring import forbid_pad_

__all__ = ["LogprobHead", "TokenLogprobs", "logprobs_of_logits", "response_hidden"]

_CHUNK_LOGITS = 2**21
"""Logits alive at once: 8 MB in float32, small beside a model and large enough to keep the matrix product busy."""


class TokenLogprobs(NamedTuple):
    """Of each response token, `(tokens,)`, float32, nats.

    Attributes:
        logprobs: log pi(token).
        entropy: Of the distribution before the token; without gradient. None where it was not asked for.
    """

    logprobs: Tensor
    entropy: Tensor | None


def response_hidden(trunk: nn.Module, batch: PackedBatch) -> Tensor:
    """Last hidden states at the positions that predict a response token, `(tokens, hidden)`."""
    hidden = trunk(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return hidden[batch.rows, batch.columns]


def logprobs_of_logits(
    logits: Tensor, targets: Tensor, *, pad_id: int, temperature: float, entropy: bool = False
) -> TokenLogprobs:
    """log softmax(logits / temperature) of `targets` `(tokens,)`, the pad token left out.

    Args:
        logits: `(tokens, vocabulary)`, float32; the pad token's are overwritten.
        targets: `(tokens,)` token ids.
        pad_id: The pad token.
        temperature: Above 0.
        entropy: Whether to take the entropy too.
    """
    scaled = forbid_pad_(logits, pad_id)
    scaled = scaled / temperature if temperature != 1.0 else scaled
    logprobs = scaled.gather(1, targets.unsqueeze(1)).squeeze(1) - torch.logsumexp(scaled, dim=1)
    spread = torch.special.entr(torch.softmax(scaled.detach(), dim=1)).sum(dim=1) if entropy else None
    return TokenLogprobs(logprobs, spread)


class LogprobHead:
    """The output head of a language model, as PPO uses it."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Finds out whether log-probabilities follow from the trunk's hidden states and the head alone."""
        self._model = model
        self._head: Any = model.get_output_embeddings()
        self._from_hidden = self._head is not None and self._probe()

    def run(self, batch: PackedBatch, *, temperature: float, entropy: bool = False) -> tuple[TokenLogprobs, Tensor]:
        """Runs the model on a batch.

        Args:
            batch: The sequences.
            temperature: Above 0.
            entropy: Whether to take the entropy too.

        Returns:
            Log-probabilities, and the hidden states they come from, `(tokens, hidden)`.
        """
        if not self._from_hidden:
            output = self._model(input_ids=batch.input_ids, use_cache=False, output_hidden_states=True)
            logits = output.logits[batch.rows, batch.columns].float()
            hidden = output.hidden_states[-1][batch.rows, batch.columns]
            options = {"pad_id": batch.pad_id, "temperature": temperature, "entropy": entropy}
            return logprobs_of_logits(logits, batch.targets, **options), hidden
        hidden = response_hidden(self._model.base_model, batch)
        if hidden.requires_grad and _is_frozen_linear(self._head) and not entropy:
            weights = (self._head.weight, self._head.bias)
            logprobs: Any = _FrozenHead.apply(hidden, *weights, batch.targets, batch.pad_id, temperature)
            return TokenLogprobs(logprobs, None), hidden
        return self._in_chunks(hidden, batch, temperature, entropy), hidden

    def _in_chunks(self, hidden: Tensor, batch: PackedBatch, temperature: float, entropy: bool) -> TokenLogprobs:
        size = _tokens_a_chunk(self._head)
        recompute = torch.is_grad_enabled() and len(hidden) > size

        def reduce(part: Tensor, targets: Tensor) -> TokenLogprobs:
            logits = self._head(part).float()
            return logprobs_of_logits(logits, targets, pad_id=batch.pad_id, temperature=temperature, entropy=entropy)

        pieces: list[Any] = [
            checkpoint(reduce, part, targets, use_reentrant=False) if recompute else reduce(part, targets)
            for part, targets in zip(hidden.split(size), batch.targets.split(size), strict=True)
        ]
        spread = torch.cat([piece.entropy for piece in pieces]) if entropy else None
        return TokenLogprobs(torch.cat([piece.logprobs for piece in pieces]), spread)

    @torch.no_grad()
    def _probe(self) -> bool:
        model = self._model
        ids = torch.arange(8, device=model.device).unsqueeze(0) % model.config.get_text_config().vocab_size
        logits = model(input_ids=ids, use_cache=False).logits
        from_hidden = self._head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        return from_hidden.shape == logits.shape and torch.allclose(
            from_hidden.float(), logits.float(), rtol=1e-3, atol=1e-3
        )


class _FrozenHead(torch.autograd.Function):
    """log p(target) of hidden states under a linear head that is not trained; its Jacobian is taken at once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        pad_id: int,
        temperature: float,
    ) -> Tensor:
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        jacobian = torch.empty_like(hidden)
        size = max(1, _CHUNK_LOGITS // weight.shape[0])
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = forbid_pad_(nn.functional.linear(hidden[part], weight, bias).float(), pad_id)
            if temperature != 1.0:
                logits.div_(temperature)
            picked = logits.gather(1, targets[part].unsqueeze(1)).squeeze(1)
            normaliser = torch.logsumexp(logits, dim=1)
            logprobs[part] = picked - normaliser
            surplus = logits.sub_(normaliser.unsqueeze(1)).exp_()
            # 1 is taken off before the numbers are rounded: half precision has nothing between 0.996 and 1.
            surplus.scatter_add_(1, targets[part].unsqueeze(1), surplus.new_full((len(surplus), 1), -1.0))
            jacobian[part] = ((surplus.to(weight.dtype) @ weight) / -temperature).to(hidden.dtype)
        ctx.save_for_backward(jacobian)
        return logprobs

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (jacobian,) = ctx.saved_tensors
        return (gradients[0].unsqueeze(1) * jacobian).to(jacobian.dtype), None, None, None, None, None


def _is_frozen_linear(head: Any) -> bool:
    hooked = bool(head._forward_hooks or head._forward_pre_hooks)
    return type(head) is nn.Linear and not hooked and not head.weight.requires_grad


def _tokens_a_chunk(head: Any) -> int:
    return max(1, _CHUNK_LOGITS // head.weight.shape[0])
