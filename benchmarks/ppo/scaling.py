"""Cost of a response token as steps and answers grow, for both sides; a chart and its numbers.

    python -m benchmarks.ppo.scaling            # about 25 minutes on one quiet core

Episodes a step go from 8 to 128 with drawn answer lengths; answer lengths go from 32 to 512 with 8 episodes. Every
point is a process of its own: one step to warm up, one measured.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from benchmarks.ppo.compare import RESULTS, hardware, run_side, versions
from benchmarks.ppo.ours import VARIANTS
from benchmarks.ppo.peer_environment import ensure
from benchmarks.ppo.workload import SHAPES, Workload
from benchmarks.ppo.world import write_world

__all__ = ["draw", "points"]

logger = logging.getLogger(__name__)

_NAMES = {"separate": "Plumbline, value adapter", "shared": "Plumbline, shared trunk", "peer": "TRL 1.12.0"}
_COLOURS = {"separate": "#1f77b4", "shared": "#2ca02c", "peer": "#d62728"}
_AXES = {"episodes": "episodes a step (drawn lengths, at most 64)", "response": "tokens of an answer (8 episodes)"}


def points(episodes: tuple[int, ...], responses: tuple[int, ...]) -> list[tuple[str, int, Workload]]:
    """Axis, place on it and shape of each point."""
    base = replace(SHAPES["16k"], updates=2)
    sweep = [("episodes", count, replace(base, episodes=count)) for count in episodes]
    return sweep + [
        ("response", length, replace(base, episodes=8, response_tokens=(length, length), mean_response=None))
        for length in responses
    ]


def measure(workload: Workload, sides: tuple[str, ...], peer: Path | None) -> dict[str, Any]:
    """Cost and memory of each side at one point."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), workload)
        for side in sides:
            module = "benchmarks.ppo.peer" if side == "peer" else "benchmarks.ppo.ours"
            variant = [] if side == "peer" else ["--variant", side]
            run = run_side((side == "peer" and peer) or sys.executable, module, folder, "--steps", "1", *variant)
            if "skipped" in run:
                logger.warning("%s is left out: %s.", side, run["skipped"])
                continue
            found[side] = {
                "tokens": run["tokens"],
                "cpu_ms_per_token": 1000 * run["cpu_seconds"] / run["tokens"],
                "memory_above_loaded_mib": run["memory"]["peak"] - run["memory"]["loaded"],
                "phases_ms_per_token": {name: 1000 * each / run["tokens"] for name, each in run["phases"].items()},
            }
    return found


def draw(report: dict[str, Any], path: Path) -> None:
    """Cost above, memory below; episodes to the left, answer lengths to the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), sharex="col", constrained_layout=True)
    for column, (axis, label) in enumerate(_AXES.items()):
        rows = [row for row in report["points"] if row["axis"] == axis]
        for line, key in enumerate(("cpu_ms_per_token", "memory_above_loaded_mib")):
            plot: Any = axes[line, column]
            for side in _NAMES:
                known = [(row["at"], row["sides"][side][key]) for row in rows if side in row["sides"]]
                if known:
                    plot.plot(*zip(*known, strict=True), marker="o", color=_COLOURS[side], label=_NAMES[side])
            plot.set_xscale("log", base=2)
            plot.set_xticks([row["at"] for row in rows], [str(row["at"]) for row in rows])
            plot.set_ylim(bottom=0)
            plot.grid(alpha=0.3)
        axes[1, column].set_xlabel(label)
    axes[0, 0].set_ylabel("CPU milliseconds a response token")
    axes[1, 0].set_ylabel("peak memory above loaded models, MiB")
    axes[0, 0].legend()
    figure.suptitle(f"A PPO step, 16k vocabulary, 4 layers, width 256, one thread ({report['date'][:10]})")
    figure.savefig(path, metadata={"Date": None})


@click.command()
@click.option("--episodes", multiple=True, type=int, default=(8, 16, 32, 64, 128))
@click.option("--responses", multiple=True, type=int, default=(32, 64, 128, 256, 512))
@click.option("--side", "sides", multiple=True, type=click.Choice([*VARIANTS, "peer"]), default=(*VARIANTS, "peer"))
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS / "ppo_scaling.json")
def main(episodes: tuple[int, ...], responses: tuple[int, ...], sides: tuple[str, ...], output: Path) -> None:
    """Measures how cost and memory grow, and draws it beside OUTPUT."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    peer = ensure() if "peer" in sides else None
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
        "points": [],
    }
    for axis, at, workload in points(episodes, responses):
        logger.info("%s %d", axis, at)
        report["points"].append({"axis": axis, "at": at, "sides": measure(workload, sides, peer)})
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(report, output.with_suffix(".svg"))
    sys.stdout.write(f"{output}\n")


if __name__ == "__main__":
    main()
