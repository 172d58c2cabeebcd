"""What `test_world` runs in two processes: the first is late, where it may be and where it may not."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from components.shared.files import write_json
from components.shared.world import World

_LATE_SECONDS = 4.0
"""More than an exchange in a training step may take here."""
_GIVEN_UP_SECONDS = 30.0


def main(folder: Path) -> None:
    world = World.join()
    world.wait()
    world.sum_(torch.ones(1))  # the connection is there
    world.together(lambda: time.sleep(_LATE_SECONDS) if world.is_main else None)
    if world.is_main:
        time.sleep(_LATE_SECONDS)
    world.wait()
    said = world.gathered(world.from_main(world.rank))
    began, fault, told = time.monotonic(), "", folder / "told.json"
    if world.is_main:
        while not told.exists() and time.monotonic() - began < _GIVEN_UP_SECONDS:
            time.sleep(0.1)
    else:
        try:
            world.sum_(torch.ones(1))
        except RuntimeError as error:
            fault = str(error)
        write_json(told, {"said": said, "fault": fault, "waited": time.monotonic() - began})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
