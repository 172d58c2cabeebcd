"""Watches the containers of runs, and preempts some, as a cluster does."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

__all__ = ["Observer", "Seen", "StepSeen"]

_TASK = re.compile(r"--function_to_execute', '(\w+)'")
_SPLIT = re.compile(r'"train_split": ?"(\w+)"')
GRACE_SECONDS = 15.0


@dataclass
class StepSeen:
    """A step's container.

    Attributes:
        stage: The function that it runs; of a reward model with the split that it learns from.
        attributes: What `docker inspect` said when it started.
        signals: What was sent to it.
        exit_code: None while it runs.
    """

    stage: str
    attributes: dict[str, Any]
    signals: list[str] = field(default_factory=list)
    exit_code: int | None = None
    seconds: float = 0.0


Seen = list[StepSeen]


class Observer:
    """Use it as a context manager around runs; `seen` then holds every step's container, in order.

    Args:
        progress: Where the steps tell their progress.
        preempt_after: Seconds after its start that a stage's container is preempted (SIGTERM; 15 s later SIGKILL), a
            value for each try that shall be; tries beyond them are left alone. One that is faster this time is
            preempted when it is half through.
    """

    def __init__(self, progress: Path, preempt_after: dict[str, list[float]] | None = None) -> None:
        self.seen: Seen = []
        self._progress = progress
        self._preempt_after = {stage: list(waits) for stage, waits in (preempt_after or {}).items()}
        self._client = docker.from_env()
        self._events = self._client.events(
            decode=True, filters={"type": "container", "event": ["start", "die"], "label": "dev.plumbline.run"}
        )
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._steps: dict[str, StepSeen] = {}

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(1)  # the last events
        self._events.close()
        self._thread.join(timeout=10)
        self._client.close()

    def _follow(self) -> None:
        for event in self._events:
            identity = event["id"]
            if event["Action"] == "start":
                container = self._client.containers.get(identity)
                step = StepSeen(_stage(container.attrs), container.attrs, seconds=-event["timeNano"] / 1e9)
                self.seen.append(step)
                self._steps[identity] = step
                if waits := self._preempt_after.get(step.stage):
                    told = self._progress.stat().st_size if self._progress.exists() else 0
                    arguments = (container, step, waits.pop(0), told)
                    threading.Thread(target=self._preempt, args=arguments, daemon=True).start()
            else:
                step = self._steps[identity]
                step.exit_code = int(event["Actor"]["Attributes"]["exitCode"])
                step.seconds += event["timeNano"] / 1e9

    def _preempt(self, container: Any, step: StepSeen, wait: float, told: int) -> None:
        """What the kubelet does: SIGTERM, a grace, SIGKILL."""
        due = time.monotonic() + wait
        while time.monotonic() < due and not self._is_half_through(told):
            time.sleep(0.1)
        for name, grace in (("SIGTERM", GRACE_SECONDS), ("SIGKILL", 0.0)):
            try:
                container.kill(name)
            except docker.errors.APIError:  # it has ended
                return
            step.signals.append(name)
            ends = time.monotonic() + grace
            while time.monotonic() < ends and step.exit_code is None:
                time.sleep(0.1)
            if step.exit_code is not None:
                return

    def _is_half_through(self, told: int) -> bool:
        """Whether the step that runs has done half of what it counts; steps run one after the other.

        What the `told` bytes say that were there when it started is of the steps before it: who took their last line
        for this step's would send SIGTERM to a first process that has not begun to listen, and the kernel drops it.
        """
        for line in reversed(self._progress.read_bytes()[told:].decode().splitlines()):
            event = json.loads(line) if line.endswith("}") else {"event": "half-written"}
            if event["event"] == "progress":
                return event["done"] * 2 >= event["total"]
        return False


def _stage(attributes: dict[str, Any]) -> str:
    arguments = str(attributes["Args"])
    task, split = _TASK.search(arguments), _SPLIT.search(arguments)
    assert task, arguments
    return f"{task[1]}:{split[1]}" if task[1] == "reward_model" and split else task[1]
