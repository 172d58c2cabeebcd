"""Kubeflow component of preference optimisation."""

from kfp import dsl

from components.shared.images import TRAIN_IMAGE

__all__ = ["preference_optimization"]


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def preference_optimization(
    policy: dsl.Input[dsl.Model],
    reward_model: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    candidate: dsl.Output[dsl.Model],
    checkpoints: dsl.Output[dsl.Model],
    history: dsl.Output[dsl.Artifact],
    seed: int,
    settings: dict,
    code_digest: str,
    pairs: dsl.Input[dsl.Dataset] | None = None,
):
    """Optimises the policy with DPO, IPO, KTO, GRPO, RLOO or online DPO; takes PPO's place in the pipeline.

    Args:
        policy: The fine-tuned policy: where training starts, and the reference that it is held near.
        reward_model: The reward model: what GRPO, RLOO and online DPO optimise, and what every method is measured by.
        dataset: Validated data; prompts are drawn from `prompts/train.jsonl`.
        candidate: The trained policy, full weights.
        checkpoints: Policies along the way (`step-0020/`, ...).
        history: One row a measurement: reward, KL, lengths, by slice, and the trainer's own figures; and a summary.
        seed: Seed of every random choice.
        settings: Settings of the stage; see components/preference_optimization/settings.py.
        code_digest: Digest of the stage's code, so that the cache sees a change of it.
        pairs: Validated data with `preferences/train.jsonl`, for DPO, IPO and KTO; by default `dataset`.
    """
    from components.preference_optimization.stage import run
    from components.shared.artifacts import tell_digests

    summary = run(
        policy=policy.path,
        reward_model=reward_model.path,
        dataset=dataset.path,
        pairs=pairs.path if pairs else "",
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
