"""SIGTERM as a request: the step in progress is finished and saved, then the process exits 143."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

__all__ = ["EXIT_TERMINATED", "exit_terminated", "termination_flag"]

logger = logging.getLogger(__name__)

EXIT_TERMINATED = 128 + signal.SIGTERM
"""The exit status by which shells and Kubernetes know a process that SIGTERM ended."""


@contextmanager
def termination_flag() -> Iterator[threading.Event]:
    """Inside the block SIGTERM sets the event that is yielded.

    Only a process's main thread can handle signals; elsewhere the signal keeps its usual effect.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def receive(*_: Any) -> None:
        logger.warning("SIGTERM: finishing the step, then saving.")
        flag.set()

    previous = signal.signal(signal.SIGTERM, receive)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, previous)


def exit_terminated() -> NoReturn:
    """Leaves the process with the status of a terminated one."""
    raise SystemExit(EXIT_TERMINATED)
