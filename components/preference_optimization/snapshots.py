"""The policies kept for evaluation, one folder each, and the candidate."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, Trainer

from components.shared.files import write_json
from components.shared.models import save_policy

__all__ = ["Snapshots"]

_NAME = "step-{:04d}"


class Snapshots:
    """Keeps policies beside the resume checkpoints until they become an artifact: an interruption loses none."""

    def __init__(
        self, folder: Path, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, origin: dict[str, str]
    ) -> None:
        """Keeps nothing yet.

        Args:
            folder: Where the policies are kept.
            trainer: Whose policy it is.
            tokenizer: The policy's tokenizer.
            origin: `base_model` and `base_digest` of the reference.
        """
        self._folder = folder
        self._trainer = trainer
        self._tokenizer = tokenizer
        self._origin = origin

    def take(self, step: int) -> None:
        """Saves the policy as it is after `step` updates: whole, or its adapter."""
        target = self._folder / _NAME.format(step)
        if target.exists():  # left by an attempt that was interrupted before its next checkpoint
            shutil.rmtree(target)
        model: Any = self._trainer.model
        if not hasattr(model, "merge_and_unload"):
            save_policy(model, self._tokenizer, target, **self._origin, step=step)
            return
        model.save_pretrained(target)
        self._tokenizer.save_pretrained(target)
        write_json(target / "policy.json", {"format": "adapter", **self._origin, "step": step})

    def copy_to(self, folder: Path, steps: list[int]) -> None:
        """Copies the policies of `steps`."""
        for step in steps:
            name = _NAME.format(step)
            shutil.copytree(self._folder / name, folder / name)

    def save_candidate(self, folder: Path, *, step: int) -> None:
        """Saves the policy with whole weights; the last thing done with the trainer."""
        save_policy(self._trainer.model, self._tokenizer, folder, **self._origin, step=step)
