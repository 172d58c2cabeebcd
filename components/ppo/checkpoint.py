"""Resume checkpoints: all of a training's state, whole or absent.

A checkpoint is a folder `step-000040/` that is written aside, synced and renamed, with a manifest of its files' hashes
and of the run's identity (inputs, settings, seed). Weights are safetensors; optimizer and random states are read with
`torch.load(weights_only=True)`; everything else is JSON.
"""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.ppo.errors import CheckpointMismatchError
from components.shared.errors import InputError
from components.shared.files import read_json, sha256_file, sync_folder, write_json

__all__ = ["CheckpointStore", "TrainingState", "random_states", "restore_random_states"]

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_STEP_FOLDER = re.compile(r"step-(\d{6})")
_KEPT = 2
"""Checkpoints kept: the newest, and one before it should the newest turn out damaged."""


@dataclass(frozen=True)
class TrainingState:
    """All that a training needs to go on as if it had never stopped.

    Attributes:
        step: Updates made.
        weights: Tensors by group (`policy`, `value`, `last_good`) and name, on the CPU.
        optimizers: Optimizer states: tensors, numbers, lists and dicts only.
        random: States of the random generators, as `random_states` gives them.
        progress: The rest, JSON values: coefficient, reward moments, cursor, history.
    """

    step: int
    weights: dict[str, dict[str, Tensor]]
    optimizers: dict[str, Any]
    random: dict[str, Any]
    progress: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one training, in one folder."""

    def __init__(
        self, folder: str | Path, identity: Mapping[str, Any], *, publish: Callable[[], None] | None = None
    ) -> None:
        """Opens or creates the folder; removes what an interrupted save left behind.

        Args:
            folder: Where the checkpoints are.
            identity: JSON values that name the training: digests of inputs, settings, seed.
            publish: Called whenever a checkpoint is complete.
        """
        self.folder = Path(folder)
        self._identity = dict(identity)
        self._publish = publish
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover)

    def save(self, state: TrainingState) -> Path:
        """Writes a checkpoint; the one before it stays, older ones go."""
        name = f"step-{state.step:06d}"
        aside = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{name}."))
        for group, tensors in state.weights.items():
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, aside / f"{group}.safetensors")
        torch.save({"optimizers": state.optimizers, "random": state.random}, aside / "state.pt")
        write_json(aside / "progress.json", {"step": state.step, **state.progress})
        files = {file.name: sha256_file(file) for file in sorted(aside.iterdir())}
        for file in files:
            _sync_file(aside / file)
        write_json(aside / _MANIFEST, {"identity": self._identity, "files": files})
        final = self.folder / name
        if final.exists():
            shutil.rmtree(final)
        os.rename(aside, final)
        sync_folder(self.folder)
        for _, old in self._checkpoints()[:-_KEPT]:
            shutil.rmtree(old)
        if self._publish is not None:
            self._publish()
        return final

    def newest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        for _, path in reversed(self._checkpoints()):
            if fault := _fault(path):
                logger.warning("%s: %s; trying the one before it.", path, fault)
                continue
            return path
        return None

    def load(self, checkpoint: Path) -> TrainingState:
        """A checkpoint's state.

        Raises:
            CheckpointMismatchError: It belongs to a training with other inputs, settings or seed; the error names them.
        """
        self._require_same_identity(checkpoint)
        return _load(checkpoint)

    def _checkpoints(self) -> list[tuple[int, Path]]:
        found = ((_STEP_FOLDER.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match)

    def _require_same_identity(self, path: Path) -> None:
        found = _flatten(read_json(path / _MANIFEST)["identity"])
        expected = _flatten(self._identity)
        differing = sorted(key for key in found | expected if found.get(key) != expected.get(key))
        if differing:
            told = "; ".join(f"{key}: {found.get(key)!r} there, {expected.get(key)!r} here" for key in differing)
            raise CheckpointMismatchError(
                f"the checkpoint belongs to another training: {told}.",
                where=str(path),
                hint="Restore those settings and inputs, or choose another folder.",
            )


def random_states() -> dict[str, Any]:
    """States of python's, numpy's and torch's generators, as tensors, numbers and lists."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    states: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Puts the generators back to where `random_states` was taken."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def _load(path: Path) -> TrainingState:
    other = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    progress = read_json(path / "progress.json")
    return TrainingState(
        step=progress.pop("step"),
        weights={file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))},
        optimizers=other["optimizers"],
        random=other["random"],
        progress=progress,
    )


def _fault(path: Path) -> str | None:
    """What makes a checkpoint unusable; None if it is whole."""
    try:
        files = read_json(path / _MANIFEST)["files"]
    except InputError as error:
        return str(error)
    damaged = [
        name for name, digest in files.items() if not (path / name).is_file() or sha256_file(path / name) != digest
    ]
    return f"missing or altered: {', '.join(damaged)}" if damaged else None


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
