"""Artifacts around models of a few thousand parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from components.demo_world.tokenizer_and_model import make_model, make_tokenizer
from components.shared.artifacts import write_artifact
from components.shared.files import write_json
from components.shared.models import DEFAULT_CHAT_TEMPLATE, save_policy, save_reward_model
from components.shared.records import PromptRecord, write_records

SIZES: dict[str, Any] = {"layers": 1, "hidden_size": 16, "feedforward_size": 32, "heads": 2}


def make_other_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character: a vocabulary that shares nothing with the demo world's."""
    letters = "abcdefghijklmnopqrstuvwxyz .,?!'-\n:<>"
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[EOS]", "[UNK]", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        chat_template=DEFAULT_CHAT_TEMPLATE,
    )


def make_policy(
    path: Path, *, seed: int, sharpness: float = 1.0, tokenizer: PreTrainedTokenizerBase | None = None
) -> str:
    """A random policy; its weights are scaled by `sharpness`, so that two of one seed differ by a known direction."""
    with write_artifact(path, "policy", stage="test") as draft:
        fill_policy(draft.path, seed=seed, sharpness=sharpness, tokenizer=tokenizer)
    return str(path)


def fill_policy(
    folder: Path, *, seed: int, sharpness: float = 1.0, tokenizer: Any = None, step: int | None = None
) -> None:
    tokenizer = tokenizer or make_tokenizer()
    model = make_model(tokenizer, seed=seed, **SIZES)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(sharpness)
    save_policy(model, tokenizer, folder, base_model="tiny", base_digest="0", step=step)


def make_checkpoints(path: Path, steps: list[int]) -> str:
    with write_artifact(path, "policy_checkpoints", stage="test") as draft:
        for step in steps:
            fill_policy(draft.path / f"step-{step:04d}", seed=step, step=step)
    return str(path)


def make_reward_model(path: Path, *, seed: int, tokenizer: Any = None) -> str:
    tokenizer = tokenizer or make_tokenizer()
    config = make_model(tokenizer, seed=seed, **SIZES).config
    config.num_labels = 1
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.score.weight, std=1.0)
    with write_artifact(path, "reward_model", stage="test") as draft:
        save_reward_model(model, tokenizer, draft.path)
        write_json(draft.path / "reward.json", {"mean": 0.0, "std": 1.0, "slope": 1.0, "train_split": "train"})
    return str(path)


def make_dataset(path: Path, **sizes: int) -> str:
    """A dataset with `sizes` prompts in each named set, in the slices `how_to` and `unsafe` by turns."""
    with write_artifact(path, "dataset", stage="test") as draft:
        for name, size in sizes.items():
            records = [
                PromptRecord(id=f"{name}-{i}", prompt="how do i fix the lamp ?", slice=("how_to", "unsafe")[i % 2])
                for i in range(size)
            ]
            write_records(draft.path / "prompts" / f"{name}.jsonl", records)
    return str(path)
