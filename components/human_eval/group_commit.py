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
        settled: Whether result or error are final.
    """

    def __init__(self, work: Callable[[Context], object]) -> None:
        self.error: BaseException | None = None
        self.settled = False
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

    def settle(self, error: BaseException | None = None) -> None:
        """Makes what the last attempt came to final, or an error that came after it."""
        self.error, self.settled = error or self.error, True

    def outcome(self) -> object:
        """What the work returned, or its error raised."""
        if self.error is not None:
            raise self.error
        return self._result

    def wait(self) -> None:
        """Waits until it is settled, or until this thread shall do the work of all who wait."""
        self._told.wait()

    def tell(self) -> None:
        """Ends `wait`."""
        self._told.set()


class GroupCommit(Generic[Context]):
    """Collects requests while one group of them is carried out.

    Args:
        carry_out: Does the work of a group and settles each request. It is never called by two threads at once.
    """

    def __init__(self, carry_out: Callable[[Sequence[Request[Context]]], None]) -> None:
        self._carry_out = carry_out
        self._mutex = threading.Lock()
        self._waiting: list[Request[Context]] = []
        self._leader: Request[Context] | None = None
        self._thread: int | None = None

    def do(self, work: Callable[[Context], object]) -> object:
        """Has `work` done, alone or with that of others; returns its result.

        Raises:
            RuntimeError: It is called from within work of this group.
            BaseException: What the work raised, or why the group failed.
        """
        if self._thread == threading.get_ident():
            raise RuntimeError("work that is carried out cannot wait for other work on the same")
        mine = Request(work)
        with self._mutex:
            self._waiting.append(mine)
            self._leader = self._leader or mine
        try:
            if self._leader is not mine:
                mine.wait()
            if not mine.settled:
                self._lead()
        except BaseException:
            self._withdraw(mine)
            raise
        return mine.outcome()

    def _lead(self) -> None:
        with self._mutex:
            group, self._waiting = self._waiting, []
            self._thread = threading.get_ident()
        try:
            self._carry_out(group)
        except BaseException as error:  # noqa: BLE001 (every thread raises its own)
            for request in group:
                if not request.settled:
                    request.settle(error)
        finally:
            with self._mutex:
                self._thread = None
                self._pass_on()  # first, so that the next group is under way while this one is told
            for request in group:
                request.tell()

    def _pass_on(self) -> None:
        self._leader = self._waiting[0] if self._waiting else None
        if self._leader is not None:
            self._leader.tell()

    def _withdraw(self, mine: Request[Context]) -> None:
        """A thread that was interrupted (a signal, in a main thread) keeps nobody waiting."""
        with self._mutex:
            if mine in self._waiting:
                self._waiting.remove(mine)
                if self._leader is mine:
                    self._pass_on()
