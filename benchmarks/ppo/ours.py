"""One process of our engine: some PPO steps, measured. Prints one JSON line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.ppo.measure import Clock, MemoryMeter
from benchmarks.ppo.workload import WORKLOAD_FILE, ForcedLengths, Training, Workload, read_json

__all__ = ["build", "settings_of"]

VARIANTS: dict[str, dict[str, Any]] = {"separate": {}, "shared": {"value_model": "shared_trunk"}}
"""Settings of each variant, over those of `settings_of`."""


class NotThere(Exception):
    """The engine does not have what a variant needs."""


def settings_of(workload: Workload, training: Training, *, steps: int, overrides: dict[str, Any]) -> Any:
    """`PPOSettings` of a measurement.

    Raises:
        NotThere: The engine has no such setting.
    """
    from components.ppo.settings import PPOSettings

    if unknown := sorted(set(overrides) - set(PPOSettings.model_fields)):
        raise NotThere(f"the engine has no setting {unknown[0]!r} yet")
    options: dict[str, Any] = {
        "steps": steps,
        "episodes_per_step": workload.episodes,
        "ppo_epochs": training.epochs,
        "microbatch": training.microbatch,
        "policy_learning_rate": training.learning_rate,
        "value_learning_rate": training.learning_rate,
        "warmup_steps": 0,
        "gamma": training.gamma,
        "lam": training.lam,
        "clip_ratio": training.clip_ratio,
        "value_clip": training.value_clip,
        "max_response_tokens": workload.response_tokens[1],
        "value_init": "policy",
        "parameterisation": "lora",
        "lora": {"rank": training.lora_rank, "alpha": training.lora_alpha},
        "kl": {"control": "fixed", "init_coef": training.kl_coef},
        "reward": {"normalise": "none", "clip": None, "missing_eos_penalty": 0.0},
    }
    return PPOSettings.model_validate(options | overrides)


def build(world: Path, settings: Any, *, seed: int) -> Any:
    """The trainer over a world's artifacts."""
    from components.ppo.setup import build_trainer
    from components.shared.artifacts import read_artifact

    trainer, _ = build_trainer(
        policy=read_artifact(world / "policy", "policy"),
        reward_model=read_artifact(world / "reward", "reward_model"),
        dataset=read_artifact(world / "dataset", "dataset"),
        settings=settings,
        seed=seed,
    )
    return trainer


def measure(world: Path, training: Training, *, warmup: int, steps: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Some steps to warm up, then the measured ones."""
    content = read_json(world / WORKLOAD_FILE)
    workload = Workload.from_json(content["workload"])
    settings = settings_of(workload, training, steps=warmup + steps, overrides=overrides)
    import components.ppo.setup  # noqa: F401 - its imports are no part of the memory measured

    clock, memory = Clock(), MemoryMeter()
    memory.mark("imported")
    trainer = build(world, settings, seed=workload.seed)
    memory.mark("loaded")
    trainer.rollout = clock.wrap("rollout", trainer.rollout)
    trainer.score = clock.wrap("score", trainer.score)
    trainer.update = clock.wrap("update", trainer.update)
    forcer = ForcedLengths(trainer.models.sampling_policy(), content["prompts"], content["lengths"])
    with forcer.attached():
        for _ in range(warmup):
            trainer.step()
        forced = forcer.forced
        clock.start()
        for _ in range(steps):
            trainer.step()
        clock.lap("other")
    tokens = round(sum(row["response_tokens"] * row["episodes"] for row in trainer.history[warmup:]))
    if tokens != forcer.forced - forced:
        raise RuntimeError(f"{tokens} tokens were sampled where {forcer.forced - forced} were forced")
    return {
        "tokens": tokens,
        "cpu_seconds": sum(clock.seconds.values()),
        "phases": dict(clock.seconds),
        "memory": {**memory.marks, "peak": memory.peak()},
        "kl": [row["kl"] for row in trainer.history],
        "reward": [row["reward_mean"] for row in trainer.history],
    }


@click.command()
@click.argument("world", type=click.Path(exists=True, path_type=Path))
@click.option("--variant", type=click.Choice(list(VARIANTS)), default="separate")
@click.option("--settings", "overrides", default="{}", help="JSON over the variant's settings.")
@click.option("--warmup", default=1)
@click.option("--steps", default=3)
def main(world: Path, variant: str, overrides: str, warmup: int, steps: int) -> None:
    """Measures our engine on WORLD."""
    torch.set_num_threads(1)
    try:
        result = measure(
            world, Training(), warmup=warmup, steps=steps, overrides=VARIANTS[variant] | json.loads(overrides)
        )
    except NotThere as missing:
        result = {"skipped": str(missing)}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
