"""What a person sees while a pipeline runs on this machine: a line for each step, with a bar and its main figures.

Steps run in processes of their own and tell their progress in a file (`components.shared.progress`); kfp tells through
the log which steps it took from its cache. `Watcher` follows both. Without a terminal it
prints a line when a step begins and one when it ends.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

__all__ = ["Failure", "Watcher"]

_CACHE_HIT = re.compile(r"Task (\S+) cache hit \(key=([0-9a-f]+)\)")
_SECONDS_BETWEEN_READS = 0.2


@dataclass(frozen=True)
class Failure:
    """The step that failed, and why."""

    stage: str
    cause: str


@dataclass
class _Step:
    name: str
    started: float
    task_id: Any = None
    finished: float | None = None
    figures: str = ""


@dataclass
class Watcher:
    """Follows a run and draws it. Use it as a context manager around the run.

    Attributes:
        progress_file: Where the steps tell their progress.
        console: Where to draw.
        names: What to call a task, by KFP's name of it.
        failure: The first step that failed, if any.
        reused: Prefixes of the cache keys of the steps that were taken from the cache.
    """

    progress_file: Path
    console: Console
    names: dict[str, str] = field(default_factory=dict)
    failure: Failure | None = None
    reused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._steps: list[_Step] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._handler = _CacheHits(self)
        self._offset = 0
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[seconds]:>6}"),
            TextColumn("[dim]{task.fields[figures]}[/]"),
            console=console_or_none(self.console),
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Watcher:
        root = logging.getLogger()
        self._levels = {target: target.level for target in (root, *root.handlers)}
        for handler in root.handlers:  # they go on as they were; only `_handler` listens to kfp's information
            handler.setLevel(max(handler.level, root.level))
        root.addHandler(self._handler)
        root.setLevel(logging.INFO)
        self._bars.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._read()
        self._bars.stop()
        logging.getLogger().removeHandler(self._handler)
        for target, level in self._levels.items():
            target.setLevel(level)

    def seconds(self) -> dict[str, float]:
        """Seconds of each step that ran, by name."""
        return {step.name: round(step.finished - step.started, 2) for step in self._steps if step.finished is not None}

    def on_cache_hit(self, task: str, key: str) -> None:
        """A step was taken from the cache."""
        self.reused.append(key)
        name = self.names.get(task, task)
        if self.console.is_terminal:
            task_id = self._bars.add_task(name, total=1, completed=1, seconds="", figures="reused, unchanged")
            self._bars.refresh()
            self._bars.stop_task(task_id)
        else:
            self.console.print(f"  ✓ {name:<24} reused, unchanged", highlight=False)

    def _follow(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_READS):
            self._read()

    def _read(self) -> None:
        if self.progress_file.exists():
            with open(self.progress_file, "rb") as file:
                file.seek(self._offset)
                lines = file.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self._offset += len(whole)
            for line in whole.splitlines():
                self._apply(json.loads(line))
        for step in self._steps:
            if step.finished is None and step.task_id is not None:
                self._bars.update(step.task_id, seconds=_seconds(time.time() - step.started))

    def _apply(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "started":
                step = _Step(event["stage"], event["time"])
                step.task_id = self._bars.add_task(step.name, total=None, seconds="", figures="")
                self._steps.append(step)
                if not self.console.is_terminal:  # a step may take hours; that it goes on is to be seen
                    self.console.print(f"  > {step.name}", highlight=False, markup=False)
            case "progress" if self._steps:
                step = self._steps[-1]
                step.figures = _figures(event["label"], event["fields"])
                self._bars.update(
                    step.task_id,
                    completed=event["done"],
                    total=event["total"],
                    figures=f"{event['label']} {step.figures}",
                )
            case "finished" | "failed":
                self._end(event)

    def _end(self, event: dict[str, Any]) -> None:
        step = next((s for s in reversed(self._steps) if s.name == event["stage"] and s.finished is None), None)
        if step is None:
            return
        step.finished = float(event["time"])
        seconds = _seconds(step.finished - step.started)
        failed = event["event"] == "failed"
        if failed and self.failure is None:
            self.failure = Failure(step.name, event["error"])
        if failed:
            self._bars.update(step.task_id, description=f"[red]{step.name} failed[/]", seconds=seconds)
            self._bars.stop_task(step.task_id)
        else:
            self._bars.update(step.task_id, total=1, completed=1, seconds=seconds, figures=step.figures)
        if not self.console.is_terminal:
            mark = "✗" if failed else "✓"
            line = f"  {mark} {step.name:<24} {seconds:>6}  {step.figures}".rstrip()
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class _CacheHits(logging.Handler):
    """kfp says in its log, and nowhere else, that it took a step from its cache."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(logging.INFO)
        self._watcher = watcher

    def emit(self, record: logging.LogRecord) -> None:
        if found := _CACHE_HIT.search(record.getMessage()):
            self._watcher.on_cache_hit(found[1], found[2])


def console_or_none(console: Console) -> Console | None:
    """Rich draws bars on a terminal only."""
    return console if console.is_terminal else None


def _figures(label: str, fields: dict[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in fields.items()
    )


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
