"""Supervised fine-tuning: a base model learns to answer like the demonstrations.

It becomes the policy that all later stages start from:
demonstrations > token ids > TRL's `SFTTrainer` > full weights (adapters merged) > held-out loss of the saved weights
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from components.sft.demonstrations import Demonstration, encode_demonstrations, training_rows
from components.sft.heldout import heldout_metrics
from components.sft.settings import SFTSettings
from components.shared.artifacts import Artifact, Draft, read_artifact, write_artifact
from components.shared.code_version import code_version
from components.shared.errors import InputError
from components.shared.files import write_json, write_jsonl
from components.shared.hf_checkpoints import joint_training_folder
from components.shared.hf_training import (
    LengthGroupedBatches,
    fill_last_batch,
    graceful_termination,
    lora_config,
    model_source_digest,
    train_to_end,
    training_arguments,
    weights_dtype,
)
from components.shared.launch import Stage, launched, main
from components.shared.models import load_policy, prepare_tokenizer, save_policy, seed_everything
from components.shared.settings import parse_settings
from components.shared.tracking import stage_run
from components.shared.world import World

__all__ = ["STAGE", "run"]

STAGE = Stage(name="sft", inputs=("dataset",), outputs=("output",))
_IGNORED = -100

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Start:
    """Where training starts from."""

    name: str
    digest: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def run(
    *, dataset: str | Path, output: str | Path, base_model: str, seed: int, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Fine-tunes `base_model` on the demonstrations of `dataset`.

    Args:
        dataset: A `dataset` artifact with `sft/{train,heldout}.jsonl`.
        output: Where the `policy` artifact is written: full weights, tokenizer, `policy.json`, `metrics.json`,
            `sft_history.jsonl`.
        base_model: A local model folder or a hub id.
        seed: Seed of every random choice.
        settings: Of `SFTSettings`.

    Returns:
        `digest, base_model, steps, heldout_loss, perplexity` for the artifact's metadata.

    Raises:
        InputError: Settings, data or base model cannot be used.
        PlumblineError: Training failed.
    """
    arguments = dict(locals())
    chosen = parse_settings(settings, SFTSettings, where="sft")
    arguments["settings"] = chosen.model_dump(mode="json")
    result = launched(STAGE, arguments, processes=chosen.processes, trainjob=chosen.trainjob)
    if result is not None:
        return result
    with World.joined() as world:
        return _run(world, dataset=dataset, output=output, base_model=base_model, seed=seed, settings=chosen)


def _run(
    world: World, *, dataset: str | Path, output: str | Path, base_model: str, seed: int, settings: SFTSettings
) -> dict[str, Any]:
    """One of the processes; the first writes and tells."""
    data = read_artifact(dataset, "dataset")
    logged = settings.model_dump(mode="json")
    with (
        graceful_termination() as termination,
        stage_run("sft", settings=logged, seed=seed, tells=world.is_main) as tracking,
    ):
        seed_everything(seed)
        start = _load_base_model(base_model, settings)
        train = _demonstrations(data, "train", start.tokenizer, settings)
        heldout = _demonstrations(data, "heldout", start.tokenizer, settings)
        identity = {
            "stage": "sft",
            "code": code_version("sft"),
            "dataset": data.digest,
            "base_model": start.digest,
            "settings": settings.shaping,
            "seed": seed,
        }
        with joint_training_folder(world, identity) as folder:
            arguments = training_arguments(settings, folder=folder, seed=seed, world=world)
            trainer = _make_trainer(start, train, heldout, arguments, settings)
            how = {"folder": folder, "label": "sft", "run": tracking, "termination": termination, "world": world}
            history = train_to_end(trainer, **how)

            def write() -> dict[str, Any]:
                if not world.is_main:
                    return {}
                inputs = {"dataset": data.digest, "base_model": start.digest}
                with write_artifact(output, "policy", inputs=inputs, settings=logged, stage="sft") as draft:
                    write_jsonl(draft.path / "sft_history.jsonl", history)
                    metadata = _write_policy(draft, trainer, start, heldout, settings)
                return {"digest": read_artifact(output, "policy").digest, **metadata}

            result = world.together(write)
        tracking.log_metrics({name: result[name] for name in ("heldout_loss", "perplexity") if result.get(name)})
    return result


def _load_base_model(base_model: str, settings: SFTSettings) -> _Start:
    model = load_policy(base_model, dtype=weights_dtype(settings))
    tokenizer = prepare_tokenizer(base_model, model)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and settings.max_tokens > limit:
        raise InputError(
            f"max_tokens is {settings.max_tokens}, the base model reads {limit}.",
            where="sft.max_tokens",
            hint=f"Set it to {limit} or less.",
        )
    return _Start(base_model, model_source_digest(base_model, model), model, tokenizer)


def _demonstrations(
    data: Artifact, split: str, tokenizer: PreTrainedTokenizerBase, settings: SFTSettings
) -> list[Demonstration]:
    path = data.file(f"sft/{split}.jsonl")
    demonstrations = encode_demonstrations(path, tokenizer, settings)
    if not demonstrations and split == "train":
        raise InputError("there are no demonstrations to learn from.", where=str(path))
    if not demonstrations:
        logger.warning("%s is empty: the held-out loss cannot be measured.", path)
    return demonstrations


def _make_trainer(
    start: _Start,
    train: Sequence[Demonstration],
    heldout: Sequence[Demonstration],
    arguments: dict[str, Any],
    settings: SFTSettings,
) -> SFTTrainer:
    datasets.disable_progress_bars()
    evaluate = settings.evaluate_each_epoch and bool(heldout)
    config = SFTConfig(
        **arguments,
        max_length=settings.max_tokens if settings.packing else None,
        packing=settings.packing,
        eval_packing=False,
        eval_strategy="epoch" if evaluate else "no",
    )
    rows = {"completion_only_loss": settings.completion_only_loss}
    trainer = _Trainer(
        model=start.model,
        args=config,
        train_dataset=training_rows(train, **rows),
        eval_dataset=training_rows(heldout, **rows) if evaluate else None,
        processing_class=start.tokenizer,
        peft_config=lora_config(settings, task_type="CAUSAL_LM"),
    )
    fill_last_batch(trainer, lambda row: row | {"labels": [_IGNORED] * len(row["labels"])})
    return trainer


class _Trainer(LengthGroupedBatches, SFTTrainer):
    """`SFTTrainer` whose batches depend on seed and epoch alone."""


def _write_policy(
    draft: Draft, trainer: SFTTrainer, start: _Start, heldout: Sequence[Demonstration], settings: SFTSettings
) -> dict[str, Any]:
    save_policy(trainer.model, start.tokenizer, draft.path, base_model=start.name, base_digest=start.digest, step=None)
    saved = load_policy(draft.path)
    metrics = heldout_metrics(saved, start.tokenizer, heldout, batch_size=settings.batch_size)
    metrics["steps"] = trainer.state.global_step
    write_json(draft.path / "metrics.json", metrics)
    metadata = {"base_model": start.name, **{name: metrics[name] for name in ("steps", "heldout_loss", "perplexity")}}
    draft.metadata.update(metadata)
    return metadata


if __name__ == "__main__":
    main(STAGE, sys.argv[1])
