"""A tiny base model and a dataset of demonstrations with an obvious pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from components.shared.artifacts import write_artifact
from components.shared.files import write_jsonl
from components.shared.records import SFTRecord, write_records

WORDS = ["user", "assistant", ":", "say", "please", "red", "green", "blue", "here", "is", "your", "word", "."]


def make_tokenizer(**overrides: Any) -> PreTrainedTokenizerFast:
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"} | overrides
    special = {name: token for name, token in special.items() if token is not None}
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special.values(), *WORDS]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_base_model(folder: Path, *, kind: str = "llama", tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=64,
                **ids,
            )
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, **ids)
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_dataset(folder: Path, *, n_train: int = 48, n_heldout: int = 12, **completion: Any) -> str:
    with write_artifact(folder, "dataset", stage="data_validation") as draft:
        write_records(draft.path / "sft/train.jsonl", make_records(n_train, **completion))
        write_records(draft.path / "sft/heldout.jsonl", make_records(n_heldout, **completion))
        write_jsonl(draft.path / "quarantine.jsonl", [])
    return str(folder)


def make_records(n: int, *, completion: str = "here is your word {colour} .") -> list[SFTRecord]:
    colours = ["red", "green", "blue"]
    return [
        SFTRecord(
            id=f"d{i}",
            prompt=("please " * (i % 4)) + f"say {colours[i % 3]}",
            completion=completion.format(colour=colours[i % 3]),
            slice="polite" if i % 4 else "plain",
        )
        for i in range(n)
    ]


def make_settings(**overrides: Any) -> dict[str, Any]:
    return {
        "epochs": 3,
        "learning_rate": 0.01,
        "batch_size": 8,
        "gradient_accumulation": 1,
        "max_tokens": 48,
        "parameterisation": "full",
        "lora": {"rank": 8, "alpha": 16.0},
        "log_every_steps": 2,
    } | overrides
