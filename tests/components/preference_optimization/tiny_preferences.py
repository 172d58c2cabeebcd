"""Builders for the tests of preference optimisation: a ten-word world, tiny models, pairs with an obvious taste."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
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

from components.shared.artifacts import write_artifact
from components.shared.files import write_json
from components.shared.models import save_policy, save_reward_model
from components.shared.records import PreferenceRecord, PromptRecord, write_records

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = ("red", "blue", "green", "one", "two", "three", "cat", "dog", "yes", "no")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}two{% endif %}"
)


def make_tokenizer(words: tuple[str, ...] = WORDS) -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({token: i for i, token in enumerate((*SPECIAL, *words))}, unk_token="<unk>"))
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


def make_policy(kind: str = "llama", *, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    if kind == "llama":
        return LlamaForCausalLM(make_config()).eval()
    vocabulary = len(SPECIAL) + len(WORDS)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_layer=1,
        n_embd=16,
        n_head=2,
        n_positions=64,
        eos_token_id=2,
        bos_token_id=1,
        initializer_range=0.3,
    )
    config.pad_token_id = 0
    return GPT2LMHeadModel(config).eval()


def make_reward_model(*, seed: int = 1) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(make_config(num_labels=1)).eval()


def make_pairs(count: int = 48) -> list[PreferenceRecord]:
    """`yes` is preferred to `no`, whatever the question."""
    return [
        PreferenceRecord(
            id=f"p{i}",
            prompt=" ".join([WORDS[i % 8]] * (1 + i % 3)),
            chosen=" ".join(["yes"] * (1 + i % 2)),
            rejected=" ".join(["no"] * (1 + (i // 2) % 2)),
            slice="even" if i % 2 == 0 else "odd",
        )
        for i in range(count)
    ]


def make_prompts(count: int = 16) -> list[PromptRecord]:
    return [
        PromptRecord(id=str(i), prompt=" ".join([WORDS[i % 8]] * (1 + i % 3)), slice="even" if i % 2 == 0 else "odd")
        for i in range(count)
    ]


def make_artifacts(
    folder: Path,
    *,
    kind: str = "llama",
    pairs: list[PreferenceRecord] | None = None,
    prompts: list[PromptRecord] | None = None,
    reward_words: tuple[str, ...] = WORDS,
    reward_std: float = 1.0,
    reward_split: str = "train",
) -> dict[str, str]:
    """Policy, reward model, dataset and pairs, as the stages before leave them."""
    with write_artifact(folder / "policy", "policy", stage="sft") as draft:
        save_policy(make_policy(kind), make_tokenizer(), draft.path, base_model="tiny", base_digest="0" * 64)
    with write_artifact(folder / "reward", "reward_model", stage="reward_model") as draft:
        save_reward_model(make_reward_model(), make_tokenizer(reward_words), draft.path)
        scale = {"mean": 0.0, "std": reward_std, "slope": 1.0, "train_split": reward_split}
        write_json(draft.path / "reward.json", scale)
    with write_artifact(folder / "dataset", "dataset", stage="data_validation") as draft:
        write_records(draft.path / "prompts/train.jsonl", make_prompts() if prompts is None else prompts)
    with write_artifact(folder / "pairs", "dataset", stage="data_validation") as draft:
        write_records(draft.path / "preferences/train.jsonl", make_pairs() if pairs is None else pairs)
    names = {"policy": "policy", "reward_model": "reward", "dataset": "dataset", "pairs": "pairs"}
    return {name: str(folder / path) for name, path in names.items()}


def make_settings(method: str, **overrides: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "method": method,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "warmup_fraction": 0.0,
        "scheduler": "constant_with_warmup",
        "batch_size": 8,
        "gradient_accumulation": 2,
        "group_size": 4,
        "max_tokens": 16,
        "max_response_tokens": 6,
        "parameterisation": "full",
        "lora": {"rank": 4, "alpha": 8.0},
        "save_every_steps": 2,
        "evaluate_every_steps": 2,
        "evaluation_prompts": 12,
    }
    return options | overrides


def run_arguments(
    folder: Path, method: str = "dpo", *, inputs: dict[str, str] | None = None, **settings: Any
) -> dict[str, Any]:
    """Arguments of `stage.run`, outputs under `folder`."""
    return {
        **(inputs or make_artifacts(folder / "in")),
        "output_policy": str(folder / "out/candidate"),
        "output_checkpoints": str(folder / "out/checkpoints"),
        "output_history": str(folder / "out/history"),
        "seed": 3,
        "settings": make_settings(method, **settings),
    }
