"""From input artifacts to a trainer: loads models and prompts, and checks that they belong together."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.ppo.models import ActorCritic, SeparateModels, SharedBackbone, ValueHead
from components.ppo.rewards import ModelReward, RewardSource, load_rule
from components.ppo.rollout import EncodedPrompt
from components.ppo.settings import PPOSettings, RewardSettings
from components.ppo.sharding import Sharding
from components.ppo.trainer import PPOTrainer
from components.shared.artifacts import Artifact
from components.shared.errors import InputError
from components.shared.files import read_json
from components.shared.models import (
    REWARD_ADAPTER,
    load_policy,
    load_reward_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
)
from components.shared.policy_optimization import (
    RewardScale,
    encode_prompts,
    position_limit,
    read_reward_scale,
    require_not_held_out,
    require_room,
    require_same_vocabulary,
)
from components.shared.world import World

__all__ = [
    "build_models",
    "build_trainer",
    "further_rewards",
]

logger = logging.getLogger(__name__)


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
    require_same_vocabulary(tokenizer, reward_model)
    require_not_held_out(reward_model)
    prompts = encode_prompts(dataset.file("prompts/train.jsonl"), tokenizer)
    _require_safety_slices(prompts, settings.reward)
    scale = read_reward_scale(reward_model)
    models = build_models(policy, reward_model, scale, settings, home, dtype=dtype)
    require_room(
        prompts, settings.max_response_tokens, position_limit(models.sampling_policy()), where="ppo.max_response_tokens"
    )
    main = _main_reward_model(models, policy, reward_model, home, dtype)
    options: Any = {"tokenizer": tokenizer, "device": home, "dtype": dtype}
    further = further_rewards(settings, further_reward_models or {}, **options)
    longest = max(len(prompt.ids) for prompt in prompts) + settings.max_response_tokens
    for judge in (main, *(source.model for source in further if isinstance(source, ModelReward))):
        _require_readable(models.sampling_policy(), judge, longest=longest)
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
        require_same_vocabulary(tokenizer, artifacts[name], name=f"reward model {name!r}")
        require_not_held_out(artifacts[name], name=f"reward model {name!r}")
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
        head = _value_head_of(critic, scale, settings.reward)
        return SeparateModels(model, value_backbone=critic.base_model, value_head=head)  # pyright: ignore
    model = load_policy(policy.path, dtype=dtype or pick_dtype(device), device=device)
    head = _head_for_policy_backbone(model, policy, reward_model, scale, settings)
    value_adapter = settings.value_model == "separate"
    return SharedBackbone(model, value_head=head, lora=settings.lora, value_adapter=value_adapter)


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
    return _value_head_of(source, scale, settings.reward)


def _value_head_of(reward_model: PreTrainedModel, scale: RewardScale, settings: RewardSettings) -> ValueHead:
    """The reward model's head, in the units of the score; with running moments its evaluation's are the best guess."""
    mean, std = (0.0, 1.0) if settings.normalise == "none" else (scale.mean, scale.std)
    weight = settings.weight or 1.0
    return ValueHead.of_reward_model(reward_model, mean=mean, std=std / weight)


def _require_readable(policy: PreTrainedModel, reward_model: Any, *, longest: int) -> None:
    """Every token that the policy may sample, and every position, must be one that the reward model knows.

    Raises:
        InputError: The reward model has fewer embeddings than the policy has logits, or reads fewer tokens.
    """
    if not isinstance(reward_model, PreTrainedModel):  # an adapter over the policy's own backbone
        return
    logits = policy.config.get_text_config().vocab_size
    embeddings: Any = reward_model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    limit = position_limit(reward_model)
    where = str(reward_model.config.name_or_path)
    if rows < logits:
        raise InputError(
            f"the reward model has {rows} embeddings, the policy can sample {logits} tokens.",
            where=where,
            hint="Train the reward model from this policy.",
        )
    if limit is not None and longest > limit:
        raise InputError(
            f"the longest prompt and response together have {longest} tokens, the reward model reads {limit}.",
            where=where,
            hint="Lower ppo.max_response_tokens, or leave out the longest prompts.",
        )


def _require_safety_slices(prompts: Sequence[EncodedPrompt], settings: RewardSettings) -> None:
    if absent := sorted(set(settings.safety.slices) - {prompt.slice for prompt in prompts}):
        raise InputError(
            f"no training prompt is of slice {absent[0]!r}.",
            where="ppo.reward.safety.slices",
            hint=f"The slices are {', '.join(sorted({prompt.slice for prompt in prompts}))}.",
        )
