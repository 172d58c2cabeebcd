"""Prompts and answers of the methods that sample: whole groups in an order of our own, answers from our own sampler.

TRL would sample with `transformers.generate` from one global random state. Here an answer's random numbers follow from
the run's seed, the step and the answer's number, so that a resumed run samples what the uninterrupted one would have,
and nothing but the policy that is scored is sampled from (`components.shared.generation`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import pad

from components.shared.generation import Generation, generate
from components.shared.hf_training import EpochSampler

__all__ = ["GroupSampler", "SamplingFromPolicy", "bare_model", "positions_from_mask"]


class GroupSampler(Sampler[int]):
    """Each prompt `group_size` times in a row, and each step's prompts once for every forward pass of the step.

    TRL answers all prompts of a step at once and expects them again in each of its forward passes. Prompts that do not
    fill a step are left for another epoch.
    """

    def __init__(self, lengths: list[int], *, prompts_per_step: int, group_size: int, passes: int, seed: int) -> None:
        self._order = EpochSampler(lengths, prompts_per_step, seed)
        self._prompts_per_step = prompts_per_step
        self._group_size = group_size
        self._passes = passes
        self._steps = len(lengths) // prompts_per_step

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch; the trainer calls it."""
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return self._steps * self._prompts_per_step * self._group_size * self._passes

    def __iter__(self) -> Iterator[int]:
        order = list(self._order)
        for step in range(self._steps):
            prompts = order[step * self._prompts_per_step : (step + 1) * self._prompts_per_step]
            yield from [index for index in prompts for _ in range(self._group_size)] * self._passes


class SamplingFromPolicy:
    """Mix-in of a TRL trainer: answers are sampled by `components.shared.generation`."""

    args: Any
    accelerator: Any
    model: Any
    state: Any
    _tokenizer: PreTrainedTokenizerBase
    _sampled_at = -1
    _draws = 0

    def answers(self, prompts_ids: list[list[int]], *, copies: int, max_tokens: int) -> list[Generation]:
        """Samples `copies` answers to each prompt; those of one prompt follow each other."""
        count = len(prompts_ids) * copies
        first = self.accelerator.process_index * count
        with self.accelerator.autocast():
            return generate(
                bare_model(self.accelerator.unwrap_model(self.model)),
                self._tokenizer,
                prompts_ids,
                max_new_tokens=max_tokens,
                temperature=self.args.temperature,
                seed=self._next_seed(),
                samples_per_prompt=copies,
                numbers=range(first, first + count),
            )

    def grouped_answers(self, prompts_ids: list[list[int]], *, group_size: int, max_tokens: int) -> list[list[int]]:
        """Token ids of an answer to each prompt, where each prompt stands `group_size` times in a row."""
        whole = len(prompts_ids) % group_size == 0  # a process of several may hold a part of a group
        prompts, copies = (prompts_ids[::group_size], group_size) if whole else (prompts_ids, 1)
        return [answer.response_ids for answer in self.answers(prompts, copies=copies, max_tokens=max_tokens)]

    def paired_answers(self, prompts_ids: list[list[int]], *, max_tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Two answers to each prompt: first all first ones, then all second ones.

        Returns:
            Prompt ids and mask `(2 n, time)`, flush right; answer ids and mask `(2 n, time)`, flush left.
        """
        sampled = self.answers(prompts_ids, copies=2, max_tokens=max_tokens)
        ordered = sampled[0::2] + sampled[1::2]
        prompts = self._padded([answer.prompt_ids for answer in ordered], side="left")
        return *prompts, *self._padded([answer.response_ids for answer in ordered], side="right")

    def _padded(self, rows: list[list[int]], *, side: str) -> tuple[Tensor, Tensor]:
        device = self.accelerator.device
        ids = pad([torch.tensor(row) for row in rows], padding_value=self._pad_id, padding_side=side)
        mask = pad([torch.ones(len(row), dtype=torch.long) for row in rows], padding_value=0, padding_side=side)
        return ids.to(device), mask.to(device)

    @property
    def _pad_id(self) -> int:
        return int(self._tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]

    def _next_seed(self) -> int:
        """Of the run's seed, the step, and how often the step has sampled before."""
        step = self.state.global_step
        self._draws = self._draws + 1 if self._sampled_at == step else 0
        self._sampled_at = step
        sequence = np.random.SeedSequence([self.args.seed, step, self._draws])
        return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def bare_model(model: Any) -> PreTrainedModel:
    """The transformers model itself; its adapters, if any, act inside it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def positions_from_mask(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook: the first real token of a row stands at position 0, however far the row is padded on the left.

    TRL pads prompts on the left and gives no positions. Rotary positions bear that; a model with absolute ones (GPT-2)
    would be scored, and trained, as another policy than the one that was sampled.
    """
    mask = kwargs.get("attention_mask")
    if mask is None or kwargs.get("position_ids") is not None or kwargs.get("past_key_values") is not None:
        return None
    return args, kwargs | {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
