"""Held-out loss of the policy: exact over tokens, of the saved weights, by slice."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.sft.demonstrations import Demonstration
from components.shared.scoring import response_logprobs

__all__ = ["heldout_metrics"]

_LARGEST_EXPONENT = 700.0


def heldout_metrics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    *,
    batch_size: int,
) -> dict[str, Any]:
    """Mean negative log-likelihood of the held-out answers.

    Returns:
        `heldout_loss` (nats per answer token, EOS counted), `perplexity`, `n`, `tokens`, and the same in `slices`; null
        where there is no data.
    """
    logprobs = response_logprobs(
        model,
        tokenizer,
        [each.prompt_ids for each in demonstrations],
        [each.response_ids for each in demonstrations],
        batch_size=batch_size,
    )
    totals = [(-float(values.double().sum()), len(values)) for values in logprobs]
    by_slice: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for demonstration, total in zip(demonstrations, totals, strict=True):
        by_slice[demonstration.slice].append(total)
    return _summary(totals) | {"slices": {name: _summary(part) for name, part in sorted(by_slice.items())}}


def _summary(totals: Sequence[tuple[float, int]]) -> dict[str, Any]:
    tokens = sum(length for _, length in totals)
    loss = sum(nll for nll, _ in totals) / tokens if tokens else math.nan
    known = math.isfinite(loss)
    return {
        "heldout_loss": loss if known else None,
        "perplexity": math.exp(min(loss, _LARGEST_EXPONENT)) if known else None,
        "n": len(totals),
        "tokens": tokens,
    }
