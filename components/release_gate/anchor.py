"""The ledger's head, kept outside its database: who cuts the table's end off cannot cut this off with it.

In a folder: one small file a model, written after each append and never moved back. In object storage: one object an
append, created and never written again, so that a bucket may forbid to overwrite and delete. Between a commit and its
anchor a process may die, so an anchor may lag behind the table; it is never ahead of it, unless entries were removed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.release_gate.entries import GENESIS, Entry
from components.shared.errors import InputError, PlumblineError
from components.shared.files import canonical_json, read_json, write_json
from components.shared.storage import Storage, is_object_storage, open_storage

__all__ = ["ANCHOR_VARIABLE", "Anchor", "LedgerAlteredError", "ObjectAnchor", "check_anchor", "open_anchor"]

ANCHOR_VARIABLE = "PLUMBLINE_LEDGER_ANCHOR"


class LedgerAlteredError(PlumblineError):
    """The ledger is not what it was."""


def open_anchor() -> Anchor | ObjectAnchor:
    """The anchor of PLUMBLINE_LEDGER_ANCHOR: a folder, or `s3://bucket/prefix`.

    Raises:
        InputError: It is not set, or is no address.
    """
    place = os.environ.get(ANCHOR_VARIABLE, "")
    if not place:
        raise InputError(
            "the place that anchors the ledger's head is not set.",
            where=ANCHOR_VARIABLE,
            hint="Set it to a folder outside the database or to s3://bucket/prefix, on storage that keeps what is "
            "written.",
        )
    return ObjectAnchor(open_storage(place)) if is_object_storage(place) else Anchor(Path(place))


def check_anchor(head: tuple[int, str] | None, entries: list[Entry]) -> str | None:
    """What is wrong between an anchored head and the table; None if they agree.

    Args:
        head: Anchored (sequence, hash), read *before* the entries; None if nothing was anchored yet.
        entries: The table's entries, in order.
    """
    if head is None:
        return None
    sequence, expected = head
    if sequence == 0:
        return None if expected == GENESIS else "the anchor names entry 0 with a hash."
    found = next((entry for entry in entries if entry.sequence == sequence), None)
    if found is None:
        return f"the anchor knows entry {sequence}, the table does not: entries were removed."
    if found.hash != expected:
        return f"entry {sequence} has hash {found.hash[:12]}, the anchor says {expected[:12]}: it was replaced."
    return None


class Anchor:
    """The anchored heads of a folder.

    Args:
        folder: Created when the first head is anchored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def head(self, model: str) -> tuple[int, str] | None:
        """The anchored (sequence, hash) of a model; None if there is none.

        Raises:
            InputError: The anchor file is damaged.
        """
        file = self._file(model)
        if not file.exists():
            return None
        return _parse(read_json(file), where=str(file))

    def advance(self, model: str, head: tuple[int, str]) -> None:
        """Anchors `head` unless a later one is anchored already (another process was faster)."""
        with self._lock(model):
            anchored = self.head(model)
            if anchored is None or anchored[0] < head[0]:
                write_json(self._file(model), {"model": model, "sequence": head[0], "hash": head[1]})

    def _file(self, model: str) -> Path:
        return self.folder / f"{model}.json"

    @contextmanager
    def _lock(self, model: str) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f".{model}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class ObjectAnchor:
    """The anchored heads below a prefix of object storage: `<model>/<sequence>.json`, one for each append.

    Args:
        storage: What is below the prefix.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def head(self, model: str) -> tuple[int, str] | None:
        """The latest anchored (sequence, hash) of a model; None if there is none.

        Raises:
            InputError: The object is not an anchor.
            StorageError: Object storage does not answer, or refuses.
        """
        names = self._storage.names(f"{model}/")
        found = self._storage.read(names[-1]) if names else None
        if found is None:
            return None
        where = f"{self._storage.uri}/{names[-1]}"
        try:
            content = json.loads(found.content)
        except ValueError as error:
            raise InputError("is not a ledger anchor.", where=where) from error
        return _parse(content, where=where)

    def advance(self, model: str, head: tuple[int, str]) -> None:
        """Anchors `head`, beside those that are anchored already.

        Raises:
            LedgerAlteredError: Another hash is anchored at this place of the ledger: it has two histories.
            StorageError: Object storage does not answer, or refuses.
        """
        name = f"{model}/{head[0]:012d}.json"
        content = canonical_json({"model": model, "sequence": head[0], "hash": head[1]})
        if not self._storage.create(name, content.encode()):
            raise LedgerAlteredError(
                f"another hash is anchored for entry {head[0]} than {head[1][:12]}: the ledger has two histories.",
                where=f"{self._storage.uri}/{name}",
                hint="Run `plumbline verify`, and ask who restored the database from a backup.",
            )


def _parse(content: object, *, where: str) -> tuple[int, str]:
    try:
        return int(content["sequence"]), str(content["hash"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("is not a ledger anchor.", where=where) from error
