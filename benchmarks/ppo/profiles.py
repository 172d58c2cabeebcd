"""Where our engine's CPU time goes: torch operators, put into a few groups by name and shape.

    python -m benchmarks.ppo.profiles --variant shared

A group's share is of the time inside operators; `python` is what is left of the process's CPU time, the interpreter and
PyTorch's dispatch. The profiler slows small operators, so shares are rough; seconds are better taken without it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.ppo.ours import VARIANTS, build, settings_of
from benchmarks.ppo.workload import SHAPES, WORKLOAD_FILE, ForcedLengths, Training, read_json
from benchmarks.ppo.world import write_world

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


@click.command()
@click.option("--variant", type=click.Choice(list(VARIANTS)), default="separate")
@click.option("--shape", type=click.Choice(list(SHAPES)), default=next(iter(SHAPES)))
@click.option("--operators", is_flag=True, help="Also the operators with the most time.")
def main(variant: str, shape: str, operators: bool) -> None:
    """Profiles one step, after one that warms up."""
    torch.set_num_threads(1)
    workload, training = SHAPES[shape], Training()
    settings = settings_of(workload, training, steps=2, overrides=VARIANTS[variant])
    found = PhaseProfiler(workload.vocabulary, training.lora_rank)
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), workload)
        content = read_json(Path(folder) / WORKLOAD_FILE)
        trainer = build(Path(folder), settings, seed=workload.seed)
        with ForcedLengths(trainer.models.sampling_policy(), content["prompts"], content["lengths"]).attached():
            trainer.step()
            with found.phase("rollout"):
                rollout = trainer.rollout()
            with found.phase("score"):
                scores = trainer.score(rollout)
            advantages = trainer.advantages(scores)
            with found.phase("update"):
                trainer.update(rollout, scores, advantages)
    report = {"groups": found.groups} | ({"operators": found.operators} if operators else {})
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
