"""Our engine against the peer: interleaved repetitions, medians, ratios, and one JSON line at the end.

    python -m benchmarks.ppo.compare

Every run is a process of its own. Ratios are ours to the peer's, of medians: `speed` is response tokens a CPU second of
whole PPO steps (more is better), `memory` is the peak above the loaded models (less is better).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from benchmarks.ppo import agreement
from benchmarks.ppo.ours import VARIANTS
from benchmarks.ppo.peer_environment import ensure
from benchmarks.ppo.workload import SHAPES
from benchmarks.ppo.world import write_world

__all__ = ["hardware", "run_side", "versions"]

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"

PEER_VARIANTS: dict[str, list[str]] = {
    "peer": [],
    "peer-lora-value": ["--value", "lora"],
    "peer-rollout-8": ["--rollout-batch", "8"],
}
"""The first is the peer as documented; the others show that its settings do not decide the outcome."""

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore",
}


def run_side(python: Path | str, module: str, *arguments: str) -> dict[str, Any]:
    """Runs a module in a process of its own; returns the JSON of its last line.

    Raises:
        RuntimeError: It failed; holds the end of its log.
    """
    done = subprocess.run(
        [str(python), "-m", module, *arguments],
        env=os.environ | _ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def repeat(world: Path, peer: Path, *, repetitions: int, steps: int, variants: list[str]) -> dict[str, list[Any]]:
    """Runs every side `repetitions` times, in turn."""
    runs: dict[str, list[Any]] = {name: [] for name in variants}
    for number in range(repetitions):
        for name in variants:
            if any("skipped" in run for run in runs[name]):
                continue
            logger.info("repetition %d of %d: %s", number + 1, repetitions, name)
            common = (str(world), "--steps", str(steps))
            if name in PEER_VARIANTS:
                runs[name].append(run_side(peer, "benchmarks.ppo.peer", *common, *PEER_VARIANTS[name]))
            else:
                runs[name].append(run_side(sys.executable, "benchmarks.ppo.ours", *common, "--variant", name))
            if "skipped" in runs[name][-1]:
                logger.warning("%s is left out: %s.", name, runs[name][-1]["skipped"])
    return {name: found for name, found in runs.items() if "skipped" not in found[0]}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over repetitions, and the range of the speeds."""
    speeds = [run["tokens"] / run["cpu_seconds"] for run in runs]
    memory = [run["memory"]["peak"] - run["memory"]["loaded"] for run in runs]
    totals = [run["memory"]["peak"] - run["memory"]["imported"] for run in runs]
    return {
        "tokens_per_cpu_second": statistics.median(speeds),
        "tokens_per_cpu_second_range": [min(speeds), max(speeds)],
        "memory_above_loaded_mib": statistics.median(memory),
        "memory_above_imports_mib": statistics.median(totals),
        "phases_cpu_seconds": {
            phase: statistics.median(run["phases"].get(phase, 0.0) for run in runs) for phase in runs[0]["phases"]
        },
        "kl_nats": runs[0]["kl"],
        "reward": runs[0]["reward"],
    }


def ratios(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Ours to the peer's, for each of our variants."""
    peer = found["peer"]
    return {
        name: {
            "speed": found[name]["tokens_per_cpu_second"] / peer["tokens_per_cpu_second"],
            "memory": found[name]["memory_above_loaded_mib"] / peer["memory_above_loaded_mib"],
            "memory_with_models": found[name]["memory_above_imports_mib"] / peer["memory_above_imports_mib"],
        }
        for name in VARIANTS
        if name in found
    }


def hardware() -> dict[str, Any]:
    """Processor, cores, memory."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "load": os.getloadavg()[0]}


def versions() -> dict[str, str]:
    """Versions of what runs our side."""
    names = ("torch", "transformers", "peft", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@click.command()
@click.option("--repetitions", default=5, help="Of the headline shape; the rest is run once.")
@click.option("--steps", default=2, help="Measured steps a process, after one that warms up.")
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), default=list(SHAPES))
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS / "ppo.json")
def main(repetitions: int, steps: int, shapes: tuple[str, ...], output: Path) -> None:
    """Measures our engine against trl 1.12.0's PPOTrainer."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    peer = ensure()
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
        "repetitions": repetitions,
        "shapes": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for number, shape in enumerate(shapes):
            world = Path(folder) / shape
            write_world(world, SHAPES[shape])
            headline = number == 0
            sides = [*VARIANTS, "peer"]
            if headline:
                runs = repeat(world, peer, repetitions=repetitions, steps=steps, variants=sides)
                others = [name for name in PEER_VARIANTS if name != "peer"]
                runs |= repeat(world, peer, repetitions=1, steps=1, variants=others)
            else:
                runs = repeat(world, peer, repetitions=1, steps=1, variants=sides)
            found = {name: summarise(each) for name, each in runs.items()}
            report["shapes"][shape] = {"sides": found, "ratios": ratios(found), "runs": runs}
            logger.info("%s: %s", shape, json.dumps(report["shapes"][shape]["ratios"]))
    report["parity"] = agreement.compare(peer)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    logger.info("details are in %s", output)
    line = {name: {key: round(each[key], 3) for key in ("speed", "memory")} for name, each in _headline(report).items()}
    sys.stdout.write(json.dumps(line | {"parity": {key: report["parity"][key] for key in ("logprob", "kl")}}) + "\n")


def _headline(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    return next(iter(report["shapes"].values()))["ratios"]


if __name__ == "__main__":
    main()
