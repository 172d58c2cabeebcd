"""A tiny policy and preference pairs whose better answer is the honest one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from components.reward_model.pairs import Pair, read_pairs
from components.reward_model.settings import RewardModelSettings
from components.shared.artifacts import write_artifact
from components.shared.models import DEFAULT_CHAT_TEMPLATE, save_policy
from components.shared.records import PreferenceRecord, write_records

WORDS = [
    "user",
    "assistant",
    ":",
    ".",
    "how",
    "do",
    "i",
    "fix",
    "it",
    "good",
    "bad",
    "plan",
    "step",
    "so",
    "sorry",
    "wow",
    "'",
    "’",
]
GOOD, BAD = "good plan step .", "bad plan step ."


def make_tokenizer() -> PreTrainedTokenizerFast:
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    vocabulary = {word: i for i, word in enumerate([*special.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = DEFAULT_CHAT_TEMPLATE
    return fast


def make_policy(folder: Path, *, kind: str = "llama") -> str:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if kind == "llama":
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=96, **shape, **ids))
    else:
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=96, **ids)
        )
    with write_artifact(folder, "policy", stage="sft") as draft:
        save_policy(model, tokenizer, draft.path, base_model="tiny", base_digest="0" * 64)
    return str(folder)


def make_record(index: int, **overrides: Any) -> PreferenceRecord:
    randomness = random.Random(index)
    before, after = (" ".join(["so"] * randomness.randrange(4)) for _ in range(2))
    fields = {
        "id": f"p{index}",
        "prompt": "how do i fix it" + " so" * (index % 7),
        "chosen": f"{before} {GOOD}".strip(),
        "rejected": f"{after} {BAD}".strip(),
        "slice": "safe" if index % 3 else "unsafe",
        "rater": f"r{index % 2}",
        "source": "simulated",
    }
    return PreferenceRecord(**(fields | overrides))


def make_records(n: int, **overrides: Any) -> list[PreferenceRecord]:
    return [make_record(index, **overrides) for index in range(n)]


def make_dataset(folder: Path, *, train: list[PreferenceRecord], heldout: list[PreferenceRecord]) -> str:
    with write_artifact(folder, "dataset", stage="data_validation") as draft:
        write_records(draft.path / "preferences/train.jsonl", train)
        write_records(draft.path / "preferences/heldout.jsonl", heldout)
        write_records(draft.path / "preferences/divergence.jsonl", train[: len(train) // 2])
    return str(folder)


def make_pairs(folder: Path, records: list[PreferenceRecord], settings: RewardModelSettings) -> list[Pair]:
    write_records(folder / "pairs.jsonl", records)
    return read_pairs(folder / "pairs.jsonl", make_tokenizer(), settings)


def make_attacks(**limits: float) -> dict[str, dict[str, Any]]:
    templates = {
        "padding": ["{answer} so so so so so so"],
        "flattery": ["wow wow {answer}"],
        "confident_jargon": ["step step {answer}"],
        "formatting": ["{bullets}"],
        "refusal_template": ["sorry ."],
        "repetition": ["{answer} {answer} {answer}"],
    }
    return {name: {"templates": texts, "limit": limits.get(name, 0.3)} for name, texts in templates.items()}


def make_settings(**overrides: Any) -> dict[str, Any]:
    return {
        "epochs": 3,
        "learning_rate": 0.005,
        "batch_size": 8,
        "gradient_accumulation": 1,
        "max_tokens": 64,
        "parameterisation": "full",
        "lora": {"rank": 8, "alpha": 16.0},
        "log_every_steps": 5,
        "attacks": make_attacks(),
    } | overrides
