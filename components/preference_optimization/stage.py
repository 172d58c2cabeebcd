"""Preference optimisation: DPO, IPO, KTO, GRPO, RLOO or online DPO in PPO's place.

Same inputs, same outputs: evaluation, human evaluation and gate need not know what trained the candidate. TRL's
trainers do the learning; this stage gives them token ids, measures the policy while it learns, keeps policies along the
way, and goes on from a checkpoint after an interruption as supervised fine-tuning does.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from components.preference_optimization.history import TrainerFigures, history_rows, metrics_of_row, summarise
from components.preference_optimization.measuring import Measurements
from components.preference_optimization.settings import PreferenceOptimizationSettings
from components.preference_optimization.setup import Inputs, Training, build_training
from components.preference_optimization.snapshots import Snapshots
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.code_version import code_version
from components.shared.files import write_json, write_jsonl
from components.shared.hf_checkpoints import TrainingFolder, training_folder
from components.shared.hf_training import train_to_end
from components.shared.models import read_policy_record, seed_everything
from components.shared.settings import parse_settings
from components.shared.termination import Termination, graceful_termination
from components.shared.tracking import StageRun, stage_run

__all__ = ["run"]

_STAGE = "preference_optimization"

logger = logging.getLogger(__name__)


def run(
    *,
    policy: str,
    reward_model: str,
    dataset: str,
    output_policy: str,
    output_checkpoints: str,
    output_history: str,
    seed: int,
    settings: dict[str, Any],
    pairs: str = "",
) -> dict[str, Any]:
    """Trains the policy and writes candidate, checkpoints and history.

    Args:
        policy: `policy` artifact: start and reference.
        reward_model: `reward_model` artifact.
        dataset: `dataset` artifact; `prompts/train.jsonl` is read.
        output_policy: Where the candidate (`policy`) goes.
        output_checkpoints: Where the policies along the way (`policy_checkpoints`) go.
        output_history: Where the `training_history` goes.
        seed: Of everything random.
        settings: `PreferenceOptimizationSettings` as a mapping.
        pairs: `dataset` artifact with `preferences/train.jsonl`; empty: `dataset` has them.

    Returns:
        `summary.json` of the history, and the candidate's digest and step.

    Raises:
        InputError: Settings or inputs cannot be used.
        PlumblineError: Training produced NaN or infinity.
        SystemExit: 143 after SIGTERM, once the step is finished and saved.
    """
    chosen = parse_settings(settings, PreferenceOptimizationSettings, where=_STAGE)
    settings = chosen.model_dump(mode="json")
    inputs = Inputs(
        policy=read_artifact(policy, "policy"),
        reward_model=read_artifact(reward_model, "reward_model"),
        dataset=read_artifact(dataset, "dataset"),
        pairs=read_artifact(pairs or dataset, "dataset"),
    )
    digests = {name: artifact.digest for name, artifact in vars(inputs).items()}
    identity = {
        "stage": _STAGE,
        "code": code_version(_STAGE),
        "inputs": digests,
        "settings": settings,
        "seed": seed,
    }
    with (
        graceful_termination() as termination,
        stage_run(_STAGE, settings=settings, seed=seed) as tracking,
        training_folder(identity) as folder,
    ):
        seed_everything(seed)
        training = build_training(inputs, chosen, folder=folder, seed=seed)
        origin = {"base_model": read_policy_record(policy)["base_model"], "base_digest": digests["policy"]}
        snapshots = Snapshots(folder.path / "snapshots", training.trainer, training.tokenizer, origin)
        rows = _train(training, snapshots, chosen, folder=folder, tracking=tracking, termination=termination)
        shared = {"inputs": digests, "settings": settings, "stage": _STAGE}
        summary = _write_history(rows, chosen, output_history, shared)
        steps = [row["step"] for row in rows[1:-1]]
        with write_artifact(output_checkpoints, "policy_checkpoints", **shared) as draft:
            snapshots.copy_to(draft.path, steps)
            draft.metadata["steps"] = steps
        with write_artifact(output_policy, "policy", **shared) as draft:
            snapshots.save_candidate(draft.path, step=summary["steps"])
            draft.metadata["step"] = summary["steps"]
    return {**summary, "digest": read_artifact(output_policy, "policy").digest, "step": summary["steps"]}


def _train(
    training: Training,
    snapshots: Snapshots,
    settings: PreferenceOptimizationSettings,
    *,
    folder: TrainingFolder,
    tracking: StageRun,
    termination: Termination,
) -> list[dict[str, Any]]:
    """Trains to the end; returns the rows of the history."""

    def measured(step: int, row: dict[str, Any]) -> None:
        tracking.log_metrics(metrics_of_row(row), step=step)
        logger.info("step %d: reward %.3f, KL %.3f nats per sequence.", step, row["reward_mean"], row["kl"])

    measurements = Measurements(
        training.probe,
        Path(folder.path) / "measurements",
        every=settings.evaluate_every_steps,
        measured=measured,
        keep=snapshots.take,
    )
    training.trainer.add_callback(measurements)
    logged = train_to_end(
        training.trainer,
        folder=folder,
        label=_STAGE,
        run=TrainerFigures(tracking),
        termination=termination,
    )
    return history_rows(measurements.rows(training.trainer.state.global_step), logged)


def _write_history(
    rows: list[dict[str, Any]], settings: PreferenceOptimizationSettings, output: str, shared: dict[str, Any]
) -> dict[str, Any]:
    summary = summarise(rows, settings)
    with write_artifact(output, "training_history", **shared) as draft:
        write_jsonl(draft.path / "history.jsonl", rows)
        write_json(draft.path / "summary.json", summary)
        draft.metadata.update(summary)
    return summary
