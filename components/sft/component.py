"""Kubeflow component of supervised fine-tuning."""

from kfp import dsl

from components.shared.images import TRAIN_IMAGE

__all__ = ["sft"]


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def sft(
    data: dsl.Input[dsl.Dataset],
    policy: dsl.Output[dsl.Model],
    base_model: str,
    base_model_digest: str,
    seed: int,
    settings: dict,
    code_digest: str,
):
    """Fine-tunes a base model on the demonstrations; the result is the policy that all later stages start from.

    Args:
        data: Validated data with demonstrations (`sft/train.jsonl`, `sft/heldout.jsonl`).
        policy: The fine-tuned policy: full weights, tokenizer, training history, held-out loss.
        base_model: Folder of a causal language model, or its hub id.
        base_model_digest: Digest of the folder's files, so that the cache sees a change of them.
        seed: Seed of every random choice.
        settings: Settings of the stage; see components/sft/settings.py.
        code_digest: Digest of the stage's code, so that the cache sees a change of it.
    """
    from components.sft.stage import run

    policy.metadata.update(
        run(dataset=data.path, output=policy.path, base_model=base_model, seed=seed, settings=settings)
    )
