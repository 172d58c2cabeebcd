"""A lease in object storage: one process at a time, and the next soon after one that died.

The holder of the highest numbered object below `lease/` holds the lease. It is created conditionally, so that of two
that reach for the same number one fails, and is written again every few seconds for as long as its holder lives. Who
finds a lease watches it: once it is written again its holder is alive; once it was not written for as long as it says,
its holder is dead and the next number is free to take. Ages are read off the server's clock; no two machines' clocks
need agree.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NamedTuple

from components.shared.errors import PlumblineError
from components.shared.storage import Storage, StorageError

__all__ = ["Lease", "LeaseLostError"]

LEASE_SECONDS = 90.0
"""How long a lease outlives the last sign of life of its holder."""
_BEATS = 6
"""Signs of life in that time."""
_READY_TO_END_SECONDS = 10.0
_FOLDER = "lease/"
_NAME = re.compile(r"lease/(\d{6})\.json")

logger = logging.getLogger(__name__)


class LeaseLostError(PlumblineError):
    """Another process took the lease over, because this one showed no sign of life for too long."""


class _Held(NamedTuple):
    number: int
    holder: str
    seconds: float
    nonce: str
    signs_of_life: int
    age: float

    @property
    def expired(self) -> bool:
        return self.age > self.seconds


class Lease:
    """The lease on what is below an address; a context manager that waits for a dead holder's lease to expire."""

    def __init__(self, storage: Storage, *, what: str) -> None:
        """Asks for nothing yet.

        Args:
            storage: What is leased.
            what: What its holder does, for the errors: `trains this very run`.
        """
        self._storage = storage
        self._what = what
        self._seconds = LEASE_SECONDS
        self._nonce = uuid.uuid4().hex
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._number = 0
        self._count = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_ended, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Takes the lease.

        Raises:
            PlumblineError: Another process, alive, holds it.
            StorageError: Object storage cannot be used.
        """
        seen: _Held | None = None
        while True:
            current = self._current()
            if current is None or current.expired:
                if self._take(current):
                    self._thread.start()
                    return self
                continue
            if seen is not None and (seen.nonce, seen.signs_of_life) != (current.nonce, current.signs_of_life):
                raise self._refusal(current)
            if seen is None:
                logger.info(
                    "%s is leased by %s; taking it over in %.0f s unless it shows a sign of life.",
                    self._storage.uri,
                    current.holder,
                    current.seconds - current.age,
                )
            seen = current
            time.sleep(min(1.0, self._seconds / _BEATS))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Gives the lease back, so that the next need not wait."""
        self._ended.set()
        self._thread.join(_READY_TO_END_SECONDS)
        try:
            if self._is_ours(self._current()):
                self._storage.delete(self._name(self._number))
        except StorageError as fault:
            logger.warning("the lease could not be given back and will expire in %.0f s: %s", self._seconds, fault)

    def require(self) -> None:
        """Makes sure that the lease is still ours.

        Raises:
            LeaseLostError: It is not.
            StorageError: Nobody can tell.
        """
        current = self._current()
        if not self._is_ours(current):
            raise LeaseLostError(
                f"this process showed no sign of life for over {self._seconds:.0f} s, and another {self._what} now: "
                f"{current.holder if current else 'it has ended already'}.",
                where=self._storage.uri,
                hint="Let that one go on; nothing is lost.",
            )

    def _take(self, dead: _Held | None) -> bool:
        number = dead.number + 1 if dead else 1
        if not self._storage.create(self._name(number), self._content()):
            return False
        self._number = number
        if not self._is_ours(self._current()):  # we looked before somebody took a higher one
            self._storage.delete(self._name(number))
            return False
        self._require_conditional_writes()
        if dead:
            logger.warning("took the lease of %s over: no sign of life for %.0f s.", dead.holder, dead.age)
            self._storage.delete(self._name(dead.number))
        return True

    def _require_conditional_writes(self) -> None:
        """A server that ignores the condition would let two trainers in; a second write shows whether it does."""
        self._count += 1
        if self._storage.create(self._name(self._number), self._content()):
            self._storage.delete(self._name(self._number))
            raise StorageError(
                "the server ignores the condition of a write (If-None-Match); two processes could train at once.",
                where=self._storage.uri,
                hint="Use a server that honours it, or a folder.",
            )

    def _beat_until_ended(self) -> None:
        while not self._ended.wait(self._seconds / _BEATS):
            try:
                if not self._is_ours(self._current()):
                    return  # `require` tells the trainer
                self._count += 1
                self._storage.write(self._name(self._number), self._content())
            except StorageError as error:
                logger.warning("the lease could not be renewed, trying again: %s", error)

    def _current(self) -> _Held | None:
        """The lease as it is now, whoever holds it."""
        matches = [match for name in self._storage.names(_FOLDER) if (match := _NAME.fullmatch(name))]
        if not matches or (found := self._storage.read(matches[-1][0])) is None:
            return None
        try:
            told: dict[str, Any] = json.loads(found.content)
            holder = f"{told['holder']}, since {told['since']}"
            life = (float(told["seconds"]), str(told["nonce"]), int(told["signs_of_life"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                "the lease is damaged: nobody can tell who trains.",
                where=f"{self._storage.uri}/{matches[-1][0]}",
                hint="Make sure that no process trains this run, then delete the object.",
            ) from error
        return _Held(int(matches[-1][1]), holder, *life, age=found.age)

    def _is_ours(self, held: _Held | None) -> bool:
        return held is not None and held.nonce == self._nonce

    def _refusal(self, held: _Held) -> PlumblineError:
        return PlumblineError(
            f"another process {self._what}: {held.holder}; its last sign of life is {max(held.age, 0):.0f} s old.",
            where=self._storage.uri,
            hint=f"Wait for it, or stop it first; {self._seconds:.0f} s after its death the run can be taken over.",
        )

    def _content(self) -> bytes:
        fields = {
            "holder": _this_process(),
            "since": self._since,
            "seconds": self._seconds,
            "nonce": self._nonce,
            "signs_of_life": self._count,
        }
        return json.dumps(fields).encode()

    def _name(self, number: int) -> str:
        return f"{_FOLDER}{number:06d}.json"


def _this_process() -> str:
    run = os.environ.get("PLUMBLINE_RUN_ID")
    return f"process {os.getpid()} on {socket.gethostname()}{f' (run {run})' if run else ''}"
