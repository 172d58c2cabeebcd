"""Resumable checkpoints: where a trainer keeps them, and, for a Hugging Face trainer, which of them are whole.

Transformers writes a checkpoint file by file and takes the highest number for the newest, finished or not. Here a
checkpoint is sealed by a manifest of its files' hashes, written last; what has no valid seal is removed before training
goes on. The folder is named by a digest of everything that shapes the run, so that a retry finds its own work and
nobody else's. Where checkpoints go to object storage, the trainer still works in a folder; see `checkpoint_storage`.

Of several processes that train together the first holds the folder and writes in it; the others read there, or, on
another node with checkpoints in object storage, in a folder of their own with what they fetched.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.shared.checkpoint_storage import FOLDER, Published, fetch_files, published_folder, scratch_folder
from components.shared.errors import InputError, PlumblineError
from components.shared.files import digest_of, read_json, sha256_file, write_json
from components.shared.storage import is_object_storage
from components.shared.termination import StoppedTogether

if TYPE_CHECKING:
    from components.shared.world import World

__all__ = [
    "CHECKPOINTS_VARIABLE",
    "TrainingFolder",
    "joint_training_folder",
    "latest_checkpoint",
    "resume_point",
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
        published: What publishes it, where it goes to object storage and this process holds it.
        fetch: On another node than the holder's, brings files of the folder here: sha256 by path.
    """

    path: Path
    durable: bool
    publish: Callable[[], None] = _nowhere_else
    published: Published | None = None
    fetch: Callable[[dict[str, str]], None] | None = None


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
                yield TrainingFolder(published.path, durable=True, publish=published.publish, published=published)
        else:
            yield TrainingFolder(folder, durable=True)
        shutil.rmtree(folder)


@contextmanager
def joint_training_folder(world: World, identity: Mapping[str, Any]) -> Iterator[TrainingFolder]:
    """The folder of a training that several processes do together; all enter and leave it together.

    Args:
        world: The processes.
        identity: As for `training_folder`.

    Raises:
        PlumblineError: Another training does the same run at this moment; every process is told.
        StorageError: Object storage cannot be used.
    """
    root = os.environ.get(CHECKPOINTS_VARIABLE)

    def enter() -> TrainingFolder:
        if world.is_main or not root:
            return held.enter_context(training_folder(identity))
        return held.enter_context(_folder_of_another(world, root, digest_of(dict(identity))))

    try:
        with ExitStack() as held:
            yield world.together(enter)
    except StoppedTogether:
        world.wait()  # who ended now would make the launcher end the first one, which gives back what it holds
        raise
    world.wait()


@contextmanager
def _folder_of_another(world: World, root: str, digest: str) -> Iterator[TrainingFolder]:
    """The training folder of a process that is not the first."""
    if not is_object_storage(root):
        yield TrainingFolder(Path(root) / digest, durable=True)
        return
    scratch = scratch_folder(root, digest)
    if world.is_with_main or world.local_rank > 0:
        yield TrainingFolder(scratch / FOLDER, durable=True)
        return
    scratch.mkdir(parents=True, exist_ok=True)
    with _only_one(scratch):
        address = f"{root.rstrip('/')}/{digest}"
        yield TrainingFolder(scratch / FOLDER, durable=True, fetch=lambda files: fetch_files(address, scratch, files))
        shutil.rmtree(scratch)


def resume_point(world: World, folder: TrainingFolder, newest: Callable[[], Path | None]) -> Path | None:
    """The checkpoint that all processes go on from: the first one's newest; all call this together.

    Args:
        world: The processes.
        folder: Of the training.
        newest: Finds the newest whole checkpoint in it; asked in the first process only.

    Raises:
        InputError: Not every process sees it.
        StorageError: It is in object storage and cannot be fetched.
    """
    found = world.together(lambda: newest() if world.is_main else None)
    if world.size == 1:
        return found
    name = world.from_main(found.relative_to(folder.path).as_posix() if found is not None else None)
    if name is None:
        return None
    published = folder.published
    elsewhere = world.size > world.local_size
    files = world.together(lambda: published.files_below(name) if published is not None and elsewhere else {})
    files = world.from_main(files)
    world.together(lambda: folder.fetch(files) if folder.fetch is not None else None)
    world.together(lambda: _require_seen(folder.path / name, world.rank))
    return folder.path / name


def _require_seen(checkpoint: Path, rank: int) -> None:
    if not checkpoint.is_dir():
        raise InputError(
            f"the processes do not see the same checkpoints: number {rank} does not see {checkpoint.name}.",
            where=CHECKPOINTS_VARIABLE,
            hint="Over several machines it must be a folder that all of them mount, or object storage.",
        )


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
