"""What the stages that optimise a policy share: prompts, the reward model's scale, and checks that inputs fit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.shared.artifacts import Artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.files import read_json
from components.shared.models import encode_prompt, load_tokenizer
from components.shared.records import PromptRecord, prompt_text, read_records

__all__ = [
    "EncodedPrompt",
    "RewardScale",
    "encode_prompts",
    "metric_name",
    "position_limit",
    "read_reward_scale",
    "repetition_share",
    "require_not_held_out",
    "require_room",
    "require_same_vocabulary",
]

_NOT_IN_METRIC_NAMES = re.compile(r"[^A-Za-z0-9_\-. /]")
"""MLflow refuses a whole batch of metrics for one name with another character."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the policy reads it.

    Attributes:
        ids: Token ids, chat template applied.
        slice: The part of the data it is reported under.
        id: Its id in the data, if it has one.
        text: The prompt as in the data; None: what the ids say.
        metadata: What the data says of it beside; for rules.
    """

    ids: list[int]
    slice: str
    id: str | None = None
    text: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardScale:
    """Mean and standard deviation of a reward model's raw rewards on held-out answers."""

    mean: float
    std: float


def encode_prompts(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[EncodedPrompt]:
    """Reads prompt records and applies the chat template.

    Raises:
        InputError: A record is not valid, or there is none.
    """
    prompts = [
        EncodedPrompt(
            ids=encode_prompt(tokenizer, record.prompt),
            slice=record.slice,
            id=record.id,
            text=prompt_text(record.prompt),
            metadata=record.metadata,
        )
        for record in read_records(path, PromptRecord)
    ]
    if not prompts:
        raise InputError("there are no training prompts.", where=str(path))
    return prompts


def read_reward_scale(reward_model: Artifact) -> RewardScale:
    """`reward.json` of a reward model.

    Raises:
        ArtifactError: Mean or deviation is absent, not finite, or the deviation is not positive.
    """
    path = reward_model.file("reward.json")
    values = read_json(path)
    mean, std = values.get("mean"), values.get("std")
    valid = all(isinstance(value, (int, float)) and math.isfinite(value) for value in (mean, std))
    if not valid or std <= 0:
        raise ArtifactError(
            f"needs a finite mean and a positive std, has {mean!r} and {std!r}.",
            where=str(path),
            hint="Run the reward_model stage again.",
        )
    return RewardScale(mean=float(mean), std=float(std))


def require_not_held_out(reward_model: Artifact, *, name: str = "the reward model") -> None:
    """Refuses to optimise the reward model that is kept apart to judge over-optimisation.

    Raises:
        InputError: It was trained on the divergence split.
    """
    path = reward_model.file("reward.json")
    if read_json(path).get("train_split") == "divergence":
        raise InputError(
            f"{name} was trained on the divergence split, which is kept apart to judge over-optimisation: once it is "
            f"optimised, it judges nothing.",
            where=str(path),
            hint="Take one that was trained on the train split.",
        )


def require_same_vocabulary(
    tokenizer: PreTrainedTokenizerBase, reward_model: Artifact, *, name: str = "reward model"
) -> None:
    """Refuses a reward model that reads the policy's token ids as other words.

    Raises:
        InputError: The vocabularies differ.
    """
    if load_tokenizer(reward_model.path).get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"policy and {name} have different vocabularies; responses are scored as token ids.",
            where=str(reward_model.path),
            hint="Train the reward model from this policy.",
        )


def position_limit(model: PreTrainedModel) -> int | None:
    """How many tokens a model reads; None when it says nothing of it."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def require_room(prompts: Sequence[EncodedPrompt], max_response_tokens: int, limit: int | None, *, where: str) -> None:
    """Refuses prompts that leave no room for an answer.

    Args:
        prompts: The prompts.
        max_response_tokens: Longest answer.
        limit: Tokens that prompt and answer may have together; None for no limit.
        where: The setting to name in the error.

    Raises:
        InputError: The longest prompt and the longest answer pass the limit.
    """
    longest = max((len(prompt.ids) for prompt in prompts), default=0)
    if limit is not None and longest + max_response_tokens > limit:
        raise InputError(
            f"the longest prompt ({longest} tokens) and max_response_tokens ({max_response_tokens}) together pass the "
            f"limit of {limit} tokens.",
            where=where,
            hint="Lower max_response_tokens, or leave out the longest prompts.",
        )


def repetition_share(response_ids: Sequence[int]) -> float:
    """Share of a response's token trigrams that occurred in it before."""
    trigrams = list(zip(response_ids, response_ids[1:], response_ids[2:], strict=False))
    return 1.0 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def metric_name(name: str) -> str:
    """A name that the tracking server takes."""
    return _NOT_IN_METRIC_NAMES.sub("_", name)
