"""Kubeflow component of PPO."""

from kfp import dsl

from components.shared.images import TRAIN_IMAGE

__all__ = ["ppo"]


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def ppo(
    policy: dsl.Input[dsl.Model],
    reward_model: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    candidate: dsl.Output[dsl.Model],
    checkpoints: dsl.Output[dsl.Model],
    history: dsl.Output[dsl.Artifact],
    seed: int,
    settings: dict,
    code_digest: str,
    reward_digest: str = "",
):
    """Optimises the policy against the reward model with PPO, held near the reference by a KL target.

    Args:
        policy: The fine-tuned policy: where training starts, and the reference that it is held near.
        reward_model: The reward model that is optimised.
        dataset: Validated data; prompts are drawn from `prompts/train.jsonl`.
        candidate: The trained policy, full weights.
        checkpoints: Policies along the way (`step-0010/`, ...).
        history: One row a step: reward, KL, coefficient, losses, lengths, by slice; and a summary.
        seed: Seed of every random choice.
        settings: Settings of the stage; see components/ppo/settings.py.
        code_digest: Digest of the stage's code, so that the cache sees a change of it.
        reward_digest: Digest of further reward models and of rules' source, so that the cache sees a change of them.
    """
    from components.ppo.stage import run
    from components.shared.artifacts import tell_digests

    summary = run(
        policy=policy.path,
        reward_model=reward_model.path,
        dataset=dataset.path,
        output_policy=candidate.path,
        output_checkpoints=checkpoints.path,
        output_history=history.path,
        seed=seed,
        settings=settings,
    )
    known = {name: value for name, value in summary.items() if value is not None}
    candidate.metadata.update(known)
    history.metadata.update(known)
    tell_digests(checkpoints, history)
