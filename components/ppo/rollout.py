"""Rollouts: which prompts come next, and what the policy answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from components.ppo.models import ActorCritic
from components.ppo.settings import PPOSettings
from components.shared.generation import Generation, generate
from components.shared.policy_optimization import EncodedPrompt
from components.shared.world import World

__all__ = ["EncodedPrompt", "PromptCursor", "Rollout", "sample_rollout"]


class PromptCursor:
    """Prompts without replacement: each once an epoch, in an order drawn anew for each epoch.

    Order follows from seed and epoch alone, so that two integers are the whole state.
    """

    def __init__(self, size: int, *, seed: int) -> None:
        self._size = size
        self._seed = seed
        self._epoch = 0
        self._position = 0

    def take(self, count: int) -> list[int]:
        """The next `count` indices in [0, size); runs on into the next epoch."""
        taken: list[int] = []
        while len(taken) < count:
            order = np.random.default_rng([self._seed, self._epoch]).permutation(self._size)
            part = order[self._position : self._position + count - len(taken)]
            taken.extend(int(index) for index in part)
            self._position += len(part)
            if self._position == self._size:
                self._epoch, self._position = self._epoch + 1, 0
        return taken

    def state_dict(self) -> dict[str, int]:
        """Epoch and position."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where `state_dict` was taken."""
        self._epoch, self._position = int(state["epoch"]), int(state["position"])


@dataclass(frozen=True)
class Rollout:
    """A step's episodes. Lists run over episodes.

    Attributes:
        slices: Slice of each prompt.
        prompts_ids: Token ids of each prompt.
        responses_ids: Token ids of each response, its stop token included when it is finished.
        finished: False where the length limit cut the response.
        decode_logprobs: log pi of each response token as seen while decoding, nats.
        decode_entropies: Entropy of the distribution that each token was sampled from, nats.
        decode_values: Value before each token as seen while decoding; empty unless the trunk is shared.
        prompts: The prompts; empty where nothing is known of them but their ids.
    """

    slices: list[str]
    prompts_ids: list[list[int]]
    responses_ids: list[list[int]]
    finished: list[bool]
    decode_logprobs: list[list[float]]
    decode_entropies: list[list[float]] = field(default_factory=list)
    decode_values: list[list[float]] = field(default_factory=list)
    prompts: list[EncodedPrompt] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.responses_ids)

    @property
    def sequence_lengths(self) -> list[int]:
        """Tokens of prompt and response together."""
        return [len(p) + len(r) for p, r in zip(self.prompts_ids, self.responses_ids, strict=True)]

    @property
    def response_tokens(self) -> int:
        """Response tokens of all episodes."""
        return sum(len(response) for response in self.responses_ids)


def sample_rollout(
    models: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    *,
    settings: PPOSettings,
    seed: int,
    world: World,
) -> Rollout:
    """Samples `samples_per_prompt` responses a prompt from softmax(logits / temperature); all processes get them all.

    Args:
        models: The policy, and its values where they come from the same trunk.
        tokenizer: Its tokenizer.
        prompts: Prompts of the step; the same in every process.
        settings: Of the run.
        seed: Of the step.
        world: Each process samples for its share of the prompts.
    """
    copies = settings.samples_per_prompt
    turns = world.turns(range(len(prompts)))
    numbers = [index * copies + sample for index, _ in turns for sample in range(copies)]
    with models.autocast():
        generations = generate(
            models.sampling_policy(),
            tokenizer,
            [prompts[index].ids for index, _ in turns],
            max_new_tokens=settings.max_response_tokens,
            temperature=settings.temperature,
            samples_per_prompt=copies,
            batch_size=settings.rollout_batch,
            seed=seed,
            numbers=numbers,
            observe=models.value_of_hidden if models.trunk_is_shared else None,
            anyone=(lambda busy: world.any(busy, device=models.device)) if world.lockstep else None,
        )
    if world.size > 1:
        own = copies * sum(counts for _, counts in turns)
        mine = dict(zip(numbers[:own], generations[:own], strict=True))
        generations = _collect(mine, prompts, settings, world, models.device)
    return Rollout(
        slices=[prompt.slice for prompt in prompts for _ in range(copies)],
        prompts_ids=[generation.prompt_ids for generation in generations],
        responses_ids=[generation.response_ids for generation in generations],
        finished=[generation.finished for generation in generations],
        decode_logprobs=[generation.logprobs for generation in generations],
        decode_entropies=[generation.entropies for generation in generations],
        decode_values=[generation.observed for generation in generations] if models.trunk_is_shared else [],
        prompts=[prompt for prompt in prompts for _ in range(copies)],
    )


def _collect(
    mine: dict[int, Generation],
    prompts: Sequence[EncodedPrompt],
    settings: PPOSettings,
    world: World,
    device: torch.device,
) -> list[Generation]:
    """Every process's generations, in every process: each fills in its rows, and the rows are added up."""
    shape = (len(prompts) * settings.samples_per_prompt, settings.max_response_tokens)
    counts = torch.zeros((shape[0], 2), dtype=torch.long, device=device)  # length, finished
    tokens = torch.zeros(shape, dtype=torch.long, device=device)
    numbers = torch.zeros((3, *shape), dtype=torch.float32, device=device)  # log-probability, entropy, observed
    for row, generation in mine.items():
        length = len(generation.response_ids)
        counts[row] = torch.tensor([length, int(generation.finished)])
        tokens[row, :length] = torch.tensor(generation.response_ids)
        for column, values in enumerate((generation.logprobs, generation.entropies, generation.observed)):
            numbers[column, row, : len(values)] = torch.tensor(values)
    world.sum_(counts, tokens, numbers)
    return [
        Generation(
            prompt_ids=prompts[row // settings.samples_per_prompt].ids,
            response_ids=tokens[row, :length].tolist(),
            logprobs=_row(numbers[0, row], length),
            finished=bool(finished),
            entropies=_row(numbers[1, row], length),
            observed=_row(numbers[2, row], length),
        )
        for row, (length, finished) in enumerate(counts.tolist())
    ]


def _row(values: Tensor, length: int) -> list[float]:
    return values[:length].tolist()
