"""Builders for the tests of PPO: a ten-word world, models of a few thousand weights, artifacts, settings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from components.ppo.checkpoint import CheckpointStore, TrainingState
from components.ppo.models import SeparateModels, SharedBackbone, ValueHead
from components.ppo.rollout import EncodedPrompt
from components.ppo.settings import LoRASettings, PPOSettings
from components.ppo.trainer import PPOTrainer
from components.shared.artifacts import write_artifact
from components.shared.files import write_json
from components.shared.models import load_reward_model, save_policy, save_reward_model
from components.shared.records import PromptRecord, write_records

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = ("red", "blue", "green", "one", "two", "three", "cat", "dog", "yes", "no")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}yes{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({token: i for i, token in enumerate((*SPECIAL, *WORDS))}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
        padding_side="right",
    )


def make_config(**overrides: Any) -> LlamaConfig:
    options = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**(options | overrides))


def make_policy(*, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(make_config(**overrides)).eval()


def make_gpt2_policy(*, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    vocabulary = len(SPECIAL) + len(WORDS)
    config = GPT2Config(vocab_size=vocabulary, n_layer=1, n_embd=16, n_head=2, n_positions=64, eos_token_id=2)
    config.pad_token_id = 0
    return GPT2LMHeadModel(config).eval()


def make_reward_model(*, seed: int = 1, **overrides: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(make_config(num_labels=1, **overrides)).eval()


def make_prompts(count: int = 12) -> list[EncodedPrompt]:
    """Prompts of two to four tokens, in two slices."""
    return [
        EncodedPrompt(ids=[1, *([4 + i % len(WORDS)] * (1 + i % 3))], slice="even" if i % 2 == 0 else "odd")
        for i in range(count)
    ]


def make_settings(**overrides: Any) -> PPOSettings:
    options: dict[str, Any] = {
        "steps": 4,
        "episodes_per_step": 8,
        "ppo_epochs": 2,
        "microbatch": 4,
        "policy_learning_rate": 1e-2,
        "value_learning_rate": 1e-2,
        "warmup_steps": 0,
        "max_response_tokens": 6,
        "parameterisation": "full",
        "save_every_steps": 1,
        "evaluate_every_steps": 2,
        "lora": {"rank": 4, "alpha": 8},
    }
    return PPOSettings.model_validate(options | overrides)


def make_models(settings: PPOSettings, *, policy: PreTrainedModel | None = None) -> SeparateModels | SharedBackbone:
    torch.manual_seed(2)
    policy = policy or make_policy()
    if settings.parameterisation == "lora":
        head = ValueHead.zero(policy.config.hidden_size, policy.device)
        lora = LoRASettings.model_validate(settings.lora.model_dump())
        return SharedBackbone(policy, value_head=head, lora=lora, value_adapter=settings.value_model == "separate")
    if settings.value_model == "shared_trunk":
        return SeparateModels(
            policy, value_backbone=None, value_head=ValueHead.zero(policy.config.hidden_size, policy.device)
        )
    if settings.value_init == "policy":
        backbone: Any = copy.deepcopy(policy.base_model)
        return SeparateModels(
            policy, value_backbone=backbone, value_head=ValueHead.zero(policy.config.hidden_size, policy.device)
        )
    critic = make_reward_model()
    backbone = critic.base_model
    return SeparateModels(
        policy, value_backbone=backbone, value_head=ValueHead.of_reward_model(critic, mean=0.0, std=1.0)
    )


def make_trainer(*, seed: int = 0, policy: PreTrainedModel | None = None, **overrides: Any) -> PPOTrainer:
    settings = make_settings(**overrides)
    return PPOTrainer(
        make_models(settings, policy=policy),
        make_reward_model(),
        make_tokenizer(),
        make_prompts(),
        settings=settings,
        seed=seed,
    )


def make_artifacts(folder: Path, *, reward_mean: float = 0.0, reward_std: float = 1.0) -> dict[str, str]:
    """Policy, reward model and dataset artifacts; the reward model says that it comes from that policy."""
    tokenizer = make_tokenizer()
    with write_artifact(folder / "policy", "policy", stage="sft") as draft:
        save_policy(make_policy(), tokenizer, draft.path, base_model="tiny", base_digest="0" * 64)
    with write_artifact(folder / "reward", "reward_model", stage="reward_model") as draft:
        save_reward_model(make_reward_model(), tokenizer, draft.path)
        write_json(draft.path / "reward.json", {"mean": reward_mean, "std": reward_std, "slope": 1.0})
    with write_artifact(folder / "dataset", "dataset", stage="data_validation") as draft:
        records = [
            PromptRecord(
                id=str(i), prompt=" ".join([WORDS[i % 10]] * (1 + i % 3)), slice="even" if i % 2 == 0 else "odd"
            )
            for i in range(12)
        ]
        write_records(draft.path / "prompts/train.jsonl", records)
    return {
        name: str(folder / path)
        for name, path in (("policy", "policy"), ("reward_model", "reward"), ("dataset", "dataset"))
    }


def save_reward_adapter(policy: Any, folder: Path, *, base_digest: str, dropout: float = 0.0) -> None:
    """Saves a reward model trained as an adapter over `policy`, every weight of it drawn at random, in `reward/`."""
    save_policy(policy, make_tokenizer(), folder / "base", base_model="tiny", base_digest="0" * 64)
    classifier = load_reward_model(folder / "base")
    config = LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=12, lora_dropout=dropout, target_modules="all-linear")
    model: Any = get_peft_model(classifier, config)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.3)
    save_reward_model(model, make_tokenizer(), folder / "reward", base_digest=base_digest)


def load_latest(store: CheckpointStore) -> TrainingState | None:
    newest = store.newest()
    return store.load(newest) if newest is not None else None


def run_arguments(folder: Path, **settings: Any) -> dict[str, Any]:
    """Arguments of `stage.run`: inputs of `make_artifacts`, outputs under `folder`."""
    return {
        **(make_artifacts(folder) if not (folder / "policy").exists() else _existing(folder)),
        "output_policy": str(folder / "out/candidate"),
        "output_checkpoints": str(folder / "out/checkpoints"),
        "output_history": str(folder / "out/history"),
        "seed": 3,
        "settings": make_settings(**settings).model_dump(mode="json"),
    }


def _existing(folder: Path) -> dict[str, str]:
    return {
        "policy": str(folder / "policy"),
        "reward_model": str(folder / "reward"),
        "dataset": str(folder / "dataset"),
    }
