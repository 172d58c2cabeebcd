"""From input artifacts to a trainer: loads models, prompts and pairs, and checks that they belong together."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from components.preference_optimization.measuring import Probe
from components.preference_optimization.pairs import Pair, encode_pairs, pairs_file
from components.preference_optimization.payment import Payment
from components.preference_optimization.settings import METHOD_NAMES, PreferenceOptimizationSettings
from components.preference_optimization.trainers import Start, make_trainer
from components.shared.artifacts import Artifact
from components.shared.errors import InputError
from components.shared.hf_checkpoints import TrainingFolder
from components.shared.hf_training import training_arguments, weights_dtype
from components.shared.models import load_policy, load_reward_model, load_tokenizer, stop_token_ids
from components.shared.policy_optimization import (
    encode_prompts,
    position_limit,
    read_reward_scale,
    require_not_held_out,
    require_room,
    require_same_vocabulary,
)

__all__ = ["Inputs", "Training", "build_training"]

_WHERE = "preference_optimization"


@dataclass(frozen=True)
class Inputs:
    """The stage's input artifacts; `pairs` is the dataset itself where none were given apart."""

    policy: Artifact
    reward_model: Artifact
    dataset: Artifact
    pairs: Artifact


@dataclass(frozen=True)
class Training:
    """A training that has not begun."""

    trainer: Trainer
    tokenizer: PreTrainedTokenizerBase
    probe: Probe


def build_training(
    inputs: Inputs, settings: PreferenceOptimizationSettings, *, folder: TrainingFolder, seed: int
) -> Training:
    """Loads everything and sets up a training.

    Raises:
        InputError: The artifacts do not belong together, there is nothing to learn from, or a prompt is too long.
        ArtifactError: An artifact lacks something.
    """
    tokenizer = load_tokenizer(inputs.policy.path)
    require_same_vocabulary(tokenizer, inputs.reward_model)
    if not settings.is_offline:
        require_not_held_out(inputs.reward_model)
    prompts = encode_prompts(inputs.dataset.file("prompts/train.jsonl"), tokenizer)
    pairs = _pairs(inputs, tokenizer, settings)
    model = _load(inputs.policy, settings)
    _require_positions(model, settings)
    require_room(prompts, settings.max_response_tokens, settings.max_tokens, where=f"{_WHERE}.max_tokens")
    payment = Payment(
        load_reward_model(inputs.reward_model.path).requires_grad_(False),
        tokenizer,
        read_reward_scale(inputs.reward_model),
        settings.reward,
        stops=stop_token_ids(tokenizer, model),
        batch_size=settings.batch_size,
    )
    start = Start(
        model=model,
        reference=_reference(inputs.policy, settings),
        tokenizer=tokenizer,
        prompts=prompts,
        pairs=pairs,
        payment=payment,
        settings=settings,
        arguments=training_arguments(settings, folder=folder, seed=seed),
    )
    trainer = make_trainer(start)
    probe = Probe(trainer, tokenizer, prompts, payment.raw, settings=settings, seed=seed)
    return Training(trainer, tokenizer, probe)


def _pairs(inputs: Inputs, tokenizer: PreTrainedTokenizerBase, settings: PreferenceOptimizationSettings) -> list[Pair]:
    if not settings.is_offline:
        return []
    return encode_pairs(pairs_file(inputs.pairs, METHOD_NAMES[settings.method]), tokenizer, settings)


def _load(policy: Artifact, settings: PreferenceOptimizationSettings) -> PreTrainedModel:
    return load_policy(policy.path, dtype=weights_dtype(settings))


def _reference(policy: Artifact, settings: PreferenceOptimizationSettings) -> PreTrainedModel | None:
    """A frozen copy; none with adapters, nor for GRPO and RLOO, whose trainers load one from the policy's folder."""
    if settings.parameterisation == "lora" or settings.method in ("grpo", "rloo"):
        return None
    return _load(policy, settings).requires_grad_(False)


def _require_positions(model: PreTrainedModel, settings: PreferenceOptimizationSettings) -> None:
    limit = position_limit(model)
    if limit is not None and settings.max_tokens > limit:
        raise InputError(
            f"max_tokens is {settings.max_tokens}, the policy reads {limit}.",
            where=f"{_WHERE}.max_tokens",
            hint=f"Set it to {limit} or less.",
        )
