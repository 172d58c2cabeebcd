"""One process of the peer, trl 1.12.0's `PPOTrainer`: some PPO steps, measured. Prints one JSON line.

Run in the peer's environment (`benchmarks.ppo.peer_environment`). TRL's code runs unaltered; phases are told apart by
wrapping the functions that it calls between them.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
import trl.experimental.ppo.ppo_trainer as trl_ppo
from datasets import Dataset
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from benchmarks.ppo.measure import Clock, MemoryMeter
from benchmarks.ppo.workload import WORKLOAD_FILE, ForcedLengths, Training, Workload, read_json

__all__ = ["build", "load"]

logging.disable(logging.WARNING)


def lora(training: Training, task: str) -> LoraConfig:
    """The adapter's configuration, as in our engine."""
    return LoraConfig(
        task_type=task,
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
    )


def load(world: Path, training: Training, *, value: str) -> dict[str, Any]:
    """Policy, value model and reward model; `value` is `full` (all weights train, TRL's own way) or `lora`."""
    policy = AutoModelForCausalLM.from_pretrained(world / "policy", dtype=torch.float32)
    critic = AutoModelForSequenceClassification.from_pretrained(world / "policy", dtype=torch.float32, num_labels=1)
    torch.nn.init.zeros_(critic.score.weight)
    if value == "lora":
        critic = inject_adapter_in_model(lora(training, "SEQ_CLS"), critic)
        critic.score.requires_grad_(True)
    reward = AutoModelForSequenceClassification.from_pretrained(world / "reward", dtype=torch.float32)
    return {"model": policy, "value_model": critic, "reward_model": reward.requires_grad_(False)}


def build(
    models: dict[str, Any],
    world: Path,
    workload: Workload,
    training: Training,
    *,
    prompts: list[list[int]],
    updates: int,
    output: str,
    rollout_batch: int = 64,
    callbacks: Sequence[TrainerCallback] = (),
    adapter: bool = True,
    options: dict[str, Any] | None = None,
) -> trl_ppo.PPOTrainer:
    """TRL's trainer, set up as our engine is.

    Args:
        models: See `load`.
        world: Folder of the artifacts.
        workload: Their shape.
        training: Hyperparameters.
        prompts: Token ids of each prompt.
        updates: PPO updates to make.
        output: An empty folder.
        rollout_batch: Episodes that are sampled and scored together; 64 is TRL's default.
        callbacks: Of the trainer.
        adapter: Whether `peft_config` is given; else all weights train.
        options: Of `PPOConfig`, over those chosen here.
    """
    tokenizer = AutoTokenizer.from_pretrained(world / "policy")
    tokenizer.padding_side = "left"
    arguments = trl_ppo.PPOConfig(
        output_dir=output,
        per_device_train_batch_size=training.microbatch,
        gradient_accumulation_steps=workload.episodes // training.microbatch,
        num_mini_batches=1,
        num_ppo_epochs=training.epochs,
        total_episodes=workload.episodes * updates,
        local_rollout_forward_batch_size=rollout_batch,
        num_sample_generations=0,
        response_length=workload.response_tokens[1],
        stop_token="eos",
        temperature=1.0,
        kl_coef=training.kl_coef,
        cliprange=training.clip_ratio,
        cliprange_value=training.value_clip,
        gamma=training.gamma,
        lam=training.lam,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=workload.seed,
        **(options or {}),
    )
    trainer = trl_ppo.PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        ref_model=None,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        peft_config=lora(training, "CAUSAL_LM") if adapter else None,
        callbacks=list(callbacks),
        **models,
    )
    # All prompts are one batch, so every batch is the data's last, where accelerate would end gradient accumulation: an
    # optimizer step for each micro-batch. In real use that happens once a data epoch.
    trainer.accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False
    return trainer


class _Watch(TrainerCallback):
    """Starts the clock once the steps that warm up are over."""

    def __init__(self, clock: Clock, forcer: ForcedLengths, *, warmup: int) -> None:
        self._clock = clock
        self._forcer = forcer
        self._warmup = warmup
        self.tokens_before = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._clock.lap("update")
        if state.global_step == self._warmup:
            self.tokens_before = self._forcer.forced
            self._clock.start()


def measure(world: Path, training: Training, arguments: argparse.Namespace) -> dict[str, Any]:
    """Some steps to warm up, then the measured ones."""
    content = read_json(world / WORKLOAD_FILE)
    workload = Workload.from_json(content["workload"])
    clock, memory = Clock(), MemoryMeter()
    memory.mark("imported")
    models = load(world, training, value=arguments.value)
    forcer = ForcedLengths(models["model"], content["prompts"], content["lengths"])
    watch = _Watch(clock, forcer, warmup=arguments.warmup)
    logged: list[dict[str, float]] = []
    trl_ppo.batch_generation = clock.wrap("rollout", trl_ppo.batch_generation)
    trl_ppo.masked_whiten = clock.wrap("score", trl_ppo.masked_whiten)
    with tempfile.TemporaryDirectory() as output:
        trainer = build(
            models,
            world,
            workload,
            training,
            prompts=content["prompts"],
            updates=arguments.warmup + arguments.steps,
            output=output,
            rollout_batch=arguments.rollout_batch,
            callbacks=[watch],
        )
        trainer.log = lambda logs, *_: logged.append(logs)
        memory.mark("loaded")
        with forcer.attached():
            trainer.train()
    seconds = dict(clock.seconds)
    seconds["score"] = seconds.get("score", 0.0) + seconds.pop("other", 0.0)  # what lies before masked_whiten
    return {
        "tokens": forcer.forced - watch.tokens_before,
        "cpu_seconds": sum(seconds.values()),
        "phases": seconds,
        "memory": {**memory.marks, "peak": memory.peak()},
        "kl": [row["objective/kl"] for row in logged],
        "reward": [row["objective/scores"] for row in logged],
        "versions": {
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
    }


def main() -> None:
    """Measures the peer on a world."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("world", type=Path)
    parser.add_argument("--value", choices=["full", "lora"], default="full")
    parser.add_argument("--rollout-batch", type=int, default=64)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(measure(arguments.world, Training(), arguments)) + "\n")


if __name__ == "__main__":
    main()
