"""A stage that trains nothing, for what becomes of a step and its TrainJob: `settings` say how it goes.

As a program, `python -m quick_stage ADDRESS ARGUMENTS`, it is the step in a pod of its own, that can be evicted.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kubernetes import client

from components.shared import launch
from components.shared.errors import InputError
from components.shared.launch import Stage
from components.shared.trainjob import TrainJobSettings

__all__ = ["STAGE", "run", "step"]


class _QuickStage(Stage):
    @property
    def module(self) -> str:
        return "quick_stage"


STAGE = _QuickStage(name="quick_stage", inputs=("dataset",), outputs=("output",))


def run(*, dataset: str, output: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Waits for the file `until`, fails while there is a file `fails`, and writes on for a while when it is ended."""
    signal.signal(signal.SIGTERM, lambda *_: _write_on(Path(dataset).parent, settings["writes_on"]))
    Path(settings["begun"]).touch()
    while not Path(settings["until"]).exists():
        time.sleep(0.05)
    if Path(settings["fails"]).exists():
        raise InputError("of the first try.", where="quick")
    Path(output).mkdir()
    (Path(output) / "weights").write_text((Path(dataset) / "data").read_text())
    return {"learned": 1}


def step(address: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a step does, on the cluster at that address."""
    api = client.ApiClient(client.Configuration(host=address))

    class Cluster:
        namespace = "plumbline"
        objects, pods = client.CustomObjectsApi(api), client.CoreV1Api(api)

    settings = TrainJobSettings(nodes=1, image="registry.example.com/train:1", folder=arguments["settings"]["folder"])
    with patch.object(launch, "_NODE_LAUNCHER", (sys.executable, "-m")):
        return launch.launch_on_nodes(STAGE, arguments, settings, cluster=Cluster)


def _write_on(place: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        (place / "late").write_text("a checkpoint")  # fails where the folder is gone
        time.sleep(0.05)
    sys.exit(143)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        launch.main(STAGE, sys.argv[1])
    else:
        step(sys.argv[1], json.loads(sys.argv[2]))
