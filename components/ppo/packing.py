"""Sequences as the models read them, and their response tokens as the losses read them.

Sequences are right-padded. Under a causal mask nothing to the left sees the padding, so no attention mask is needed and
the amount of padding changes no number. Only positions that predict a response token are kept: the language-model head
runs on `(tokens, hidden)`, one flat axis of real tokens, row after row. `unpack` turns it into `(batch, time)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PackedBatch", "length_sorted_chunks", "pack", "response_mask", "unpack"]


@dataclass(frozen=True)
class PackedBatch:
    """Some sequences, ready for a forward pass.

    Attributes:
        input_ids: `(batch, time)`: prompt and response but for its last token, which predicts nothing.
        rows: `(tokens,)`, the sequence of each response token.
        columns: `(tokens,)`, the position in `input_ids` that predicts it.
        targets: `(tokens,)`, its token id.
        pad_id: The pad token, which no response has.
    """

    input_ids: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    pad_id: int


def pack(
    prompts_ids: Sequence[Sequence[int]], responses_ids: Sequence[Sequence[int]], *, pad_id: int, device: torch.device
) -> PackedBatch:
    """Builds the batch of these sequences; every prompt and response has at least one token."""
    width = max(len(p) + len(r) for p, r in zip(prompts_ids, responses_ids, strict=True)) - 1
    ids: list[list[int]] = []
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, (prompt, response) in enumerate(zip(prompts_ids, responses_ids, strict=True)):
        inputs = [*prompt, *response[:-1]]
        ids.append(inputs + [pad_id] * (width - len(inputs)))
        rows.extend([row] * len(response))
        columns.extend(range(len(prompt) - 1, len(inputs)))
        targets.extend(response)
    return PackedBatch(
        input_ids=torch.tensor(ids, device=device),
        rows=torch.tensor(rows, device=device),
        columns=torch.tensor(columns, device=device),
        targets=torch.tensor(targets, device=device),
        pad_id=pad_id,
    )


def response_mask(responses_ids: Sequence[Sequence[int]], *, device: torch.device) -> Tensor:
    """`(batch, time)`, True on real response tokens."""
    lengths = torch.tensor([len(response) for response in responses_ids], device=device)
    return torch.arange(int(lengths.max()), device=device) < lengths.unsqueeze(1)


def unpack(values: Tensor, mask: Tensor) -> Tensor:
    """Spreads packed `(tokens,)` values over `(batch, time)`, zero on padding; `padded[mask]` is the way back."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def length_sorted_chunks(indices: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Cuts `indices` into chunks of at most `size`, sequences of like length together, so that little is padded."""
    order = sorted(indices, key=lambda index: (lengths[index], index))
    for start in range(0, len(order), size):
        yield order[start : start + size]
