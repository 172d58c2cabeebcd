"""A whole run, small: what the demo does, on fewer rows and steps, with the user's own preference pairs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from components.demo_world.make import PROMPTS_PER_SLICE, make_world
from components.shared.files import read_json
from pipelines.settings import load_run_settings

__all__ = ["latest_summary", "make_small_world", "plumbline", "small_settings", "write_settings"]

_TINY_MODEL = {"hidden_size": 64, "feedforward_size": 128}


def make_small_world(folder: Path, *, shape: Any = "llama", preference_format: Any = "chosen_rejected") -> Path:
    """Data and an untrained model, as a user would bring them: SFT, prompts, preference pairs, model folder."""
    return make_world(
        folder,
        seed=0,
        demonstrations=800,
        prompts_per_slice=dict.fromkeys(PROMPTS_PER_SLICE, 60),
        preferences=1500,
        preference_format=preference_format,
        shape=shape,
        model_sizes=_TINY_MODEL,
    )


def small_settings(world: Path, workspace: Path, **overrides: dict[str, Any]) -> dict[str, Any]:
    """The demo's settings, cut down; `overrides` go into the sections they name."""
    settings = load_run_settings("demo").model_dump(mode="json")
    changes: dict[str, dict[str, Any]] = {
        "data": {
            "sft": str(world / "sft.jsonl"),
            "prompts": str(world / "prompts.jsonl"),
            "preferences": str(world / "preferences.jsonl"),
        },
        "data_validation": {"min_rows_per_slice": 5, "max_duplicate_share": 0.6},
        "collection": {"source": "dataset"},
        "sft": {"epochs": 1},
        "ppo": {"steps": 3, "episodes_per_step": 16, "evaluate_every_steps": 1, "save_every_steps": 1},
        "evaluation": {"prompts": {"heldout": 20, "human_eval": 40}, "checkpoint_prompts": 10, "max_checkpoints": 2},
        "human_eval": {"n_prompts": 40, "checkpoint_prompts": 10},
        "execution": {"workspace": str(workspace)},
    }
    settings["reward_model"]["checks"]["min_accuracy_lower_bound"] = 0.5
    for attack in settings["reward_model"]["attacks"].values():
        attack["limit"] = 1.0  # what so small a reward model falls for is not what these tests are about
    for section, values in {**changes, **{k: changes.get(k, {}) | v for k, v in overrides.items()}}.items():
        settings[section].update(values)
    settings["name"] = "small"
    settings["model_name"] = "small"
    settings["base_model"] = str(world / "model")
    return settings


def write_settings(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


def plumbline(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a user does."""
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def latest_summary(workspace: Path) -> dict[str, Any]:
    return read_json(workspace / "latest" / "summary.json")
