"""PPO stage: optimises the policy against the reward model, held near the reference.

Inputs are read and checked, a trainer is built, an earlier attempt's checkpoint is picked up, training loops, and the
three outputs are written whole. Policies along the way are kept beside the resume checkpoints until the end, so that
an interrupted run loses none.

Several processes run all of this side by side (see `world`); what is written, tracked and reported, the first alone
writes, tracks and reports.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from components.ppo.checkpoint import CheckpointStore
from components.ppo.history import metrics_of_row, summarise
from components.ppo.settings import PPOSettings, RewardSettings
from components.ppo.setup import build_trainer
from components.ppo.trainer import PPOTrainer
from components.shared.artifact_sources import open_artifact
from components.shared.artifacts import Artifact, read_artifact, write_artifact
from components.shared.code_version import code_version
from components.shared.files import write_json, write_jsonl
from components.shared.hf_checkpoints import TrainingFolder, joint_training_folder, resume_point
from components.shared.launch import Stage, launched, main
from components.shared.models import read_policy_record, seed_everything
from components.shared.plugins import plug_in_digest
from components.shared.progress import report
from components.shared.settings import parse_settings
from components.shared.termination import StoppedTogether, graceful_termination
from components.shared.tracking import StageRun, stage_run
from components.shared.world import World

__all__ = ["STAGE", "run"]

STAGE = Stage(
    name="ppo",
    inputs=("policy", "reward_model", "dataset"),
    outputs=("output_policy", "output_checkpoints", "output_history"),
)

logger = logging.getLogger(__name__)

_SNAPSHOT = "step-{:04d}"


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
        settings: `PPOSettings` as a mapping.

    Returns:
        `summary.json` of the history, and the candidate's digest and step.

    Raises:
        InputError: Settings or inputs cannot be used.
        ArtifactError: An input, or a further reward model, is damaged or cannot be fetched.
        RewardRuleError: A rule failed.
        NotFiniteError: Training produced NaN or infinity.
        SystemExit: 143 after SIGTERM, once the step is finished and saved.
    """
    arguments = dict(locals())
    chosen = parse_settings(settings, PPOSettings, where="ppo")
    arguments["settings"] = chosen.model_dump(mode="json")
    result = launched(STAGE, arguments, processes=chosen.processes, trainjob=chosen.trainjob)
    if result is not None:
        return result
    with World.joined() as world:
        return _run(chosen, world, **arguments)


def _run(
    chosen: PPOSettings,
    world: World,
    *,
    policy: str,
    reward_model: str,
    dataset: str,
    output_policy: str,
    output_checkpoints: str,
    output_history: str,
    seed: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    inputs = {
        "policy": read_artifact(policy, "policy"),
        "reward_model": read_artifact(reward_model, "reward_model"),
        "dataset": read_artifact(dataset, "dataset"),
    }
    with (
        _further_reward_models(chosen.reward) as further,
        stage_run("ppo", settings=settings, seed=seed, tells=world.is_main) as tracking,
        joint_training_folder(world, identity := _identity(inputs, further, chosen, seed)) as folder,
    ):
        digests = identity["inputs"]
        seed_everything(seed)
        trainer, tokenizer = build_trainer(
            **inputs, settings=chosen, seed=seed, further_reward_models=further, world=world
        )
        origin = {"base_model": read_policy_record(policy)["base_model"], "base_digest": digests["policy"]}
        snapshots = _Snapshots(folder.path / "snapshots", trainer, tokenizer, origin)
        store = CheckpointStore(folder.path / "resume", identity, publish=folder.publish) if folder.durable else None
        _resume(trainer, store, folder)
        _train(trainer, store, snapshots, tracking)
        if not world.is_main:
            trainer.models.save_candidate(tokenizer, None, origin=origin, step=trainer.updates)
            return {}
        shared = {"inputs": digests, "settings": settings, "stage": "ppo"}
        summary = _write_history(trainer, output_history, shared)
        with write_artifact(output_checkpoints, "policy_checkpoints", **shared) as draft:
            draft.metadata["steps"] = snapshots.copy_to(draft.path, before=trainer.updates)
        with write_artifact(output_policy, "policy", **shared) as draft:
            trainer.models.save_candidate(tokenizer, draft.path, origin=origin, step=trainer.updates)
            draft.metadata["step"] = trainer.updates
    return {**summary, "digest": read_artifact(output_policy, "policy").digest, "step": trainer.updates}


@contextmanager
def _further_reward_models(settings: RewardSettings) -> Iterator[dict[str, Artifact]]:
    """The reward models that the settings name beside the main one, by name, as long as the block lasts."""
    with ExitStack() as opened:
        yield {
            name: opened.enter_context(open_artifact(uri, "reward_model"))
            for name, uri in settings.reward_models.items()
        }


def _identity(
    inputs: dict[str, Artifact], further: dict[str, Artifact], settings: PPOSettings, seed: int
) -> dict[str, Any]:
    """What makes this training this training; its `inputs` are digests of all that it rests on, by name."""
    digests = {name: artifact.digest for name, artifact in inputs.items()}
    digests |= {f"reward/{name}": artifact.digest for name, artifact in further.items()}
    digests |= {f"reward/{name}": plug_in_digest([rule]) for name, rule in settings.reward.rules.items()}
    return {
        "stage": "ppo",
        "code": code_version("ppo"),
        "inputs": digests,
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
    }


def _write_history(trainer: PPOTrainer, output: str, shared: dict[str, Any]) -> dict[str, Any]:
    summary = summarise(trainer.history, trainer.settings.kl, stop_reason=trainer.stop_reason)
    with write_artifact(output, "training_history", **shared) as draft:
        write_jsonl(draft.path / "history.jsonl", trainer.history)
        write_json(draft.path / "summary.json", summary)
        draft.metadata.update(summary)
    return summary


class _Snapshots:
    """The policies kept for evaluation, one folder each, until they become an artifact."""

    def __init__(
        self, folder: Path, trainer: PPOTrainer, tokenizer: PreTrainedTokenizerBase, origin: dict[str, str]
    ) -> None:
        self._folder = folder
        self._trainer = trainer
        self._tokenizer = tokenizer
        self._origin = origin

    def take(self) -> None:
        """Saves the policy as it is now, if one is due; all processes take part, the first one writes."""
        step = self._trainer.updates
        if self._trainer.done or step % self._trainer.settings.evaluate_every_steps:
            return
        target = self._path(step) if self._trainer.world.is_main else None
        if target is not None and target.exists():  # left by an attempt that was interrupted before its next checkpoint
            shutil.rmtree(target)
        self._trainer.models.save_checkpoint(self._tokenizer, target, origin=self._origin, step=step)
        self._trainer.world.wait()  # as long as it takes the first one to write

    def copy_to(self, folder: Path, *, before: int) -> list[int]:
        """Copies those of fewer than `before` updates; returns their steps."""
        every = self._trainer.settings.evaluate_every_steps
        steps = list(range(every, before, every))
        for step in steps:
            shutil.copytree(self._path(step), folder / self._path(step).name)
        return steps

    def _path(self, step: int) -> Path:
        return self._folder / _SNAPSHOT.format(step)


def _resume(trainer: PPOTrainer, store: CheckpointStore | None, folder: TrainingFolder) -> None:
    if store is None:
        return
    checkpoint = resume_point(trainer.world, folder, store.newest)
    if checkpoint is not None:
        state = trainer.world.together(lambda: store.load(checkpoint))
        trainer.load_state(state)
        logger.info("resuming after step %d of %d.", state.step, trainer.settings.steps)


def _train(trainer: PPOTrainer, store: CheckpointStore | None, snapshots: _Snapshots, tracking: StageRun) -> None:
    world = trainer.world

    def after_step(row: dict[str, Any]) -> None:
        if world.is_main:
            tracking.log_metrics(metrics_of_row(row), step=row["step"])
            _report(row, trainer.settings)
        snapshots.take()

    with graceful_termination() as termination:
        termination.deferred = True
        trainer.train(
            store=store,
            after_step=after_step,
            stop_requested=lambda: world.any(termination.requested, device=trainer.models.device),
        )
        if not trainer.done:
            raise StoppedTogether


def _report(row: dict[str, Any], settings: PPOSettings) -> None:
    target = {"kl_target": settings.kl.target_nats} if settings.kl.control == "adaptive" else {}
    report(
        "ppo",
        row["step"],
        settings.steps,
        reward=row["reward_mean"],
        kl=row["kl"],
        **target,
        kl_coef=row["kl_coef"],
        tokens=row["response_tokens"],
        tokens_per_second=row["tokens_per_second"],
    )


if __name__ == "__main__":
    main(STAGE, sys.argv[1])
