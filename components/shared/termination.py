"""SIGTERM as a request: the step in progress is finished and saved, then the process exits 143."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from components.shared.progress import is_watched

__all__ = ["EXIT_TERMINATED", "StoppedTogether", "Termination", "graceful_termination"]

EXIT_TERMINATED = 128 + signal.SIGTERM
"""The exit status by which shells and Kubernetes know a process that SIGTERM ended."""

logger = logging.getLogger(__name__)


class StoppedTogether(SystemExit):
    """All processes that train together stopped after the same step; status 143."""

    def __init__(self) -> None:
        super().__init__(EXIT_TERMINATED)


class Termination:
    """A SIGTERM that was received.

    Attributes:
        requested: Whether one was.
        deferred: Set while a trainer runs that will look at `requested` after its step; otherwise the process exits at
            once.
    """

    def __init__(self) -> None:
        self.requested = False
        self.deferred = False

    def receive(self, *_: Any) -> None:
        """The signal handler; a second signal does not wait for the step."""
        if self.requested or not self.deferred:
            self.exit()
        self.requested = True
        logger.warning("SIGTERM: finishing the step, then saving.")

    def exit(self) -> NoReturn:
        """Leaves the process with the status of a terminated one."""
        raise SystemExit(EXIT_TERMINATED)


@contextmanager
def graceful_termination() -> Iterator[Termination]:
    """Handles SIGTERM inside the block; outside a process's main thread the signal keeps its usual effect.

    A terminal sends Ctrl-C to the local runner and to its step; the runner passes it on as SIGTERM, so the step ignores
    it.
    """
    termination = Termination()
    if threading.current_thread() is not threading.main_thread():
        yield termination
        return
    handlers: dict[int, Any] = {signal.SIGTERM: termination.receive}
    if is_watched():
        handlers[signal.SIGINT] = signal.SIG_IGN
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield termination
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
