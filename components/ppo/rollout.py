"""Rollouts: which prompts come next, and what the policy answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.shared.generation import generate

__all__ = ["EncodedPrompt", "PromptCursor", "Rollout", "sample_rollout"]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the policy reads it.

    Attributes:
        ids: Token ids, chat template applied.
        slice: The part of the data it is reported under.
    """

    ids: list[int]
    slice: str


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
    """

    slices: list[str]
    prompts_ids: list[list[int]]
    responses_ids: list[list[int]]
    finished: list[bool]
    decode_logprobs: list[list[float]]

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
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    *,
    max_response_tokens: int,
    temperature: float,
    seed: int,
) -> Rollout:
    """Samples one response a prompt from softmax(logits / temperature)."""
    generations = generate(
        policy,
        tokenizer,
        [prompt.ids for prompt in prompts],
        max_new_tokens=max_response_tokens,
        temperature=temperature,
        seed=seed,
    )
    return Rollout(
        slices=[prompt.slice for prompt in prompts],
        prompts_ids=[generation.prompt_ids for generation in generations],
        responses_ids=[generation.response_ids for generation in generations],
        finished=[generation.finished for generation in generations],
        decode_logprobs=[generation.logprobs for generation in generations],
    )
