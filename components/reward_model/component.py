"""Kubeflow components of the reward model: train and evaluate it, and stop the pipeline when it failed its checks."""

from typing import NamedTuple

from kfp import dsl

from components.shared.images import LIGHT_IMAGE, TRAIN_IMAGE

__all__ = ["reward_model", "reward_model_check"]


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def reward_model(
    policy: dsl.Input[dsl.Model],
    data: dsl.Input[dsl.Dataset],
    reward_model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    train_split: str,
    seed: int,
    settings: dict,
    code_digest: str,
) -> NamedTuple("Outputs", [("passed", bool)]):  # type: ignore
    """Trains a reward model on preference pairs and evaluates it on held-out ones; it does not fail on a bad one.

    Args:
        policy: Fine-tuned policy whose weights it starts from.
        data: Validated data with preference pairs (`preferences/{train,heldout,divergence}.jsonl`).
        reward_model: The reward model with its scale, its evaluation and its held-out predictions.
        metrics: Held-out accuracy, its lower bound, calibration slope, success rate of each attack.
        train_split: `train` for the reward that is optimised, `divergence` for the one that never is.
        seed: Seed of every random choice.
        settings: Settings of the stage; see components/reward_model/settings.py.
        code_digest: Digest of the stage's code; a change of the code is a change of the cache key.

    Returns:
        passed: Whether every check passed.
    """
    from collections import namedtuple

    from components.reward_model.checks import headline_metrics
    from components.reward_model.stage import run
    from components.shared.files import write_json

    metadata = run(
        policy=policy.path,
        dataset=data.path,
        output=reward_model.path,
        train_split=train_split,
        seed=seed,
        settings=settings,
    )
    reward_model.metadata.update(metadata)
    metrics.metadata.update(headline_metrics(reward_model.path))
    write_json(metrics.path, metrics.metadata)  # KFP's local cache takes an artifact without a file for lost
    return namedtuple("Outputs", ["passed"])(metadata["passed"])


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def reward_model_check(reward_model: dsl.Input[dsl.Model]):
    """Stops the pipeline when a reward model failed its checks, and says which and why.

    Args:
        reward_model: The reward model with its evaluation.
    """
    from components.reward_model.checks import require_passed

    require_passed(reward_model.path)
