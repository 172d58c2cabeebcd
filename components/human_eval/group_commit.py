"""Threads that want the same lock have their work done together, in one transaction: group commit.

A thread that comes while another works leaves what it wants and waits; whoever is next in line then does the work of
all who wait at once, and each gets its own result or error. Alone, a request costs what it did before; under load the
lock, the reading of what is new and the commit are paid for once by many.

Group commit: DeWitt et al. 1984, section 3; one thread working for those who wait: Hendler et al. 2010 (flat
combining).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["GroupCommit", "Request"]

Context = TypeVar("Context")


class Request(Generic[Context]):
    """Work that a thread wants done.

    Attributes:
        error: Why it was not done; None if it was, or was not tried yet.
    """

    def __init__(self, work: Callable[[Context], object]) -> None:
        self.error: BaseException | None = None
        self._work = work
        self._result: object = None
        self._told = threading.Event()

    def attempt(self, context: Context) -> None:
        """Does the work; may be called again after a transaction that came to nothing.

        Raises:
            BaseException: What the work raised; it is also kept as `error`.
        """
        self.error = None
        try:
            self._result = self._work(context)
        except BaseException as error:
            self.error = error
            raise

    def outcome(self) -> object:
        """What the work returned, or its error raised."""
        if self.error is not None:
            raise self.error
        return self._result

    def wait(self) -> None:
        """Waits until it is done, or until this thread shall do the work of all who wait."""
        self._told.wait()
        self._told.clear()

    def tell(self) -> None:
        """Ends `wait`."""
        self._told.set()


class GroupCommit(Generic[Context]):
    """Collects requests while one group of them is carried out.

    Args:
        carry_out: Does the work of a group; afterwards each request has its result or its error. It is never called by
            two threads at once.
    """

    def __init__(self, carry_out: Callable[[Sequence[Request[Context]]], None]) -> None:
        self._carry_out = carry_out
        self._mutex = threading.Lock()
        self._waiting: list[Request[Context]] = []
        self._led = False

    def do(self, work: Callable[[Context], object]) -> object:
        """Has `work` done, alone or with that of others; returns its result.

        Raises:
            BaseException: What the work raised, or why the group failed.
        """
        mine = Request(work)
        with self._mutex:
            self._waiting.append(mine)
            leads, self._led = not self._led, True
        if not leads:
            mine.wait()
            with self._mutex:
                leads = mine in self._waiting
        if leads:
            self._lead()
        return mine.outcome()

    def _lead(self) -> None:
        with self._mutex:
            group, self._waiting = self._waiting, []
        try:
            self._carry_out(group)
        except BaseException as error:  # noqa: BLE001 (every thread raises its own)
            for request in group:
                request.error = request.error or error
        finally:
            with self._mutex:
                heir = self._waiting[0] if self._waiting else None
                self._led = heir is not None
            if heir is not None:
                heir.tell()  # first, so that the next group is under way while this one is told
            for request in group:
                request.tell()
