"""Checkpoints in object storage: a scratch folder that is published to a prefix and fetched from it.

A trainer works in a folder on its own disk, as it would anyway. Whenever a checkpoint is sealed, the folder as it then
is (resume checkpoints and all that lies beside them) is published:

    <prefix>/files/<sha256>             each file once, under the digest of its content; what is there is not sent again
    <prefix>/published/000007.json      which files make up the folder; written last, so that half a publication is none
    <prefix>/lease/000001.json          who trains (see `lease`)

The next trainer, on whatever machine, takes the newest publication of which every file is there and has its digest.
The two newest are kept, and nothing when training ends. Where several nodes train together, the first one holds the
lease and publishes; the others fetch the files of the checkpoint that it names (`fetch_files`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from components.shared.errors import InputError, PlumblineError
from components.shared.files import digest_of, read_json, sha256_file, write_json
from components.shared.lease import Lease, LeaseLostError
from components.shared.storage import Storage, StorageError, open_storage

__all__ = [
    "FOLDER",
    "Published",
    "check_checkpoint_storage",
    "fetch_files",
    "published_folder",
    "scratch_folder",
    "scratch_root",
]

FOLDER = "folder"
"""The folder to train in, in the scratch folder."""
_FILES = "files/"
_PUBLISHED = "published/"
_KEPT = 2
"""Publications kept: the newest, and one before it should the newest turn out damaged."""
_FAILURES_BORNE = 2
"""Checkpoints in a row that may stay unpublished; the next one stops the training."""

_Files = dict[str, str]
"""sha256 of each file of a folder, by its path in it."""

logger = logging.getLogger(__name__)


def scratch_root() -> Path:
    """Where scratch folders are: below `TMPDIR`."""
    return Path(tempfile.gettempdir()) / f"plumbline-{os.getuid()}"


def scratch_folder(root: str, digest: str) -> Path:
    """The scratch folder of a run: the same for every process of this user on this machine.

    Raises:
        PlumblineError: Somebody else made it.
    """
    made = scratch_root()
    made.mkdir(mode=0o700, parents=True, exist_ok=True)
    if made.stat().st_uid != os.getuid():
        raise PlumblineError("the folder belongs to another user.", where=str(made), hint="Set TMPDIR to another one.")
    return made / digest_of([root, digest])


@contextmanager
def published_folder(address: str, scratch: Path) -> Iterator[Published]:
    """A folder to train in, as it was last published to `address`; all of it is removed there when the block ends well.

    Args:
        address: `s3://bucket/prefix` of this run alone.
        scratch: An existing folder that this process alone uses.

    Raises:
        PlumblineError: Another process trains the run at this moment.
        StorageError: Bucket, right or connection is missing.
    """
    storage = open_storage(address)
    with Lease(storage, what="trains this very run") as lease:
        published = Published(storage, scratch, lease)
        published.fetch()
        yield published
        published.remove()


def fetch_files(address: str, scratch: Path, files: dict[str, str]) -> None:
    """Makes the scratch folder's training folder hold these files of a run that another node trains, and no others.

    Args:
        address: `s3://bucket/prefix` of the run.
        scratch: An existing folder that this process alone uses.
        files: sha256 by path, as `Published.files_below` gave them on the node that trains.

    Raises:
        PlumblineError: A file is not there, or is damaged.
        StorageError: Bucket, right or connection is missing.
    """
    fetched = _Fetched(open_storage(address), scratch)
    fetched.empty()
    if fault := fetched.bring(files):
        raise PlumblineError(
            f"the checkpoint that the first node goes on from cannot be fetched: {fault}.",
            where=address,
            hint="Run again: the first node then looks for one that is whole.",
        )
    fetched.put_in_place(files)
    logger.info("fetched %d files of %s.", len(files), address)


def check_checkpoint_storage(root: str) -> None:
    """Lists, writes conditionally, reads and deletes, as training will.

    Raises:
        StorageError: Bucket, right or connection is missing.
    """
    storage = open_storage(root, waits=())
    name = f"probe-{uuid.uuid4().hex}"
    storage.names(name)
    honoured = storage.create(name, name.encode()) and not storage.create(name, b"another")
    storage.delete(name)
    if not honoured:
        raise StorageError(
            "the server ignores the condition of a write (If-None-Match); two processes could train a run at once.",
            where=root,
            hint="Use a server that honours it, or a folder.",
        )


@dataclass(frozen=True)
class _Publication:
    number: int
    files: _Files

    @property
    def name(self) -> str:
        return _publication_name(self.number)

    @property
    def objects(self) -> set[str]:
        return {_FILES + digest for digest in self.files.values()}


class _Fetched:
    """A training's folder, and how files of it are brought here."""

    def __init__(self, storage: Storage, scratch: Path) -> None:
        self.path = scratch / FOLDER
        self._storage = storage
        self._aside = scratch / "fetched"

    def empty(self) -> None:
        """Leaves nothing in the folder."""
        shutil.rmtree(self._aside, ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)

    def bring(self, files: _Files) -> str | None:
        """Brings files here and checks them; returns what is wrong, if anything is."""
        self._aside.mkdir(exist_ok=True)
        missing = {digest for digest in files.values() if not (self._aside / digest).exists()}
        wanted = {_FILES + digest: self._aside / f"{digest}.part" for digest in sorted(missing)}
        try:
            unusable = self._storage.download(wanted)
        except OSError as error:
            raise PlumblineError(
                f"cannot write the fetched checkpoint: {error.strerror}.",
                where=str(self._aside),
                hint="Free some disk, or set TMPDIR to a larger one.",
            ) from error
        faults = []
        for name, part in wanted.items():
            digest = name.removeprefix(_FILES)
            path = next(path for path, its in files.items() if its == digest)
            if name in unusable:
                faults.append(f"{path} {unusable[name]}")
            elif sha256_file(part) != digest:
                faults.append(f"{path} is damaged")
            else:
                part.rename(part.with_suffix(""))
        return "; ".join(faults) or None

    def put_in_place(self, files: _Files) -> None:
        """Moves files that were brought here to their paths in the folder."""
        placed: dict[str, Path] = {}
        for path, digest in files.items():
            target = self.path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if digest in placed:
                shutil.copyfile(placed[digest], target)
            else:
                placed[digest] = (self._aside / digest).rename(target)


class Published(_Fetched):
    """A training's folder and its publications.

    Attributes:
        path: The folder.
    """

    def __init__(self, storage: Storage, scratch: Path, lease: Lease) -> None:
        super().__init__(storage, scratch)
        self._lease = lease
        self._local = _LocalState(scratch / "state.json", self.path)
        self._publications: list[_Publication] = []
        self._whole: set[str] = set()
        self._failures = 0

    # --- fetch -------------------------------------------------------------------------------------------------------

    def fetch(self) -> None:
        """Makes the folder what the newest whole publication says.

        A folder that an earlier attempt left on this machine, and that is as new or newer, stays as it is.
        """
        numbers = self._numbers()
        shutil.rmtree(self._aside, ignore_errors=True)
        if self._local.continues(numbers[0] if numbers else 0):
            logger.info("%s is as new as the checkpoints in %s, or newer.", self.path, self._storage.uri)
            self._adopt_newest(numbers)
            return
        self._local.forget()
        self.empty()
        for number in numbers:
            if self._fetch_publication(number):
                break
        else:
            if numbers:
                logger.warning("%s: no publication is whole; training starts anew.", self._storage.uri)
        shutil.rmtree(self._aside, ignore_errors=True)

    def _adopt_newest(self, numbers: list[int]) -> None:
        files = self._read(numbers[0]) if numbers else None
        if isinstance(files, dict):
            newest = _Publication(numbers[0], files)
            self._publications = [newest]
            self._whole = set(newest.objects)

    def _fetch_publication(self, number: int) -> bool:
        files = self._read(number)
        fault = files if isinstance(files, str) else self.bring(files)
        if fault is not None or isinstance(files, str):
            where = f"{self._storage.uri}/{_publication_name(number)}"
            logger.warning("%s: %s; it is passed over for the one before it.", where, fault)
            return False
        self.put_in_place(files)
        publication = _Publication(number, files)
        self._publications = [publication]
        self._whole = set(publication.objects)
        self._local.remember(number, files)
        logger.info("fetched %d files of %s/%s.", len(files), self._storage.uri, publication.name)
        return True

    def _read(self, number: int) -> _Files | str:
        """The files of a publication, or what is wrong with it."""
        found = self._storage.read(_publication_name(number))
        try:
            content = json.loads(found.content) if found else {}
            files = {str(path): str(digest) for path, digest in content["files"].items()}
            if digest_of(files) != content["digest"]:
                return "it was altered"
        except (ValueError, KeyError, TypeError, AttributeError):
            return "it is damaged"
        outside = [path for path in files if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts]
        return f"it names files outside the folder: {outside}" if outside else files

    # --- publish -----------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Publishes the folder as it is now.

        What could not be published is with the next checkpoint; the third in a row that cannot be stops the training,
        whose local checkpoint stays.

        Raises:
            LeaseLostError: Another process has taken the run over.
            PlumblineError: Checkpoints could not be published three times in a row.
        """
        files = self._local.files_now()
        self._local.remember(self._newest, files)
        started = time.monotonic()
        try:
            self._publish(files)
        except StorageError as error:
            self._bear(error)
            return
        self._failures = 0
        self._local.remember(self._newest, files)
        logger.info("published to %s in %.1f s.", self._storage.uri, time.monotonic() - started)
        self._prune()

    def files_below(self, name: str) -> dict[str, str]:
        """sha256 by path of the files below a folder in the folder, all of them published: for the other nodes.

        Raises:
            LeaseLostError: Another process has taken the run over.
            StorageError: What is only here so far cannot be published.
        """
        files = self._local.files_now()
        if not self._publications or self._publications[-1].files != files:  # left here by an attempt cut off before it
            self._publish(files)
            self._local.remember(self._newest, files)
        return {path: digest for path, digest in files.items() if path.startswith(f"{name}/")}

    def _publish(self, files: _Files) -> None:
        self._lease.require()
        present = set(self._storage.names(_FILES))
        missing = {_FILES + digest: self.path / path for path, digest in files.items()}
        missing = {name: path for name, path in missing.items() if name not in self._whole & present}
        self._storage.upload(missing, {name: name.removeprefix(_FILES) for name in missing})
        self._whole = (self._whole & present) | set(missing)
        self._lease.require()
        number = self._newest + 1
        while not self._storage.create(_publication_name(number), _publication_content(files)):
            number += 1  # a damaged one, passed over
        self._publications.append(_Publication(number, files))

    def _bear(self, error: StorageError) -> None:
        self._failures += 1
        if self._failures > _FAILURES_BORNE:
            raise PlumblineError(
                f"{self._failures} checkpoints in a row could not be published; the last because of: {error}",
                where=self._storage.uri,
                hint=f"Mend that and start again. On this machine training goes on from the newest, in {self.path}.",
            ) from error
        logger.error("a checkpoint is not published, and is kept in %s until the next one: %s", self.path, error)

    def _prune(self) -> None:
        """Removes all publications but the newest two, and the files that belong to neither."""
        self._publications = self._publications[-_KEPT:]
        names = {each.name for each in self._publications}
        objects = set().union(*(each.objects for each in self._publications))
        try:
            self._storage.delete(*(name for name in self._storage.names(_PUBLISHED) if name not in names))
            self._storage.delete(*(name for name in self._storage.names(_FILES) if name not in objects))
        except StorageError as error:
            logger.warning("old checkpoints could not be removed, trying again at the next one: %s", error)

    def remove(self) -> None:
        """Removes every publication: training is over. What cannot be removed is told, and the result stands."""
        try:
            self._lease.require()
            self._storage.delete(*self._storage.names(_PUBLISHED))
            self._storage.delete(*self._storage.names(_FILES))
        except (StorageError, LeaseLostError) as error:
            logger.warning("the checkpoints of the finished training could not be removed: %s", error)

    @property
    def _newest(self) -> int:
        return self._publications[-1].number if self._publications else 0

    def _numbers(self) -> list[int]:
        """Numbers of the publications, newest first."""
        stems = [PurePosixPath(name).stem for name in self._storage.names(_PUBLISHED)]
        return sorted((int(stem) for stem in stems if stem.isdigit()), reverse=True)


class _LocalState:
    """What the folder on this machine held when a checkpoint was last sealed, and after which publication."""

    def __init__(self, file: Path, folder: Path) -> None:
        self._file = file
        self._folder = folder
        self._digests: dict[tuple[str, int, int, int], str] = {}

    def remember(self, number: int, files: _Files) -> None:
        write_json(self._file, {"after": number, "files": files})

    def forget(self) -> None:
        self._file.unlink(missing_ok=True)

    def continues(self, newest: int) -> bool:
        """Whether the folder is intact and no newer publication than the one it goes on from was made elsewhere."""
        try:
            state: dict[str, Any] = read_json(self._file)
        except InputError:
            return False
        return state["after"] == newest and all(
            (self._folder / path).is_file() and sha256_file(self._folder / path) == digest
            for path, digest in state["files"].items()
        )

    def files_now(self) -> _Files:
        """The folder's files; hidden ones are being written and do not count."""
        paths = (path for path in sorted(self._folder.rglob("*")) if path.is_file())
        named = ((path.relative_to(self._folder), path) for path in paths)
        return {
            name.as_posix(): self._digest(path)
            for name, path in named
            if not any(part.startswith(".") for part in name.parts)
        }

    def _digest(self, path: Path) -> str:
        """sha256 of a file, which is read again only if it changed."""
        stat = path.stat()
        key = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = sha256_file(path)
        return self._digests[key]


def _publication_name(number: int) -> str:
    return f"{_PUBLISHED}{number:06d}.json"


def _publication_content(files: _Files) -> bytes:
    return json.dumps({"digest": digest_of(files), "nonce": uuid.uuid4().hex, "files": files}, indent=1).encode()
