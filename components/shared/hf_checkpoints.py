"""Resumable checkpoints: where a trainer keeps them, and, for a Hugging Face trainer, which of them are whole.

Transformers writes a checkpoint file by file and takes the highest number for the newest, finished or not. Here a
checkpoint is sealed by a manifest of its files' hashes, written last; what has no valid seal is removed before training
goes on. The folder is named by a digest of everything that shapes the run, so that a retry finds its own work and
nobody else's. Where checkpoints go to object storage, the trainer still works in a folder; see `checkpoint_storage`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.shared.checkpoint_storage import FOLDER, published_folder, scratch_folder
from components.shared.errors import InputError, PlumblineError
from components.shared.files import digest_of, read_json, sha256_file, write_json
from components.shared.storage import is_object_storage

__all__ = [
    "CHECKPOINTS_VARIABLE",
    "TrainingFolder",
    "held_training_folder",
    "latest_checkpoint",
    "seal_checkpoint",
    "training_folder",
]

CHECKPOINTS_VARIABLE = "PLUMBLINE_CHECKPOINTS"
_SEAL = "complete.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")

logger = logging.getLogger(__name__)


def _nowhere_else() -> None:
    """What is in the folder is where it should be."""


@dataclass(frozen=True)
class TrainingFolder:
    """Where a trainer keeps its checkpoints.

    Attributes:
        path: The folder.
        durable: Whether it outlives this process.
        publish: To be called whenever a checkpoint in it is sealed: the folder goes to where it outlives this machine.
    """

    path: Path
    durable: bool
    publish: Callable[[], None] = _nowhere_else


@contextmanager
def training_folder(identity: Mapping[str, Any]) -> Iterator[TrainingFolder]:
    """The folder of the run that `identity` (JSON values: inputs, settings, seed, code) names.

    It is removed when the block ends without an error, and kept for the next attempt otherwise. Without
    `PLUMBLINE_CHECKPOINTS` it is temporary; where that is `s3://bucket/prefix`, it is what was last published there.

    Raises:
        PlumblineError: Another process trains the same run at this moment.
        StorageError: Object storage cannot be used.
    """
    root = os.environ.get(CHECKPOINTS_VARIABLE)
    if not root:
        with tempfile.TemporaryDirectory(prefix="plumbline-") as temporary:
            yield TrainingFolder(Path(temporary), durable=False)
        return
    digest = digest_of(dict(identity))
    remote = is_object_storage(root)
    folder = scratch_folder(root, digest) if remote else Path(root) / digest
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        if remote:
            with published_folder(f"{root.rstrip('/')}/{digest}", folder) as published:
                yield TrainingFolder(published.path, durable=True, publish=published.publish)
        else:
            yield TrainingFolder(folder, durable=True)
        shutil.rmtree(folder)


def held_training_folder(identity: Mapping[str, Any]) -> TrainingFolder:
    """The folder that another process of the same training holds; to read in."""
    root = os.environ.get(CHECKPOINTS_VARIABLE)
    digest = digest_of(dict(identity))
    if root and is_object_storage(root):
        return TrainingFolder(scratch_folder(root, digest) / FOLDER, durable=True)
    return TrainingFolder(Path(root or os.devnull) / digest, durable=bool(root))


def seal_checkpoint(checkpoint: Path) -> None:
    """Marks a checkpoint as whole: every file is on disk before the manifest that lists it."""
    files = {}
    for file in sorted(checkpoint.rglob("*")):
        if file.is_file() and file.name != _SEAL:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            files[str(file.relative_to(checkpoint))] = sha256_file(file)
    write_json(checkpoint / _SEAL, {"files": files})


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; incomplete or damaged ones that are newer are removed."""
    numbered = [(int(match[1]), path) for path in folder.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
    for _, checkpoint in sorted(numbered, reverse=True):
        fault = _fault(checkpoint)
        if fault is None:
            return checkpoint
        logger.warning("%s: %s; it is removed and training resumes from an earlier one.", checkpoint, fault)
        shutil.rmtree(checkpoint)
    return None


def _fault(checkpoint: Path) -> str | None:
    if not (checkpoint / _SEAL).is_file():
        return "the checkpoint was never finished"
    try:
        files = read_json(checkpoint / _SEAL)["files"]
    except InputError as error:
        return str(error)
    for name, expected in files.items():
        if not (checkpoint / name).is_file():
            return f"file {name!r} is missing"
        if sha256_file(checkpoint / name) != expected:
            return f"file {name!r} is damaged"
    return None


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PlumblineError(
                "another process is training this very run.",
                where=str(folder),
                hint="Wait for it, or stop it first.",
            ) from error
        yield
