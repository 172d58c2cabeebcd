"""Our engine on a GPU: Qwen2.5-0.5B's shape, random weights, vocabulary of 152 thousand, bfloat16.

    python -m benchmarks.ppo.gpu

Random weights have the cost of trained ones; answer lengths are drawn and forced, as in `compare`. The vocabulary is
what an H100-class machine meets in practice, and what a step's memory is decided by.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.ppo.compare import RESULTS, hardware, versions
from benchmarks.ppo.measure import Clock
from benchmarks.ppo.ours import VARIANTS, NotThere, build, settings_of
from benchmarks.ppo.workload import WORKLOAD_FILE, ForcedLengths, Training, Workload, read_json
from benchmarks.ppo.world import write_world

__all__ = ["QWEN"]

logger = logging.getLogger(__name__)

QWEN = Workload(
    vocabulary=151_936,
    layers=24,
    hidden=896,
    intermediate=4_864,
    heads=14,
    kv_heads=2,
    tied=True,
    episodes=128,
    prompt_tokens=(32, 256),
    response_tokens=(8, 512),
    mean_response=200.0,
)
"""Qwen2.5-0.5B: 0.49 billion weights, of which 0.14 billion are embeddings."""

SMALL = replace(
    QWEN, vocabulary=1_000, layers=2, hidden=64, intermediate=128, heads=4, episodes=8, response_tokens=(4, 16)
)
"""For a trial of the script without a GPU; its figures mean nothing."""

_MEBIBYTE = 2**20


def measure(world: Path, training: Training, *, warmup: int, steps: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Wall-clock seconds by phase and peak memory of the allocator, over `steps` steps.

    Raises:
        NotThere: The engine has no setting of `overrides`.
    """
    content = read_json(world / WORKLOAD_FILE)
    workload = Workload.from_json(content["workload"])
    settings = settings_of(workload, training, steps=warmup + steps, overrides=overrides)
    trainer = build(world, settings, seed=workload.seed)
    on_gpu = trainer.models.device.type == "cuda"
    loaded = torch.cuda.memory_allocated() if on_gpu else 0

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    clock = Clock(now)
    for phase, name in (("rollout", "rollout"), ("score", "score"), ("update", "update")):
        setattr(trainer, name, clock.wrap(phase, getattr(trainer, name)))
    with ForcedLengths(trainer.models.sampling_policy(), content["prompts"], content["lengths"]).attached():
        for _ in range(warmup):
            trainer.step()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        clock.start()
        for _ in range(steps):
            trainer.step()
        clock.lap("other")
    tokens = round(sum(row["response_tokens"] * row["episodes"] for row in trainer.history[warmup:]))
    seconds = sum(clock.seconds.values())
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "seconds_a_step": seconds / steps,
        "share_of_generation": clock.seconds["rollout"] / seconds,
        "phases": {name: each / steps for name, each in clock.seconds.items()},
        "loaded_mib": loaded / _MEBIBYTE,
        "peak_mib": torch.cuda.max_memory_allocated() / _MEBIBYTE if on_gpu else None,
        "reserved_mib": torch.cuda.max_memory_reserved() / _MEBIBYTE if on_gpu else None,
        "logprob_gap": trainer.history[-1].get("logprob_gap"),
    }


@click.command()
@click.option("--steps", default=3)
@click.option("--microbatch", default=16, help="Episodes a forward pass.")
@click.option("--trial", is_flag=True, help="A tiny shape, to see that the script runs; allowed without a GPU.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS / "ppo_gpu.json")
def main(steps: int, microbatch: int, trial: bool, output: Path) -> None:
    """Measures both value models on the first GPU."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not torch.cuda.is_available() and not trial:
        raise click.ClickException("there is no GPU here; --trial runs a tiny shape without one.")
    workload = SMALL if trial else QWEN
    if trial:
        torch.set_num_threads(1)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware() | {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None},
        "versions": versions(),
        "workload": workload.to_json(),
        "sides": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), workload)
        for name, overrides in VARIANTS.items():
            try:
                found = measure(
                    Path(folder), Training(microbatch=microbatch), warmup=1, steps=steps, overrides=overrides
                )
            except NotThere as missing:
                logger.warning("%s is left out: %s.", name, missing)
                continue
            report["sides"][name] = found
            logger.info("%s: %s", name, json.dumps(found))
    if not trial:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(report["sides"]) + "\n")


if __name__ == "__main__":
    main()
