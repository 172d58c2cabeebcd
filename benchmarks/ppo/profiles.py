"""Where CPU time goes: torch operators, put into a few groups by name and shape.

A group's share is of the time inside operators; `python` is what is left of the process's CPU time, the interpreter and
PyTorch's dispatch. The profiler slows small operators, so shares are rough; seconds are better taken without it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.profiler import ProfilerActivity, profile

__all__ = ["PhaseProfiler"]

_MATMUL = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul")
_ATTENTION = ("attention", "flash")
_COPY = ("copy", "clone", "cat", "index", "gather", "scatter", "select", "slice", "stack")
_SOFTMAX = ("softmax", "logsumexp", "exp", "entr", "cumsum", "multinomial", "searchsorted", "exponential")


class PhaseProfiler:
    """Operator time by phase and group.

    Attributes:
        groups: Seconds by phase, then by group.
        operators: Seconds by phase, then by operator and shapes.
    """

    def __init__(self, vocabulary: int, rank: int) -> None:
        self._vocabulary = vocabulary
        self._rank = rank
        self.groups: dict[str, dict[str, float]] = {}
        self.operators: dict[str, dict[str, float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Profiles the block."""
        started = time.process_time()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            yield
        elapsed = time.process_time() - started
        self._add(name, elapsed, profiler.key_averages(group_by_input_shape=True))

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, profiled as a phase."""

        def profiled(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return profiled

    def _add(self, phase: str, elapsed: float, events: Any) -> None:
        groups: dict[str, float] = defaultdict(float)
        operators: dict[str, float] = defaultdict(float)
        for event in events:
            seconds = event.self_cpu_time_total / 1e6
            shapes = [shape for shape in event.input_shapes if shape]
            groups[self._group(event.key, shapes)] += seconds
            operators[f"{event.key} {shapes} x{event.count}"] += seconds
        groups["python, by difference"] = elapsed - sum(groups.values())
        self.groups[phase] = dict(sorted(groups.items(), key=lambda item: -item[1]))
        self.operators[phase] = dict(sorted(operators.items(), key=lambda item: -item[1])[:40])

    def _group(self, operator: str, shapes: list[list[int]]) -> str:
        wide = any(self._vocabulary in shape for shape in shapes)
        name = operator.lower()
        if operator in _MATMUL:
            if wide:
                return "head: matrix product"
            return "adapters: matrix products" if any(self._rank in shape for shape in shapes) else "trunk: products"
        if wide:
            return "vocabulary-wide: softmax" if any(word in name for word in _SOFTMAX) else "vocabulary-wide: rest"
        if any(word in name for word in _ATTENTION):
            return "attention"
        if "optimizer" in name or "adam" in name or "foreach" in name:
            return "optimizer"
        return "copies and indexing" if any(word in name for word in _COPY) else "elementwise and rest"
