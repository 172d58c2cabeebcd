"""How a process measures itself: CPU seconds by phase, and peak memory above a mark.

CPU seconds are those of the whole process, user and system, all threads. Memory is the kernel's high-water mark of
resident memory (`VmHWM`), which can be set back to the present value; Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["Clock", "MemoryMeter"]

_MEBIBYTE = 1024.0


class Clock:
    """Seconds by phase: CPU seconds of the process, unless another clock is given.

    Attributes:
        seconds: Sum of each phase.
    """

    def __init__(self, now: Callable[[], float] = time.process_time) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._now = now
        self._mark = now()

    def start(self) -> None:
        """Forgets everything; the first phase begins."""
        self.seconds.clear()
        self._mark = self._now()

    def lap(self, phase: str) -> None:
        """Puts the time since the last lap down to `phase`."""
        now = self._now()
        self.seconds[phase] += now - self._mark
        self._mark = now

    def wrap(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with a lap before it (phase `other`) and after it (`phase`)."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.lap("other")
            result = function(*args, **kwargs)
            self.lap(phase)
            return result

        return timed


class MemoryMeter:
    """Resident memory at named marks, and the peak since the last one; MiB.

    Attributes:
        marks: Resident memory at each mark, once garbage is collected and free heap is given back.
    """

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Notes resident memory, and starts a new peak from it."""
        gc.collect()
        _read_weights()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.marks[name] = _status("VmRSS")

    def peak(self) -> float:
        """The most resident memory since the last mark."""
        return _status("VmHWM")


def _read_weights() -> None:
    """Reads every weight once: a file of weights is mapped, and counts as resident only where it was read."""
    for thing in gc.get_objects():
        if isinstance(thing, torch.nn.Parameter):
            thing.detach().sum()


def _status(field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}; memory can only be measured on Linux")
    return int(found[1]) / _MEBIBYTE
