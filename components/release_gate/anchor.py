"""The ledger's head, kept outside its database: who cuts the table's end off cannot cut this off with it.

One small file a model, written after each append and never moved back. Between a commit and its anchor a process may
die, so an anchor may lag behind the table; it is never ahead of it, unless entries were removed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.release_gate.entries import GENESIS, Entry
from components.shared.errors import InputError, PlumblineError
from components.shared.files import read_json, write_json

__all__ = ["ANCHOR_VARIABLE", "Anchor", "LedgerAlteredError", "anchor_folder", "check_anchor"]

ANCHOR_VARIABLE = "PLUMBLINE_LEDGER_ANCHOR"


class LedgerAlteredError(PlumblineError):
    """The ledger is not what it was."""


def anchor_folder() -> Path:
    """The folder of PLUMBLINE_LEDGER_ANCHOR.

    Raises:
        InputError: It is not set.
    """
    folder = os.environ.get(ANCHOR_VARIABLE, "")
    if not folder:
        raise InputError(
            "the folder that anchors the ledger's head is not set.",
            where=ANCHOR_VARIABLE,
            hint="Set it to a folder outside the database, on storage that keeps what is written.",
        )
    return Path(folder)


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
        content = read_json(file)
        try:
            return int(content["sequence"]), str(content["hash"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("is not a ledger anchor.", where=str(file)) from error

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
