"""The reward model: trained on people's preferences, then judged before anything is optimised against it.

pairs > token ids > TRL's `RewardTrainer` > saved weights > held-out evaluation and attacks > checks
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from components.reward_model.evaluate import Evaluation, evaluate
from components.reward_model.pairs import Pair, read_pairs
from components.reward_model.settings import RewardModelSettings
from components.reward_model.train import make_trainer
from components.shared.artifacts import Artifact, Draft, read_artifact, write_artifact
from components.shared.code_version import code_version
from components.shared.errors import InputError
from components.shared.files import write_json, write_jsonl
from components.shared.hf_checkpoints import TrainingFolder, joint_training_folder
from components.shared.hf_training import Termination, graceful_termination, train_to_end, weights_dtype
from components.shared.launch import Stage, launched, main
from components.shared.models import load_reward_model, load_tokenizer, save_reward_model, seed_everything
from components.shared.scoring import rewards
from components.shared.settings import parse_settings
from components.shared.tracking import StageRun, stage_run
from components.shared.world import World

__all__ = ["STAGE", "run"]

STAGE = Stage(name="reward_model", inputs=("policy", "dataset"), outputs=("output",))
_TRAIN_SPLITS = ("train", "divergence")

logger = logging.getLogger(__name__)


def run(
    *,
    policy: str | Path,
    dataset: str | Path,
    output: str | Path,
    train_split: str,
    seed: int,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains a reward model and evaluates it on the held-out pairs.

    Args:
        policy: The fine-tuned `policy` artifact whose weights it starts from.
        dataset: A `dataset` artifact with `preferences/{train,heldout,divergence}.jsonl`.
        output: Where the `reward_model` artifact is written; it is written whether the checks pass or not.
        train_split: `train` for the reward that is optimised, `divergence` for the one that never is.
        seed: Seed of every random choice.
        settings: Of `RewardModelSettings`.

    Returns:
        `digest, passed, accuracy, accuracy_lower95, slope, n_heldout, steps, train_split` for the artifact's metadata.

    Raises:
        InputError: Settings, policy or data cannot be used.
        PlumblineError: Training failed.
    """
    arguments = dict(locals())
    chosen = parse_settings(settings, RewardModelSettings, where="reward_model")
    if train_split not in _TRAIN_SPLITS:
        raise InputError(f"is {train_split!r}, not 'train' or 'divergence'.", where="reward_model.train_split")
    arguments["settings"] = chosen.model_dump(mode="json")
    result = launched(STAGE, arguments, processes=chosen.processes, trainjob=chosen.trainjob)
    if result is not None:
        return result
    job = _Job(read_artifact(policy, "policy"), read_artifact(dataset, "dataset"), train_split, seed, chosen)
    with World.joined() as world:
        return _run(job, world, output)


def _run(job: _Job, world: World, output: str | Path) -> dict[str, Any]:
    """One of the processes; the first writes and tells."""
    with (
        graceful_termination() as termination,
        stage_run(job.label, settings=job.settings_json, seed=job.seed, tells=world.is_main) as tracking,
        joint_training_folder(world, job.identity) as folder,
        _target(job, world, output) as draft,
    ):
        seed_everything(job.seed)
        tokenizer = load_tokenizer(job.policy.path)
        heldout = job.read_pairs("heldout", tokenizer)
        steps = _train(job, tokenizer, draft, folder, tracking, termination, world)

        def judge() -> dict[str, Any]:
            if draft is None:
                return {}
            evaluation = _evaluate(job, tokenizer, draft.path, heldout)
            _log_outcome(job.label, evaluation)
            return _metadata(job, evaluation, steps=steps)

        metadata = world.together(judge)
        if draft is not None:
            draft.metadata.update(metadata)
        tracking.log_metrics({name: value for name, value in metadata.items() if isinstance(value, int | float)})
    return {"digest": read_artifact(output, "reward_model").digest, **metadata} if world.is_main else {}


@contextmanager
def _target(job: _Job, world: World, output: str | Path) -> Iterator[Draft | None]:
    """The artifact that the first process writes."""
    if not world.is_main:
        yield None
        return
    with write_artifact(
        output, "reward_model", inputs=job.inputs, settings=job.settings_json, stage="reward_model"
    ) as draft:
        yield draft


@dataclass(frozen=True)
class _Job:
    """What is trained on what."""

    policy: Artifact
    data: Artifact
    train_split: str
    seed: int
    settings: RewardModelSettings

    @property
    def label(self) -> str:
        return "reward_model" if self.train_split == "train" else f"reward_model_{self.train_split}"

    @property
    def settings_json(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json")

    @property
    def inputs(self) -> dict[str, str]:
        return {"policy": self.policy.digest, "dataset": self.data.digest}

    @property
    def identity(self) -> dict[str, Any]:
        """All that shapes the run; checkpoints of an equal one may be resumed."""
        rest = {"split": self.train_split, "seed": self.seed, "settings": self.settings.shaping}
        return {"stage": "reward_model", "code": code_version("reward_model"), **self.inputs, **rest}

    def read_pairs(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
        path = self.data.file(f"preferences/{split}.jsonl")
        pairs = read_pairs(path, tokenizer, self.settings)
        if not pairs:
            raise InputError("there are no pairs.", where=str(path), hint="Collect more pairs.")
        return pairs


def _train(
    job: _Job,
    tokenizer: PreTrainedTokenizerBase,
    draft: Draft | None,
    folder: TrainingFolder,
    tracking: StageRun,
    termination: Termination,
    world: World,
) -> int:
    """Trains, saves weights and log into the draft, and returns the number of steps."""
    model = load_reward_model(job.policy.path, dtype=weights_dtype(job.settings))
    pairs = job.read_pairs(job.train_split, tokenizer)
    trainer = make_trainer(model, tokenizer, pairs, job.settings, folder=folder, seed=job.seed, world=world)
    how = {"folder": folder, "label": job.label, "run": tracking, "termination": termination, "world": world}
    history = train_to_end(trainer, **how)

    def save() -> None:
        if draft is not None:
            save_reward_model(trainer.model, tokenizer, draft.path, base_digest=job.policy.digest)
            write_jsonl(draft.path / "training.jsonl", history)

    world.together(save)
    return trainer.state.global_step


def _evaluate(job: _Job, tokenizer: PreTrainedTokenizerBase, target: Path, heldout: Sequence[Pair]) -> Evaluation:
    """Evaluates the weights saved in `target` and writes what was found beside them."""
    gc.collect()
    torch.cuda.empty_cache()
    saved = load_reward_model(target)

    def scorer(prompts_ids: Sequence[list[int]], responses_ids: Sequence[list[int]]) -> list[float]:
        return rewards(saved, tokenizer, prompts_ids, responses_ids, batch_size=4 * job.settings.batch_size).tolist()

    evaluation = evaluate(heldout, scorer, tokenizer, job.settings)
    write_json(target / "reward.json", {**evaluation.scale, "train_split": job.train_split})
    write_json(target / "evaluation.json", evaluation.report)
    write_jsonl(target / "predictions.jsonl", evaluation.predictions)
    return evaluation


def _metadata(job: _Job, evaluation: Evaluation, *, steps: int) -> dict[str, Any]:
    accuracy = evaluation.report["accuracy"]
    return {
        "passed": evaluation.report["passed"],
        "accuracy": accuracy["value"],
        "accuracy_lower95": accuracy["lower95_one_sided"],
        "slope": evaluation.scale["slope"],
        "n_heldout": evaluation.report["n"],
        "steps": steps,
        "train_split": job.train_split,
    }


def _log_outcome(label: str, evaluation: Evaluation) -> None:
    failed = [check for check in evaluation.report["checks"] if not check["passed"]]
    for check in failed:
        logger.warning("%s: check %s failed: %s.", label, check["name"], check["reason"])
    if not failed:
        logger.info("%s: all %d checks passed.", label, len(evaluation.report["checks"]))


if __name__ == "__main__":
    main(STAGE, sys.argv[1])
