"""Inputs and runs of `test_joint_training`, the same for one process and for several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_pairs
import tiny_sft
from safetensors.torch import load_file

from components.reward_model import stage as reward_model
from components.sft import stage as sft

__all__ = [
    "DROPOUT",
    "INTERRUPTED",
    "INTERRUPTED_AT",
    "REWARD_MODEL",
    "SFT",
    "difference",
    "make_inputs",
    "run_reward_model",
    "run_sft",
    "sft_settings",
]

_SMALL = {"learning_rate": 1e-3, "save_every_steps": 4, "log_every_steps": 1}
SFT: dict[str, dict[str, Any]] = {
    "sft-full": {"dtype": "float32"},  # 45 demonstrations: the last batch of 8 has 5, one of them in the second process
    "sft-lora": {"parameterisation": "lora", "gradient_accumulation": 3, "gradient_checkpointing": True},
    "sft-packing": {"packing": True, "gradient_accumulation": 2, "evaluate_each_epoch": False},
}
REWARD_MODEL: dict[str, dict[str, Any]] = {
    "rm-full": {"learning_rate": 1e-4},
    "rm-lora": {"parameterisation": "lora", "gradient_accumulation": 2},
}
"""41 pairs of unlike strengths: the last batch of 8 has one, and none in the second process."""

INTERRUPTED, INTERRUPTED_AT = "sft-full", 4
DROPOUT = "sft-dropout"
_DROPOUT = {"parameterisation": "lora", "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.3}, "evaluate_each_epoch": False}


def make_inputs(folder: Path) -> None:
    """A base model, demonstrations, a policy and pairs."""
    tiny_sft.make_base_model(folder / "base")
    tiny_sft.make_dataset(folder / "demonstrations", n_train=45, n_heldout=16)
    tiny_pairs.make_policy(folder / "policy")
    train = [tiny_pairs.make_record(i, strength=(i % 3 + 1) / 3) for i in range(41)]
    tiny_pairs.make_dataset(folder / "pairs", train=train, heldout=tiny_pairs.make_records(40))


def run_sft(folder: Path, who: str, name: str, **overrides: Any) -> dict[str, Any]:
    return sft.run(
        dataset=folder / "demonstrations",
        output=folder / who / name,
        base_model=str(folder / "base"),
        seed=0,
        settings=sft_settings(name, **overrides),
    )


def sft_settings(name: str, **overrides: Any) -> dict[str, Any]:
    return tiny_sft.make_settings(**(_SMALL | (_DROPOUT if name == DROPOUT else SFT[name]) | overrides))


def run_reward_model(folder: Path, who: str, name: str) -> dict[str, Any]:
    settings = tiny_pairs.make_settings(**(_SMALL | REWARD_MODEL[name]))
    return reward_model.run(
        policy=folder / "policy",
        dataset=folder / "pairs",
        output=folder / who / name,
        train_split="train",
        seed=0,
        settings=settings,
    )


def difference(one: Path, other: Path) -> float:
    """The largest between two weights."""
    mine, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)
