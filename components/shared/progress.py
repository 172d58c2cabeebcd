"""Progress of a step, told to whoever watches.

A step runs in a process or pod of its own and cannot draw on the user's terminal. It appends small JSON events to the
file named by `PLUMBLINE_PROGRESS`, which the local runner follows and draws; without that file, progress goes to the
log. The way back is one bit: a file beside it says that no further step shall start.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

__all__ = ["PROGRESS_VARIABLE", "announce", "ask_to_stop", "is_watched", "report", "stop_asked", "track"]

PROGRESS_VARIABLE = "PLUMBLINE_PROGRESS"
_SECONDS_BETWEEN_EVENTS = 0.2
_SECONDS_BETWEEN_LOG_LINES = 10.0

logger = logging.getLogger(__name__)
_last_report: dict[str, float] = {}

Item = TypeVar("Item")


def report(label: str, done: int, total: int, **fields: float | str) -> None:
    """Tells that `done` of `total` units of `label` are done.

    Args:
        label: What is being done, in a word or two.
        done: Units done.
        total: Units in all.
        **fields: Figures worth showing beside the bar, e.g. `reward=0.3`.
    """
    path = os.environ.get(PROGRESS_VARIABLE)
    interval = _SECONDS_BETWEEN_EVENTS if path else _SECONDS_BETWEEN_LOG_LINES
    now = time.monotonic()
    if done < total and now - _last_report.get(label, float("-inf")) < interval:
        return
    _last_report[label] = now
    if path:
        _append(path, {"event": "progress", "label": label, "done": done, "total": total, "fields": fields})
    else:
        figures = "  ".join(f"{name} {_format(value)}" for name, value in fields.items())
        logger.info("%s %d/%d %s", label, done, total, figures)


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yields `items`, reporting progress after each.

    Args:
        items: What to go through.
        label: What is being done.
        total: How many there are; needed when `items` has no length.
    """
    if total is None:
        if not isinstance(items, Sized):
            raise TypeError("track() needs total= for an iterable without a length")
        total = len(items)
    for done, item in enumerate(items, start=1):
        yield item
        report(label, done, total)


def announce(stage: str, state: str, **fields: str) -> None:
    """Tells that a step `started`, `finished` or `failed`."""
    if path := os.environ.get(PROGRESS_VARIABLE):
        _append(path, {"event": state, "stage": stage, "time": time.time(), **fields})
    elif state != "failed":  # a failure is raised, and logged by whoever catches it
        logger.info("%s %s", stage, state)


def is_watched() -> bool:
    """Whether a local runner follows this step; it passes Ctrl-C on as SIGTERM."""
    return PROGRESS_VARIABLE in os.environ


def ask_to_stop(progress_file: Path) -> None:
    """Tells every step that has not started yet that it shall not: the run was interrupted.

    Args:
        progress_file: The file that the run's steps know as `PLUMBLINE_PROGRESS`.
    """
    _stop_file(str(progress_file)).touch()


def stop_asked() -> bool:
    """Whether the run was interrupted before this step started."""
    path = os.environ.get(PROGRESS_VARIABLE)
    return path is not None and _stop_file(path).exists()


def _stop_file(path: str) -> Path:
    return Path(f"{path}.stop")


def _append(path: str, event: dict[str, object]) -> None:
    """One write call a line: lines of several processes never mix."""
    try:
        with open(path, "ab", buffering=0) as file:
            file.write((json.dumps(event) + "\n").encode())
    except OSError as error:  # who watches sees less; what the step does and says is not to suffer by it
        logger.warning("progress cannot be told: %s: %s", path, error.strerror)


def _format(value: float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
