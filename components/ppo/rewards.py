"""Where rewards come from: the stage's reward model, further reward models, and rules.

`reward_shaping` makes one score of what the sources here say. A rule is named `module:function` in the settings:

    def polite(prompts: list[RulePrompt], responses: list[RuleResponse]) -> list[float]:
        return [1.0 if "please" in response.text else 0.0 for response in responses]

It gets a batch, and gives one finite number a response, in order, higher is better. It judges each response by itself:
which ones come together in a call is not fixed. For a resumed training to be the same training, the same response must
always get the same number.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from components.ppo.errors import NotFiniteError, RewardRuleError
from components.ppo.reward_shaping import MAIN, RewardShaper, Scale, ShapedRewards
from components.ppo.rollout import Rollout
from components.ppo.settings import RewardSettings
from components.shared.errors import InputError
from components.shared.models import decode_response
from components.shared.plugins import load_attribute
from components.shared.scoring import rewards as reward_scores

__all__ = [
    "ModelReward",
    "RewardRule",
    "RewardSource",
    "Rewards",
    "RulePrompt",
    "RuleResponse",
    "RuleReward",
    "load_rule",
]

_SHOWN = 60
"""Characters of a text that an error shows."""


@dataclass(frozen=True)
class RulePrompt:
    """A prompt, as a rule sees it.

    Attributes:
        text: The prompt as in the data; of a conversation one `role: content` line a turn.
        ids: Token ids, chat template applied.
        slice: The part of the data it is reported under.
        id: Its id in the data; None for a prompt that came from nowhere else.
        metadata: What the data says of it beside: a reference answer, for one.
    """

    text: str
    ids: list[int]
    slice: str
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RuleResponse:
    """A response, as a rule sees it.

    Attributes:
        text: Without special tokens and surrounding white space.
        ids: Token ids, the stop token included.
        finished: False where the length limit cut it.
    """

    text: str
    ids: list[int]
    finished: bool


class RewardRule(Protocol):
    """What `module:function` must be; the module's docstring says what it may rely on."""

    def __call__(self, prompts: list[RulePrompt], responses: list[RuleResponse], /) -> Sequence[float]:
        """One number a response, in order."""
        ...


class RewardSource(ABC):
    """One reward.

    Attributes:
        name: As in the settings.
        scale: Mean and standard deviation of its raw numbers, where they were measured.
    """

    name: str
    scale: Scale = (0.0, 1.0)

    @abstractmethod
    def score(self, rollout: Rollout, rows: Sequence[int]) -> Tensor:
        """Raw rewards of the episodes `rows`, `(len(rows),)`, float32, on the CPU."""


class ModelReward(RewardSource):
    """A reward model.

    Attributes:
        model: Sequence classifier with one label; only read.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mean: float,
        std: float,
        microbatch: int,
    ) -> None:
        """Takes the model, its tokenizer and the moments of raw rewards that its evaluation measured.

        Args:
            name: What settings and history call it.
            model: Sequence classifier with one label, or an adapter in its place.
            tokenizer: Its tokenizer.
            mean: Mean of its raw rewards.
            std: Their standard deviation.
            microbatch: Responses a forward pass.
        """
        self.name = name
        self.scale = (mean, std)
        self.model = model
        self._tokenizer = tokenizer
        self._microbatch = microbatch

    def score(self, rollout: Rollout, rows: Sequence[int]) -> Tensor:
        """Raises NotFiniteError where the model gives NaN or infinity."""
        prompts, responses = ([ids[i] for i in rows] for ids in (rollout.prompts_ids, rollout.responses_ids))
        scores = reward_scores(self.model, self._tokenizer, prompts, responses, batch_size=self._microbatch)
        if not bool(torch.isfinite(scores).all()):
            raise NotFiniteError(
                f"rewards of the {self.name!r} reward model became NaN or infinite; nothing more was learned.",
                where="ppo.reward",
                hint="Resume from the last checkpoint with lower learning rates, or check the reward model.",
            )
        return scores


class RuleReward(RewardSource):
    """A function that scores responses."""

    def __init__(
        self, name: str, rule: RewardRule, tokenizer: PreTrainedTokenizerBase, *, reference: str | None = None
    ) -> None:
        """Takes the function, and how the settings call it (`module:function`)."""
        self.name = name
        self._rule = rule
        self._tokenizer = tokenizer
        self._where = f"rule {name!r}" + (f" ({reference})" if reference else "")

    def score(self, rollout: Rollout, rows: Sequence[int]) -> Tensor:
        """Raises RewardRuleError where the rule fails or gives something else than a finite number a response."""
        prompts = [self._prompt(rollout, row) for row in rows]
        responses = [self._response(rollout, row) for row in rows]
        try:
            found: Any = self._rule(prompts, responses)
        except Exception as error:
            told = self._who_fails(prompts, responses)
            raise RewardRuleError(
                f"raised {type(error).__name__}: {error} - at {told}.",
                where=self._where,
                hint="Mend the rule for such a response; training resumes from the last checkpoint.",
            ) from error
        values = found.tolist() if hasattr(found, "tolist") else found  # a tensor or an array is fine too
        return self._checked(values, prompts, responses)

    def _checked(self, values: Any, prompts: list[RulePrompt], responses: list[RuleResponse]) -> Tensor:
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise RewardRuleError(
                f"gave a {type(values).__name__} for {len(responses)} responses, the first at {_shown(prompts[0])}.",
                where=self._where,
                hint="It must return a list with one number a response.",
            )
        if len(values) != len(responses):
            raise RewardRuleError(
                f"gave {len(values)} numbers for {len(responses)} responses, the first at {_shown(prompts[0])}.",
                where=self._where,
                hint="It must return one number a response, in order.",
            )
        for value, prompt, response in zip(values, prompts, responses, strict=True):
            if not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise RewardRuleError(
                    f"gave {value!r} at {_shown(prompt, response)}.",
                    where=self._where,
                    hint="It must give a finite number for every response, an empty or cut one too.",
                )
        return torch.tensor([float(value) for value in values], dtype=torch.float32)

    def _who_fails(self, prompts: list[RulePrompt], responses: list[RuleResponse]) -> str:
        """The first response that the rule fails on alone, in words."""
        for prompt, response in zip(prompts, responses, strict=True):
            try:
                self._rule([prompt], [response])
            except Exception:  # noqa: BLE001 - whatever a plug-in raises, here it only tells which response it is
                return _shown(prompt, response)
        return f"a batch of {len(prompts)} (at none of them alone), the first at {_shown(prompts[0])}"

    def _prompt(self, rollout: Rollout, row: int) -> RulePrompt:
        ids, prompt = rollout.prompts_ids[row], rollout.prompts[row] if rollout.prompts else None
        text = prompt.text if prompt is not None else None
        return RulePrompt(
            text=decode_response(self._tokenizer, ids) if text is None else text,
            ids=ids,
            slice=rollout.slices[row],
            id=prompt.id if prompt is not None else None,
            metadata=prompt.metadata if prompt is not None else {},
        )

    def _response(self, rollout: Rollout, row: int) -> RuleResponse:
        ids = rollout.responses_ids[row]
        return RuleResponse(text=decode_response(self._tokenizer, ids), ids=ids, finished=rollout.finished[row])


class Rewards:
    """All rewards of a training, and the score that they make.

    Attributes:
        main: The stage's reward model.
        names: The main reward first, then the further ones in the settings' order.
    """

    def __init__(self, settings: RewardSettings, main: ModelReward, further: Sequence[RewardSource] = ()) -> None:
        """Puts the sources together.

        Args:
            settings: Reward settings.
            main: The stage's reward model.
            further: One source for each of `settings.sources`.

        Raises:
            InputError: A source that the settings name is not given, or the other way round.
        """
        given = {source.name: source for source in further}
        named = [source.name for source in settings.sources]
        if sorted(given) != sorted(named) or len(given) != len(further):
            raise InputError(
                f"the settings name {', '.join(named) or 'no source'}, given are {', '.join(given) or 'none'}.",
                where="ppo.reward.sources",
                hint="Load the further rewards with `components.ppo.setup.further_rewards`.",
            )
        self.main = main
        self._sources: list[RewardSource] = [main, *(given[name] for name in named)]
        self.names = [MAIN, *named]
        self._shaper = RewardShaper(
            settings, mean=main.scale[0], std=main.scale[1], scales={source.name: source.scale for source in further}
        )

    def raw(self, rollout: Rollout, rows: Sequence[int] | None = None) -> Tensor:
        """Raw rewards, `(names, rows)`, float32, on the CPU.

        Args:
            rollout: The episodes.
            rows: Which of them; all by default.

        Raises:
            NotFiniteError: A reward model gave NaN or infinity.
            RewardRuleError: A rule failed, or gave something else than a finite number a response.
        """
        chosen = list(range(len(rollout))) if rows is None else list(rows)
        return torch.stack([source.score(rollout, chosen) for source in self._sources])

    def shape(self, raw: Tensor, rollout: Rollout) -> ShapedRewards:
        """Scores of all episodes from their raw rewards `(names, batch)`; running moments take them in."""
        main, *further = raw.unbind(0)
        return self._shaper.shape(
            main,
            finished=rollout.finished,
            lengths=[len(response) for response in rollout.responses_ids],
            further=dict(zip(self.names[1:], further, strict=True)),
            slices=rollout.slices,
        )

    def state_dict(self) -> dict[str, Any]:
        """The running moments of every source, as JSON values."""
        return self._shaper.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        self._shaper.load_state_dict(state)


def load_rule(name: str, reference: str, tokenizer: PreTrainedTokenizerBase) -> RuleReward:
    """Imports a rule.

    Raises:
        InputError: It cannot be imported, or is no function.
    """
    rule = load_attribute(reference)
    if not callable(rule):
        raise InputError(
            f"is a {type(rule).__name__}, no function.",
            where=f"rule {name!r} ({reference})",
            hint="Name a function of prompts and responses, as `module:function`.",
        )
    return RuleReward(name, cast(RewardRule, rule), tokenizer, reference=reference)


def _shown(prompt: RulePrompt, response: RuleResponse | None = None) -> str:
    """Which prompt (and response), for an error: its id if it has one, and the start of the text."""
    name = f"prompt {prompt.id!r}" if prompt.id is not None else "prompt"
    told = f"{name} {_start(prompt.text)!r}"
    return told if response is None else f"{told}, response {_start(response.text)!r}"


def _start(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
