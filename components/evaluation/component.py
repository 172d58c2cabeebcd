"""KFP shells of the evaluation stage: answer and measure; make a checkpoint a candidate."""

from typing import Optional

from kfp import dsl

from components.shared.images import TRAIN_IMAGE

__all__ = ["checkpoint_candidate", "evaluation"]


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def evaluation(
    dataset: dsl.Input[dsl.Dataset],
    reward_model: dsl.Input[dsl.Model],
    heldout_reward_model: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    seed: int,
    settings: dict,
    code_digest: str,
    reference: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045 (KFP reads typing.Optional only)
    candidate: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045
    checkpoints: Optional[dsl.Input[dsl.Artifact]] = None,  # noqa: UP045
    kl_reference: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045
    champion_uri: str = "",
    champion_digest: str = "",
    reference_uri: str = "",
    reference_digest: str = "",
    candidate_uri: str = "",
    candidate_digest: str = "",
):
    """Answers held-out and human-evaluation prompts with every policy and measures rewards, KL and text quality.

    Args:
        dataset: Validated dataset with the prompts.
        reward_model: Reward model that the candidate was trained on.
        heldout_reward_model: Reward model that was never optimised.
        evaluation: Answers, models and figures.
        metrics: The candidate's figures.
        seed: Seed of the sampling.
        settings: Settings of the stage (EvaluationSettings).
        code_digest: Digest of the stage's code; a change of the code is a change of the cache key.
        reference: Policy to compare with (the SFT policy); or give its URI and digest.
        candidate: Policy under test; or give its URI and digest.
        checkpoints: The candidate's checkpoints.
        kl_reference: Policy that KL is measured against; the reference if absent.
        champion_uri: The live policy in the registry; empty if there is none.
        champion_digest: Its digest.
        reference_uri: The reference in the registry.
        reference_digest: Its digest.
        candidate_uri: The candidate in the registry.
        candidate_digest: Its digest.
    """
    from components.evaluation.stage import run
    from components.shared.artifacts import require_as_told
    from components.shared.files import write_json

    rewards = {"reward_model": reward_model, "heldout_reward_model": heldout_reward_model}
    policies = {
        "reference": reference,
        "candidate": candidate,
        "checkpoints": checkpoints,
        "kl_reference": kl_reference,
    }
    require_as_told(**policies, dataset=dataset, **rewards)
    result = run(
        reference=reference.path if reference else "",
        candidate=candidate.path if candidate else "",
        checkpoints=checkpoints.path if checkpoints else "",
        kl_reference=kl_reference.path if kl_reference else "",
        reward_model=reward_model.path,
        heldout_reward_model=heldout_reward_model.path,
        dataset=dataset.path,
        output=evaluation.path,
        champion_uri=champion_uri,
        champion_digest=champion_digest,
        reference_uri=reference_uri,
        reference_digest=reference_digest,
        candidate_uri=candidate_uri,
        candidate_digest=candidate_digest,
        seed=seed,
        settings=settings,
    )
    evaluation.metadata.update(result)
    metrics.metadata.update({name: value for name, value in result.items() if isinstance(value, float)})
    write_json(metrics.path, metrics.metadata)  # KFP's local cache takes an artifact without a file for lost


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def checkpoint_candidate(
    checkpoints: dsl.Input[dsl.Artifact],
    reference: dsl.Input[dsl.Model],
    candidate: dsl.Output[dsl.Model],
    earlier: dsl.Output[dsl.Artifact],
    step: int,
    code_digest: str,
):
    """Makes a training checkpoint a candidate of its own, with whole weights.

    Args:
        checkpoints: Checkpoints of the run.
        reference: Policy that the run trained from.
        candidate: The checkpoint as a policy.
        earlier: The checkpoints before it; the reference is their first, as step 0.
        step: Training step of the checkpoint.
        code_digest: Digest of the stage's code; a change of the code is a change of the cache key.
    """
    from components.evaluation.checkpoint import run

    candidate.metadata.update(
        run(
            checkpoints=checkpoints.path,
            reference=reference.path,
            step=step,
            output_policy=candidate.path,
            output_checkpoints=earlier.path,
        )
    )
