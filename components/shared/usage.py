"""What a step uses: hours of processor and accelerator, memory, and money where a price is set.

A step measures itself and logs it to its MLflow run (`usage.*`); `pipeline_usage` adds up the steps of a pipeline run,
retried attempts included. An accelerator is paid for while a step holds it, busy or not. Prices are environment, since
they are a matter of the cluster and not of the run: `PLUMBLINE_PRICE_GPU_HOUR`, `PLUMBLINE_PRICE_CPU_HOUR` (an hour of
one core in use) and `PLUMBLINE_CURRENCY`.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Usage", "UsageMeter", "add_up", "in_words", "money", "summarise"]

GPU_PRICE_VARIABLE = "PLUMBLINE_PRICE_GPU_HOUR"
CPU_PRICE_VARIABLE = "PLUMBLINE_PRICE_CPU_HOUR"
CURRENCY_VARIABLE = "PLUMBLINE_CURRENCY"

_PREFIX = "usage."
_SECONDS_PER_HOUR = 3600.0
_GIB = 1024.0**3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Usage:
    """What one step, or several, used.

    Attributes:
        wall_hours: From the step's start to its end; of several, the sum.
        cpu_hours: Hours of one core in use, child processes included.
        gpu_hours: Accelerators held times `wall_hours`.
        peak_memory_gib: Most memory that a process of it held, in GiB.
        peak_gpu_memory_gib: Most memory that its tensors took on one accelerator, in GiB.
    """

    wall_hours: float = 0.0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    peak_memory_gib: float = 0.0
    peak_gpu_memory_gib: float = 0.0

    def as_metrics(self) -> dict[str, float]:
        """As MLflow metrics, `usage.*`."""
        return {_PREFIX + name: value for name, value in asdict(self).items()}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float]) -> Usage | None:
        """From a step's MLflow metrics; None when it did not live to log them."""
        values = {name: metrics.get(_PREFIX + name) for name in cls.__dataclass_fields__}
        return None if None in values.values() else cls(**values)  # pyright: ignore[reportArgumentType]


class UsageMeter:
    """Measures this process and its children from when it is made."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._cpu_before = _cpu_seconds()

    def read(self) -> Usage:
        """What was used so far."""
        hours = (time.monotonic() - self._started) / _SECONDS_PER_HOUR
        return Usage(
            wall_hours=hours,
            cpu_hours=(_cpu_seconds() - self._cpu_before) / _SECONDS_PER_HOUR,
            gpu_hours=hours * _accelerators(),
            peak_memory_gib=_peak_memory_bytes() / _GIB,
            peak_gpu_memory_gib=_peak_gpu_bytes() / _GIB,
        )


def add_up(parts: Iterable[Usage]) -> Usage:
    """Hours summed, peaks the highest."""
    parts = list(parts)
    return Usage(
        wall_hours=math.fsum(part.wall_hours for part in parts),
        cpu_hours=math.fsum(part.cpu_hours for part in parts),
        gpu_hours=math.fsum(part.gpu_hours for part in parts),
        peak_memory_gib=max((part.peak_memory_gib for part in parts), default=0.0),
        peak_gpu_memory_gib=max((part.peak_gpu_memory_gib for part in parts), default=0.0),
    )


def money(usage: Usage) -> tuple[float, str] | None:
    """What it cost, and in which currency; None while no price is set."""
    gpu, cpu = _price(GPU_PRICE_VARIABLE), _price(CPU_PRICE_VARIABLE)
    if gpu is None and cpu is None:
        return None
    cost = usage.gpu_hours * (gpu or 0.0) + usage.cpu_hours * (cpu or 0.0)
    return cost, os.environ.get(CURRENCY_VARIABLE, "USD")


def summarise(attempts: Mapping[str, Sequence[Usage | None]]) -> dict[str, Any] | None:
    """What a pipeline run used, as JSON values.

    Args:
        attempts: By step, an entry an attempt; None for one that was killed before it could tell.

    Returns:
        `total` and, by step, `steps`: the fields of `Usage`; `cost` and `currency` (None while no price is set);
        `unmeasured_attempts`, which the sums leave out. None when nothing was measured.
    """
    steps = {step: add_up(used for used in all_of_it if used is not None) for step, all_of_it in attempts.items()}
    if not steps:
        return None
    total = add_up(steps.values())
    cost = money(total)
    return {
        "total": asdict(total),
        "steps": {step: asdict(used) for step, used in steps.items()},
        "cost": cost[0] if cost else None,
        "currency": cost[1] if cost else None,
        "unmeasured_attempts": sum(used is None for all_of_it in attempts.values() for used in all_of_it),
    }


def in_words(usage: Usage) -> str:
    """`2.5 GPU hours, 3.1 CPU hours, about 12.40 USD`."""
    words = [f"{usage.gpu_hours:.2f} GPU hours"] if usage.gpu_hours else []
    words.append(f"{usage.cpu_hours:.2f} CPU hours")
    if cost := money(usage):
        words.append(f"about {cost[0]:.2f} {cost[1]}")
    return ", ".join(words)


def _price(variable: str) -> float | None:
    """A price; a malformed one is told and passed over, since a finished step must not fail for it."""
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not (math.isfinite(price) and price >= 0):
        logger.error("%s is %r: expected a number of 0 or more, the price of an hour. No cost is told.", variable, text)
        return None
    return price


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak_memory_bytes() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(kind).ru_maxrss for kind in kinds)
    return peak if sys.platform == "darwin" else peak * 1024.0


def _accelerators() -> int:
    """Accelerators that this step holds: as torch sees them, else as the container runtime says."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.cuda.device_count())
    visible = os.environ.get("NVIDIA_VISIBLE_DEVICES", "")
    return 0 if visible in ("", "all", "none", "void") else len(visible.split(","))


def _peak_gpu_bytes() -> float:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0.0
    return max(float(torch.cuda.max_memory_allocated(device)) for device in range(torch.cuda.device_count()))
