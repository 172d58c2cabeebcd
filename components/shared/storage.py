"""Files below an address: a folder, or `s3://bucket/prefix`; one small interface, the same promises.

- A name holds a whole content or nothing: nobody sees half a write, and a write that failed may be tried again.
- `create` is for one winner among many: it tells whether the content that is there is ours.
- Files go up and come down in streams, large ones in parts; each carries its sha256, and one that arrives altered is
  reported, never handed on.
- A fault that may pass is waited for (`WAITS_SECONDS`); any other is a `StorageError` that says what is wrong, where,
  and what to do.

`s3` implements it for object storage. docs/storage.md tells the settings, the errors and the promises.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from components.shared.errors import PlumblineError
from components.shared.files import sha256_file, sync_folder, write_bytes

__all__ = [
    "WAITS_SECONDS",
    "FolderStorage",
    "Listed",
    "Storage",
    "StorageError",
    "StoredObject",
    "is_object_storage",
    "open_storage",
    "waited_for",
]

WAITS_SECONDS = (1.0, 4.0, 16.0)
"""Waits between attempts, beyond boto3's own, when storage does not answer."""

_SCHEME = "s3://"
_Answer = TypeVar("_Answer")

logger = logging.getLogger(__name__)


class StorageError(PlumblineError):
    """Storage did not do what was asked of it.

    Attributes:
        transient: Whether to ask again may help: it did not answer, or was too busy.
    """

    def __init__(self, problem: str, *, where: str, hint: str | None = None, transient: bool = False) -> None:
        super().__init__(problem, where=where, hint=hint)
        self.transient = transient


@dataclass(frozen=True)
class StoredObject:
    """A small object.

    Attributes:
        content: Its bytes.
        age: Seconds since it was written, both times read off the clock of who keeps it.
    """

    content: bytes
    age: float


@dataclass(frozen=True)
class Listed:
    """An object as a listing has it.

    Attributes:
        name: Below the address.
        size: Bytes.
        tag: Changes when the content does (of an S3 object its ETag, of a file its time of change).
    """

    name: str
    size: int
    tag: str


def is_object_storage(place: str) -> bool:
    """Whether `place` names object storage rather than a folder."""
    return place.startswith(_SCHEME)


def open_storage(place: str | Path, *, waits: Iterable[float] | None = None) -> Storage:
    """The storage at an address; nothing is asked of it yet.

    Args:
        place: A folder (or `file://`), made when something is written, or `s3://bucket[/prefix]`.
        waits: Seconds to wait before each further attempt when it does not answer; `WAITS_SECONDS` unless given.

    Raises:
        InputError: It is no address in object storage, though it looks like one.
    """
    waits = WAITS_SECONDS if waits is None else tuple(waits)
    if is_object_storage(str(place)):
        from components.shared.s3 import S3Storage

        return S3Storage(str(place), waits=waits)
    return FolderStorage(Path(str(place).removeprefix("file://")).expanduser())


class Storage(ABC):
    """The objects below an address, by their names below it.

    Attributes:
        uri: The address.
    """

    uri: str

    @abstractmethod
    def listing(self, under: str = "") -> list[Listed]:
        """All objects whose names start with `under`, by name."""

    @abstractmethod
    def read(self, name: str) -> StoredObject | None:
        """A small object; None if there is none."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Writes a small object, over the one that is there."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Writes a small object unless there is one of that name.

        Args:
            name: Of the object.
            content: Must be unlike anybody else's (hold a nonce): a request whose answer was lost is sent again and
                refused because of the first; only the content tells that it was ours.

        Returns:
            Whether the object is ours.

        Raises:
            StorageError: Storage knows no conditional writes, or as for any other request.
        """

    @abstractmethod
    def delete(self, *names: str) -> None:
        """Deletes objects, in that order; one that is not there counts as deleted."""

    @abstractmethod
    def upload(self, files: Mapping[str, Path], digests: Mapping[str, str] | None = None) -> None:
        """Puts files there by the names that they get.

        Args:
            files: By name.
            digests: Their sha256 (hex) by name, where it is known already.
        """

    @abstractmethod
    def download(self, files: Mapping[str, Path]) -> dict[str, str]:
        """Brings objects into files; a file appears only when it is whole.

        Returns:
            What is wrong (`is missing`, `is damaged: ...`) by name, of those that could not be had.
        """

    def names(self, under: str = "") -> list[str]:
        """Names of all objects that start with `under`, sorted."""
        return [each.name for each in self.listing(under)]

    def local_copies(self, names: Iterable[str], aside: Path) -> dict[str, Path]:
        """Files with the content of objects: in the folder `aside`, or, where they are files, those themselves.

        Raises:
            StorageError: One is missing or damaged.
        """
        copies = {name: aside / f"{number:05d}{Path(name).suffix}" for number, name in enumerate(names)}
        for name, fault in self.download(copies).items():
            raise StorageError(f"{fault}.", where=f"{self.uri}/{name}", hint="Has it just been replaced? Start again.")
        return copies


class FolderStorage(Storage):
    """A folder; names that start with a dot, or are below one that does, are nobody's."""

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder)
        self._folder = folder

    def listing(self, under: str = "") -> list[Listed]:
        with self._faults("list"):
            listed = [found for path in self._folder.rglob("*") if (found := self._listed(path)) is not None]
        return sorted((each for each in listed if each.name.startswith(under)), key=lambda each: each.name)

    def _listed(self, path: Path) -> Listed | None:
        """None of what is no file of ours, or is gone by now: others delete meanwhile, as in a bucket."""
        name = path.relative_to(self._folder)
        if any(part[0] == "." for part in name.parts):
            return None
        try:
            about = path.stat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(about.st_mode):
            return None
        return Listed(name.as_posix(), about.st_size, str(about.st_mtime_ns))

    def read(self, name: str) -> StoredObject | None:
        with self._faults("read", name):
            try:
                with open(self._folder / name, "rb") as file:
                    return StoredObject(file.read(), time.time() - os.fstat(file.fileno()).st_mtime)
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        with self._faults("write", name):
            write_bytes(self._folder / name, content)

    def create(self, name: str, content: bytes) -> bool:
        with self._faults("write", name), self._whole(name) as (file, aside):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            try:
                os.link(aside, self._folder / name)  # unlike a rename it fails where something is
            except FileExistsError:
                return (self._folder / name).read_bytes() == content
            sync_folder((self._folder / name).parent)
            return True

    def delete(self, *names: str) -> None:
        for name in names:
            with self._faults("delete", name):
                (self._folder / name).unlink(missing_ok=True)

    def upload(self, files: Mapping[str, Path], digests: Mapping[str, str] | None = None) -> None:
        for name, source in files.items():
            with self._faults("write", name), self._whole(name) as (file, aside):
                with open(source, "rb") as content:
                    shutil.copyfileobj(content, file)
                file.flush()
                os.fsync(file.fileno())
                expected = (digests or {}).get(name)
                if expected is not None and sha256_file(aside) != expected:
                    raise StorageError("the file changed while it was copied.", where=str(source))
                os.replace(aside, self._folder / name)
                sync_folder((self._folder / name).parent)

    def download(self, files: Mapping[str, Path]) -> dict[str, str]:
        faults = {}
        for name, target in files.items():
            with self._faults("read", name):
                try:
                    FolderStorage(target.parent).upload({target.name: self._folder / name})
                except FileNotFoundError:
                    faults[name] = "is missing"
        return faults

    def local_copies(self, names: Iterable[str], aside: Path) -> dict[str, Path]:
        del aside
        return {name: self._folder / name for name in names}

    @contextmanager
    def _whole(self, name: str) -> Iterator[tuple[BinaryIO, Path]]:
        """A hidden file beside `name`, gone when the block ends unless it was renamed."""
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            os.chmod(aside, 0o644)
            with os.fdopen(descriptor, "wb") as file:
                yield file, Path(aside)
        finally:
            Path(aside).unlink(missing_ok=True)

    @contextmanager
    def _faults(self, action: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(
                f"cannot {action}: {error.strerror or error}.",
                where=str(self._folder / name),
                hint="Check the folder, its rights and the disk.",
            ) from error


def waited_for(ask: Callable[[], _Answer], waits: Iterable[float]) -> _Answer:
    """Asks again, later and later, while the fault may pass."""
    for seconds in waits:
        try:
            return ask()
        except StorageError as error:
            if not error.transient:
                raise
            logger.warning("storage failed, next attempt in %.0f s: %s", seconds, error)
            time.sleep(seconds)
    return ask()
