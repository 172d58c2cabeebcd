"""From input artifacts to a trainer: loads models and prompts, and checks that they belong together."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.ppo.models import ActorCritic, SeparateModels, SharedBackbone, ValueHead
from components.ppo.rewards import ModelReward, RewardSource, load_rule
from components.ppo.rollout import EncodedPrompt
from components.ppo.settings import PPOSettings, RewardSettings
from components.ppo.sharding import Sharding
from components.ppo.trainer import PPOTrainer
from components.ppo.world import World
from components.shared.artifacts import Artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.files import read_json
from components.shared.models import (
    REWARD_ADAPTER,
    encode_prompt,
    load_policy,
    load_reward_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
)
from components.shared.records import PromptRecord, prompt_text, read_records

__all__ = [
    "RewardScale",
    "build_models",
    "build_trainer",
    "encode_prompts",
    "further_rewards",
    "read_reward_scale",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardScale:
    """Mean and standard deviation of a reward model's raw rewards on held-out answers."""

    mean: float
    std: float


def build_trainer(
    *,
    policy: Artifact,
    reward_model: Artifact,
    dataset: Artifact,
    settings: PPOSettings,
    seed: int,
    further_reward_models: Mapping[str, Artifact] | None = None,
    world: World | None = None,
) -> tuple[PPOTrainer, PreTrainedTokenizerBase]:
    """Loads everything and sets up a training that has not begun; also gives the policy's tokenizer.

    Args:
        policy: Start and reference.
        reward_model: The main reward model.
        dataset: `prompts/train.jsonl` is read.
        settings: Settings of the run.
        seed: Of everything random.
        further_reward_models: Those of `settings.reward.reward_models`, by name.
        world: The processes that train together.

    Raises:
        InputError: The artifacts do not belong together, or a prompt leaves no room for a response.
        ArtifactError: An artifact lacks something.
    """
    world, device = world or World(), pick_device()
    dtype = pick_dtype(device)
    sharding = None if settings.sharding == "none" else Sharding(settings.sharding, world, device)
    home = device if sharding is None else torch.device("cpu")  # what is sharded need not fit on the device whole
    tokenizer = load_tokenizer(policy.path)
    _require_same_vocabulary(tokenizer, reward_model, name="reward model")
    prompts = encode_prompts(dataset.file("prompts/train.jsonl"), tokenizer)
    _require_safety_slices(prompts, settings.reward)
    scale = read_reward_scale(reward_model)
    models = build_models(policy, reward_model, scale, settings, home, dtype=dtype)
    _require_room(models.sampling_policy(), prompts, settings)
    main = _main_reward_model(models, policy, reward_model, home, dtype)
    options: Any = {"tokenizer": tokenizer, "device": home, "dtype": dtype}
    further = further_rewards(settings, further_reward_models or {}, **options)
    if sharding is not None:
        _shard(sharding, models, main, further)
    trainer = PPOTrainer(
        models,
        main,
        tokenizer,
        prompts,
        settings=settings,
        seed=seed,
        reward_mean=scale.mean,
        reward_std=scale.std,
        further_rewards=further,
        world=world,
    )
    return trainer, tokenizer


def further_rewards(
    settings: PPOSettings,
    artifacts: Mapping[str, Artifact],
    *,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> list[RewardSource]:
    """Loads what `reward.sources` names.

    Args:
        settings: Of the run.
        artifacts: Further reward models by name.
        tokenizer: The policy's.
        device: Where the models go.
        dtype: Number type of their weights; by default what the device computes best.

    Raises:
        InputError: A rule cannot be imported, a reward model is not given, or has another vocabulary.
        ArtifactError: A reward model lacks something.
    """
    rules = settings.reward.rules.items()
    sources: list[RewardSource] = [load_rule(name, reference, tokenizer) for name, reference in rules]
    for name in settings.reward.reward_models:
        if name not in artifacts:
            raise InputError(f"the reward model of source {name!r} was not given.", where="ppo.reward.sources")
        _require_same_vocabulary(tokenizer, artifacts[name], name=f"reward model {name!r}")
        _require_not_held_out(name, artifacts[name])
        scale = read_reward_scale(artifacts[name])
        model = load_reward_model(artifacts[name].path, dtype=dtype, device=device).requires_grad_(False)
        sources.append(
            ModelReward(name, model, tokenizer, mean=scale.mean, std=scale.std, microbatch=settings.microbatch)
        )
    return sources


def build_models(
    policy: Artifact,
    reward_model: Artifact,
    scale: RewardScale,
    settings: PPOSettings,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
) -> ActorCritic:
    """Policy, reference and value model in the settings' parameterisation.

    What is trained is float32 whatever the device: half-precision weights would swallow small updates. The frozen
    backbone of `lora` takes `dtype`, by default the device's best type.
    """
    if settings.parameterisation == "full":
        model = load_policy(policy.path, dtype=torch.float32, device=device)
        if settings.value_model == "shared_trunk":
            head = _head_for_policy_backbone(model, policy, reward_model, scale, settings)
            return SeparateModels(model, value_backbone=None, value_head=head)
        if settings.value_init == "policy":
            backbone = copy.deepcopy(model.base_model)
            return SeparateModels(model, value_backbone=backbone, value_head=_zero_head(model))  # pyright: ignore
        critic = load_reward_model(reward_model.path, dtype=torch.float32, device=device)
        head = ValueHead.of_reward_model(critic, mean=scale.mean, std=scale.std)
        return SeparateModels(model, value_backbone=critic.base_model, value_head=head)  # pyright: ignore
    model = load_policy(policy.path, dtype=dtype or pick_dtype(device), device=device)
    head = _head_for_policy_backbone(model, policy, reward_model, scale, settings)
    value_adapter = settings.value_model == "separate"
    return SharedBackbone(model, value_head=head, lora=settings.lora, value_adapter=value_adapter)


def encode_prompts(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[EncodedPrompt]:
    """Reads prompt records and applies the chat template."""
    return [
        EncodedPrompt(
            ids=encode_prompt(tokenizer, record.prompt),
            slice=record.slice,
            id=record.id,
            text=prompt_text(record.prompt),
            metadata=record.metadata,
        )
        for record in read_records(path, PromptRecord)
    ]


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


def _main_reward_model(
    models: ActorCritic, policy: Artifact, reward_model: Artifact, device: torch.device, dtype: torch.dtype
) -> Any:
    """An adapter over the shared backbone where the reward model is one and was trained over these very weights."""
    adapter = reward_model.path / REWARD_ADAPTER
    if isinstance(models, SharedBackbone) and adapter.is_dir():
        if read_json(adapter / "base.json")["base_digest"] == policy.digest:
            logger.info("policy, value and reward model share one backbone.")
            return models.attach_reward_adapter(adapter)
        logger.info("the reward model's adapter belongs to another policy; it gets a backbone of its own.")
    return load_reward_model(reward_model.path, dtype=dtype, device=device).requires_grad_(False)


def _shard(sharding: Sharding, models: ActorCritic, main: Any, further: Sequence[RewardSource]) -> None:
    """Divides the models that learn and those that judge; an adapter is divided with its backbone."""
    models.shard(sharding)
    for model in (main, *(source.model for source in further if isinstance(source, ModelReward))):
        if isinstance(model, PreTrainedModel):
            sharding.apply(model)


def _zero_head(model: PreTrainedModel) -> ValueHead:
    return ValueHead.zero(model.config.get_text_config().hidden_size, model.device)


def _head_for_policy_backbone(
    model: PreTrainedModel, policy: Artifact, reward_model: Artifact, scale: RewardScale, settings: PPOSettings
) -> ValueHead:
    """The reward model's head where it was trained on top of this very policy, else a zero head.

    The backbone under the value head is the policy's: a head that was fitted to other hidden states means nothing.
    """
    if settings.value_init == "policy":
        return _zero_head(model)
    if policy.digest not in reward_model.manifest["inputs"].values():
        logger.warning("the reward model was not trained from this policy; the value head starts at zero.")
        return _zero_head(model)
    source = load_reward_model(reward_model.path, dtype=torch.float32, device=model.device)
    return ValueHead.of_reward_model(source, mean=scale.mean, std=scale.std)


def _require_same_vocabulary(tokenizer: PreTrainedTokenizerBase, reward_model: Artifact, *, name: str) -> None:
    if load_tokenizer(reward_model.path).get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"policy and {name} have different vocabularies; responses are scored as token ids.",
            where=str(reward_model.path),
            hint="Train the reward model from this policy.",
        )


def _require_not_held_out(name: str, reward_model: Artifact) -> None:
    if read_json(reward_model.file("reward.json")).get("train_split") == "divergence":
        raise InputError(
            f"reward model {name!r} was trained on the divergence split, which is kept apart to judge "
            f"over-optimisation: once it is optimised, it judges nothing.",
            where=str(reward_model.path),
            hint="Take one that was trained on the train split, of another seed or run.",
        )


def _require_safety_slices(prompts: Sequence[EncodedPrompt], settings: RewardSettings) -> None:
    if absent := sorted(set(settings.safety.slices) - {prompt.slice for prompt in prompts}):
        raise InputError(
            f"no training prompt is of slice {absent[0]!r}.",
            where="ppo.reward.safety.slices",
            hint=f"The slices are {', '.join(sorted({prompt.slice for prompt in prompts}))}.",
        )


def _require_room(model: PreTrainedModel, prompts: Sequence[EncodedPrompt], settings: PPOSettings) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(prompt.ids) for prompt in prompts), default=0)
    if limit is not None and longest + settings.max_response_tokens > limit:
        raise InputError(
            f"the longest prompt ({longest} tokens) and max_response_tokens ({settings.max_response_tokens}) together "
            f"pass the model's {limit} positions.",
            where="ppo.max_response_tokens",
            hint="Lower it, or leave out the longest prompts.",
        )
