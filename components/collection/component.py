"""KFP shell of the collection stage."""

from kfp import dsl

from components.shared.images import TRAIN_IMAGE

__all__ = ["collection"]


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def collection(
    policy: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    pairs: dsl.Output[dsl.Dataset],
    preference_data: str,
    data_digest: str,
    plug_in_digest: str,
    seed: int,
    settings: dict,
    code_digest: str,
    base_model_digest: str = "",
):
    """Collects preference pairs: the user's own, or sampled from the policy and judged by plug-in raters.

    Args:
        policy: Supervised fine-tuned policy to sample answers from.
        dataset: Validated dataset; answers are sampled for its training prompts.
        pairs: Raw preference pairs with their provenance, not yet validated or split.
        preference_data: File, folder or address of the user's preference data; empty when raters judge.
        data_digest: Digest of the preference data; a change of the data is a change of the cache key.
        plug_in_digest: Digest of the raters' source; a change of it is a change of the cache key.
        seed: Seed of sampling and raters.
        settings: Settings of the stage (CollectionSettings).
        code_digest: Digest of the stage's code; a change of the code is a change of the cache key.
        base_model_digest: Digest of the base model, as recorded with the data's; empty: the data is not compared.
    """
    from components.collection.stage import run

    pairs.metadata.update(
        run(
            policy=policy.path,
            dataset=dataset.path,
            output=pairs.path,
            preference_data=preference_data,
            seed=seed,
            settings=settings,
            data_digest=data_digest,
            base_model_digest=base_model_digest,
        )
    )
