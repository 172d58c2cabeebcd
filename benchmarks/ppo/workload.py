"""What both sides run: models, prompts and answer lengths, from one folder.

Answer lengths are drawn beforehand and the same for both sides. `ForcedLengths` makes a sampler keep to them: it lets
the sampler do all its work and then exchanges the sampled token, so that no probability is touched.

Imports only torch, numpy and transformers: the peer's environment has nothing of Plumbline.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "EQUAL_SHAPE",
    "EQUAL_TRAINING",
    "SHAPES",
    "ForcedLengths",
    "Training",
    "Workload",
    "draw_answers",
    "draw_lengths",
    "draw_prompts",
    "read_json",
]

WORKLOAD_FILE = "workload.json"


@dataclass(frozen=True)
class Workload:
    """The shape of a measurement.

    Attributes:
        vocabulary: Tokens of the vocabulary; 0 is pad, 1 is BOS, 2 is EOS.
        layers: Transformer layers.
        hidden: Width of the hidden states.
        intermediate: Width inside an MLP.
        heads: Attention heads.
        kv_heads: Heads of keys and values; None: as many as `heads`.
        tied: Whether input embeddings and output head are the same weights.
        episodes: Prompts, and so episodes a PPO step: every step answers every prompt.
        prompt_tokens: Shortest and longest prompt.
        response_tokens: Shortest and longest answer, EOS included.
        mean_response: Mean of the exponential distribution that lengths are drawn from before they are cut to
            `response_tokens`; None: all answers are of the longest length.
        updates: Updates that lengths are drawn for.
        seed: Of weights, prompts and lengths.
    """

    vocabulary: int = 16_000
    layers: int = 4
    hidden: int = 256
    intermediate: int = 688
    heads: int = 4
    kv_heads: int | None = None
    tied: bool = False
    episodes: int = 32
    prompt_tokens: tuple[int, int] = (8, 64)
    response_tokens: tuple[int, int] = (4, 64)
    mean_response: float | None = 29.0
    updates: int = 16
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON values; `from_json` is the way back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Workload:
        """What `to_json` gave."""
        pairs = {name: tuple(values[name]) for name in ("prompt_tokens", "response_tokens")}
        return cls(**(values | pairs))


@dataclass(frozen=True)
class Training:
    """Hyperparameters that both sides are given; see each library's documentation for their meaning."""

    epochs: int = 4
    microbatch: int = 8
    lora_rank: int = 8
    lora_alpha: int = 16
    learning_rate: float = 1e-4
    kl_coef: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    clip_ratio: float = 0.2
    value_clip: float = 0.2


SHAPES = {
    "16k": Workload(),
    "4k": Workload(vocabulary=4_000),
    "16k-uniform": Workload(mean_response=None),
}
"""The measured shapes by name; the first is the headline."""


EQUAL_SHAPE = Workload(
    vocabulary=512,
    layers=2,
    hidden=64,
    intermediate=176,
    episodes=16,
    prompt_tokens=(8, 24),
    response_tokens=(16, 16),
    mean_response=None,
    updates=8,
)
"""Where both sides train on the same answers. They are equally long: TRL's rewards of short ones differ from ours."""

EQUAL_TRAINING = Training(epochs=2, microbatch=8, learning_rate=3e-4)


def draw_prompts(workload: Workload) -> list[list[int]]:
    """Token ids of each prompt, BOS first; all different."""
    random = np.random.default_rng([workload.seed, 1])
    shortest, longest = workload.prompt_tokens
    lengths = random.integers(shortest, longest + 1, size=workload.episodes)
    return [[1, *random.integers(4, workload.vocabulary, size=n - 1).tolist()] for n in lengths]


def draw_lengths(workload: Workload) -> list[list[int]]:
    """Answer length of each prompt at each update, `(episodes, updates)`."""
    random = np.random.default_rng([workload.seed, 2])
    shape = (workload.episodes, workload.updates)
    shortest, longest = workload.response_tokens
    if workload.mean_response is None:
        return np.full(shape, longest).tolist()
    drawn = random.exponential(workload.mean_response, size=shape)
    return np.clip(np.ceil(drawn), shortest, longest).astype(int).tolist()


def draw_answers(workload: Workload) -> list[list[list[int]]]:
    """Token ids of an answer to each prompt at each update, of the drawn lengths, EOS last."""
    random = np.random.default_rng([workload.seed, 3])
    return [
        [[*random.integers(4, workload.vocabulary, size=length - 1).tolist(), 2] for length in lengths]
        for lengths in draw_lengths(workload)
    ]


def read_json(path: Path) -> Any:
    """A JSON file's value."""
    return json.loads(path.read_text(encoding="utf-8"))


class ForcedLengths:
    """Ends each answer at its drawn length, in whichever sampler runs the model.

    A forward hook on the model sees a prompt being read and looks up its lengths; the functions that samplers draw
    tokens with are wrapped, so that the drawn token becomes EOS where it is due, and is moved off EOS elsewhere. Given
    whole answers, every drawn token becomes the given one.

    Attributes:
        forced: Response tokens forced so far: what the sampler should have produced.
    """

    _DRAWS = ("multinomial", "searchsorted")

    def __init__(
        self,
        model: nn.Module,
        prompts: list[list[int]],
        lengths: list[list[int]],
        *,
        answers: list[list[list[int]]] | None = None,
        eos: int = 2,
    ) -> None:
        """Sets up what is not attached yet.

        Args:
            model: Causal language model that is sampled from.
            prompts: Token ids of each prompt, all different.
            lengths: Of the answers to each prompt, in the order of its visits.
            answers: Token ids of those answers; None leaves the tokens to the sampler.
            eos: The token that ends an answer.
        """
        self._lengths = {tuple(prompt): rows for prompt, rows in zip(prompts, lengths, strict=True)}
        if len(self._lengths) != len(prompts):
            raise ValueError("two prompts are equal; their lengths could not be told apart")
        self._answers = dict(zip(self._lengths, answers, strict=True)) if answers else {}
        self._visits = dict.fromkeys(self._lengths, 0)
        self._model = model
        self._eos = eos
        self._pending: list[tuple[int, ...]] | None = None
        self._active: list[tuple[int, list[int] | None]] = []
        self._step = 0
        self.forced = 0

    @contextmanager
    def attached(self) -> Iterator[ForcedLengths]:
        """Works inside the block."""
        hook = self._model.register_forward_pre_hook(self._see, with_kwargs=True)
        originals: dict[str, Callable[..., Tensor]] = {name: getattr(torch, name) for name in self._DRAWS}
        for name, original in originals.items():
            setattr(torch, name, self._wrap(original))
        try:
            yield self
        finally:
            hook.remove()
            for name, original in originals.items():
                setattr(torch, name, original)

    def _see(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes the prompts of a pass that reads prompts; any other pass of more than a token ends the sampling."""
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if ids is None or ids.shape[1] == 1:
            return
        self._pending, self._active = None, []
        if mask is not None and mask.shape == ids.shape:
            prompts = [tuple(row[keep.bool()].tolist()) for row, keep in zip(ids, mask, strict=True)]
            if all(prompt in self._lengths for prompt in prompts):
                self._pending = prompts

    def _wrap(self, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forced(*args: Any, **kwargs: Any) -> Tensor:
            drawn = draw(*args, **kwargs)
            return self._force(drawn) if self._pending is not None or self._active else drawn

        return forced

    def _force(self, drawn: Tensor) -> Tensor:
        if self._pending is not None:
            self._active = [self._next(prompt) for prompt in self._pending]
            self._pending, self._step = None, 0
        if len(drawn) < len(self._active):  # a sampler that drops finished rows
            self._active = [row for row in self._active if row[0] > self._step]
        if len(drawn) != len(self._active):
            raise RuntimeError(f"the sampler drew {len(drawn)} tokens where {len(self._active)} answers are open")
        self._step += 1
        self.forced += sum(length >= self._step for length, _ in self._active)
        tokens = [
            self._token(*row, drawn=token) for row, token in zip(self._active, drawn.flatten().tolist(), strict=True)
        ]
        return torch.tensor(tokens, device=drawn.device).unsqueeze(1)

    def _token(self, length: int, answer: list[int] | None, *, drawn: int) -> int:
        if self._step == length:
            return self._eos
        if answer is not None and self._step < length:
            return answer[self._step - 1]
        return drawn if drawn != self._eos else self._eos + 1

    def _next(self, prompt: tuple[int, ...]) -> tuple[int, list[int] | None]:
        visit = self._visits[prompt]
        self._visits[prompt] += 1
        return self._lengths[prompt][visit], self._answers[prompt][visit] if self._answers else None
