"""What the stages that train through Hugging Face's `Trainer` share.

A run is a function of its inputs, settings and seed: batches are drawn from (seed, epoch) alone, so that a run that was
killed and resumed ends at the same weights. SIGTERM finishes the step, saves and exits 143; a half-trained model never
looks finished.

Several processes train as one: each batch is dealt among them, and their gradients are averaged (DDP, by transformers).
So that an average over processes is one over examples, the last batch of an epoch is filled up with rows that teach
nothing. The first process alone saves, reports and logs.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from components.shared.artifacts import MANIFEST
from components.shared.errors import InputError, PlumblineError
from components.shared.files import digest_of, read_json, sha256_file
from components.shared.hf_checkpoints import TrainingFolder, latest_checkpoint, resume_point, seal_checkpoint
from components.shared.hub_models import split_revision
from components.shared.models import pick_device, pick_dtype, seed_everything
from components.shared.progress import report
from components.shared.termination import EXIT_TERMINATED, StoppedTogether, Termination, graceful_termination
from components.shared.training_settings import TrainingSettings
from components.shared.world import World

__all__ = [
    "EXIT_TERMINATED",
    "EpochSampler",
    "LengthGroupedBatches",
    "Termination",
    "fill_last_batch",
    "fit_answer",
    "graceful_termination",
    "lora_config",
    "model_source_digest",
    "train_to_end",
    "trained_weights_in_float32",
    "training_arguments",
    "weights_dtype",
]

_SORTING_WINDOW_BATCHES = 50
_TIMING_SUFFIXES = ("_runtime", "_per_second")
_RANDOM_STATE = "rng_state_{}.pth"
"""Transformers' name of a process's random state in a checkpoint."""

logger = logging.getLogger(__name__)


# --- arguments -------------------------------------------------------------------------------------------------------


def weights_dtype(settings: TrainingSettings) -> torch.dtype:
    """Number type in which the model is loaded for training; see `TrainingSettings.dtype`."""
    if settings.dtype == "auto":
        return pick_dtype(pick_device()) if settings.parameterisation == "lora" else torch.float32
    return torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32


def training_arguments(
    settings: TrainingSettings, *, folder: TrainingFolder, seed: int, world: World | None = None
) -> dict[str, Any]:
    """Keyword arguments that every TRL config of ours has in common.

    No telemetry, no reporting integration, no worker processes; bfloat16 arithmetic only where the device has it (TRL's
    own default turns it on everywhere); a NaN loss is shown rather than replaced by an average.

    Raises:
        InputError: A batch cannot be dealt evenly among the processes.
    """
    share = _share_of_batch(settings, world or World())
    device = pick_device()
    autocast = settings.dtype == "auto" and pick_dtype(device) == torch.bfloat16
    on_gpu = device.type == "cuda"
    checkpointing = settings.gradient_checkpointing
    return {
        "output_dir": str(folder.path),
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": share,
        "per_device_eval_batch_size": share,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "warmup_steps": settings.warmup_fraction,
        "lr_scheduler_type": settings.scheduler,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "activation_checkpointing": on_gpu if checkpointing is None else checkpointing,
        "bf16": autocast,
        "use_cpu": not on_gpu,
        "seed": seed,
        "logging_steps": settings.log_every_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if folder.durable else "no",
        "save_steps": settings.save_every_steps,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
    }


def _share_of_batch(settings: TrainingSettings, world: World) -> int:
    share, left = divmod(settings.batch_size, world.size)
    if left:
        raise InputError(
            f"a batch of {settings.batch_size} cannot be dealt evenly among {world.size} processes.",
            where="batch_size",
            hint="Make it a multiple of the number of processes; gradient_accumulation makes up for a smaller one.",
        )
    return share


def lora_config(settings: TrainingSettings, *, task_type: str) -> Any:
    """peft's LoRA settings, or None for full fine-tuning.

    Args:
        settings: The stage's settings.
        task_type: peft's name of the task; `SEQ_CLS` is what makes it train the new score head as well.
    """
    if settings.parameterisation == "full":
        return None
    from peft import LoraConfig

    lora = settings.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type=task_type,
    )


def trained_weights_in_float32(model: Any, settings: TrainingSettings) -> None:
    """With `dtype: auto`, lifts what is trained to float32 before the optimizer sees it.

    peft does so for adapters but not for a new score head, which would learn in bfloat16 beside a bfloat16 backbone.
    """
    if settings.dtype == "auto":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


# --- data ------------------------------------------------------------------------------------------------------------


def fit_answer(
    prompt_ids: list[int], response_ids: list[int], settings: TrainingSettings, *, where: str
) -> tuple[list[int], bool]:
    """The answer within `max_tokens`: its end, with EOS, is cut.

    Returns:
        The token ids that fit, and whether anything was cut.

    Raises:
        InputError: It does not fit and the settings say so, or the prompt leaves no room for any answer.
    """
    room = settings.max_tokens - len(prompt_ids)
    if room < 1:
        raise InputError(
            f"the prompt has {len(prompt_ids)} tokens and max_tokens is {settings.max_tokens}: no room for an answer.",
            where=where,
            hint="Raise max_tokens or drop the record.",
        )
    if len(response_ids) <= room:
        return response_ids, False
    if settings.overlong == "error":
        raise InputError(
            f"prompt and answer have {len(prompt_ids) + len(response_ids)} tokens, max_tokens {settings.max_tokens}.",
            where=where,
            hint="Raise max_tokens, drop the record, or set overlong: truncate.",
        )
    return response_ids[:room], True


class EpochSampler(Sampler[int]):
    """Batches of like length, in an order that depends on seed and epoch only.

    Shuffled examples are sorted by length inside windows of 50 batches, and the batches are shuffled again, so that
    little is padded and no epoch goes from long to short.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples a batch, over all processes.
        seed: Seed of the run.
        fill: Further examples, behind the others; they come last in every epoch.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, *, fill: int = 0) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._fill = fill
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch; the trainer calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths) + self._fill

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        window = self._batch_size * _SORTING_WINDOW_BATCHES
        batches = []
        for start in range(0, len(order), window):
            alike = sorted(order[start : start + window], key=self._lengths.__getitem__)
            batches += [alike[i : i + self._batch_size] for i in range(0, len(alike), self._batch_size)]
        full = [batch for batch in batches if len(batch) == self._batch_size]
        rest = [batch for batch in batches if len(batch) < self._batch_size]
        shuffled = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
        filling = list(range(len(self._lengths), len(self)))
        return (index for batch in [*shuffled, *rest, filling] for index in batch)


class LengthGroupedBatches:
    """Mix-in of a Trainer: its training batches come from `EpochSampler`.

    Accelerate deals what the sampler yields to the processes in turn, `per_device_train_batch_size` each: the batches
    are those of one process.

    Attributes:
        fill: Rows at the end of the training set that teach nothing; see `fill_last_batch`.
    """

    args: TrainingArguments
    train_dataset: Any
    fill: int = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        lengths = _lengths(self.train_dataset if train_dataset is None else train_dataset)
        size = self.args.per_device_train_batch_size * self.args.world_size
        return EpochSampler(lengths[: len(lengths) - self.fill], size, self.args.seed, fill=self.fill)


def fill_last_batch(trainer: Any, blank: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Completes the last batch of an epoch where several processes share it; accelerate would repeat real examples.

    Args:
        trainer: A trainer with `LengthGroupedBatches`, before its first step.
        blank: Makes of a row one that teaches nothing; called with one, and the same row stands for all.
    """
    rows = trainer.train_dataset
    size = trainer.args.per_device_train_batch_size * trainer.args.world_size
    if trainer.args.world_size == 1 or len(rows) % size == 0:
        return
    lengths = _lengths(rows)
    trainer.fill = size - len(rows) % size
    shortest = rows[min(range(len(lengths)), key=lengths.__getitem__)]
    filling = Dataset.from_list([blank(shortest)] * trainer.fill, features=rows.features)
    trainer.train_dataset = concatenate_datasets([rows, filling])


def _lengths(dataset: Dataset) -> list[int]:
    columns = [name for name in ("input_ids", "chosen_ids", "rejected_ids") if name in dataset.column_names]
    return [max(map(len, row)) for row in zip(*(dataset[name] for name in columns), strict=True)]


def model_source_digest(source: str, model: Any) -> str:
    """What training starts from: an artifact's digest, else one of a folder's files, or of a hub id and commit."""
    folder = Path(source)
    if (folder / MANIFEST).is_file():
        return read_json(folder / MANIFEST)["digest"]
    if folder.is_dir():
        files = (file for file in sorted(folder.rglob("*")) if file.is_file())
        return digest_of({str(file.relative_to(folder)): sha256_file(file) for file in files})
    name, revision = split_revision(source)
    return digest_of({"hub": name, "commit": getattr(model.config, "_commit_hash", None) or revision})


# --- training --------------------------------------------------------------------------------------------------------


def train_to_end(
    trainer: Trainer,
    *,
    folder: TrainingFolder,
    label: str,
    run: Any,
    termination: Termination,
    world: World | None = None,
) -> list[dict[str, Any]]:
    """Trains, from the newest whole checkpoint if there is one, to the last step or not at all.

    Args:
        trainer: A Hugging Face trainer.
        folder: Where its checkpoints are.
        label: What the progress is reported under.
        run: The stage's tracking run.
        termination: Of the surrounding `graceful_termination` block.
        world: The processes that train together; all call this.

    Returns:
        The log: one row a logged step, `step, epoch, loss, learning_rate, ...`.

    Raises:
        SystemExit: SIGTERM came to one of the processes; status 143.
        PlumblineError: The loss is not finite, or training ended before its last step.
    """
    world = world or World()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_StageCallback(label, run, termination, folder, world))
    checkpoint = resume_point(world, folder, lambda: latest_checkpoint(folder.path))
    if checkpoint is not None and world.is_main:
        logger.info("Resuming from %s.", checkpoint)
    if world.size > 1:  # what is drawn in a step (dropout) is drawn apart; a checkpoint of as many replaces it
        seed_everything(trainer.args.seed * 1_000_003 + world.rank)
    termination.deferred = True
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        termination.deferred = False
    if world.any(termination.requested, device=trainer.args.device):
        raise StoppedTogether
    state = trainer.state
    if state.global_step < state.max_steps:
        raise PlumblineError(f"training ended at step {state.global_step} of {state.max_steps}.", where=label)
    return [_history_row(row) for row in state.log_history if "train_runtime" not in row]


class _StageCallback(TrainerCallback):
    """Reports, logs, seals checkpoints, and stops all processes when one of them was told to."""

    def __init__(self, label: str, run: Any, termination: Termination, folder: TrainingFolder, world: World) -> None:
        self._label = label
        self._run = run
        self._termination = termination
        self._folder = folder
        self._world = world
        self._loss: dict[str, float] = {}

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Chooses the epoch's order: after a resume what skips batches, around what deals them, hides the sampler."""
        if self._world.size == 1:
            return
        batches = given["train_dataloader"].batch_sampler
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        steps = -(-len(given["train_dataloader"]) // args.gradient_accumulation_steps)
        batches.sampler.set_epoch(state.global_step // steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self._world.is_main:
            report(self._label, state.global_step, state.max_steps, **self._loss)
        if self._world.any(self._termination.requested, device=args.device):
            control.should_save = self._folder.durable
            control.should_training_stop = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        for name in ("loss", "eval_loss"):
            if not math.isfinite(figures.get(name, 0.0)):
                raise PlumblineError(
                    f"{name} is {figures[name]} at step {state.global_step}.",
                    where=self._label,
                    hint="Lower learning_rate or raise warmup_fraction.",
                )
        if "loss" in figures:
            self._loss = {"loss": figures["loss"]}
        self._run.log_metrics(
            {name: value for name, value in figures.items() if math.isfinite(value)}, step=state.global_step
        )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        self._bring_random_states(checkpoint)
        self._world.together(lambda: self._seal(checkpoint))

    def _seal(self, checkpoint: Path) -> None:
        if self._world.is_main:
            seal_checkpoint(checkpoint)
            self._folder.publish()
        elif self._folder.fetch is not None:  # on another node: what transformers put there is in the first one's now
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _bring_random_states(self, checkpoint: Path) -> None:
        """Each process writes its random state into its own node's folder; they belong into the first one's."""
        if self._world.size == 1:
            return
        mine = checkpoint / _RANDOM_STATE.format(self._world.rank)
        states = self._world.gathered(self._world.together(mine.read_bytes))
        if self._world.is_main:
            for rank, state in enumerate(states):
                (checkpoint / _RANDOM_STATE.format(rank)).write_bytes(state)


def _history_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the log without times, which differ between equal runs, and numbers that JSON has no word for."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
        if not name.endswith(_TIMING_SUFFIXES)
    }
