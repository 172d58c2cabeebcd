"""KFP shells of the data_validation stage: judge data; judge early what is judged again later."""

from kfp import dsl

from components.shared.images import LIGHT_IMAGE

__all__ = ["data_validation", "preference_check"]


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def data_validation(
    dataset: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    base_model: str,
    settings: dict,
    data_digest: str,
    code_digest: str,
    sft_data: str = "",
    prompt_data: str = "",
    preference_data: str = "",
    pairs: dsl.Input[dsl.Dataset] | None = None,
    prompts_dataset: dsl.Input[dsl.Dataset] | None = None,
    base_model_digest: str = "",
):
    """Judges every row with Great Expectations and own checks, sets bad rows aside with reasons, and splits the rest.

    Args:
        dataset: Validated data in splits, with quarantine and report.
        report: The data report, one self-contained page.
        base_model: Folder or hub id of the model whose tokenizer counts tokens.
        settings: Settings of the stage (DataValidationSettings).
        data_digest: Digest of the data; a change of the data is a change of the cache key.
        code_digest: Digest of the stage's code; a change of the code is a change of the cache key.
        sft_data: File, folder or address of demonstrations; empty for none.
        prompt_data: File, folder or address of prompts; empty for none.
        preference_data: File, folder or address of preference pairs; empty for none.
        pairs: Preference pairs from collection, instead of preference_data.
        prompts_dataset: Earlier validated data, whose held-out prompts must not train.
        base_model_digest: Digest of the base model, as recorded with the data's; empty: the data is not compared.
    """
    import shutil

    from components.data_validation.stage import run

    dataset.metadata.update(
        run(
            output=dataset.path,
            base_model=base_model,
            settings=settings,
            sft_data=sft_data,
            prompt_data=prompt_data,
            preferences=pairs.path if pairs else preference_data,
            prompts_dataset=prompts_dataset.path if prompts_dataset else "",
            data_digest=data_digest,
            base_model_digest=base_model_digest,
        )
    )
    shutil.copyfile(f"{dataset.path}/report.html", report.path)


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def preference_check(
    dataset: dsl.Input[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    base_model: str,
    settings: dict,
    collection_settings: dict,
    data_digest: str,
    code_digest: str,
    preference_data: str = "",
    base_model_digest: str = "",
) -> int:
    """Judges the user's preference pairs as the task after collection will, before anything is trained.

    Args:
        dataset: Validated demonstrations and prompts, whose held-out prompts the pairs must not hold.
        report: The data report; where the run collects its pairs itself, that there is nothing to judge yet.
        base_model: Folder or hub id of the model whose tokenizer counts tokens.
        settings: Settings of the stage (DataValidationSettings).
        collection_settings: CollectionSettings: whether the pairs are the user's.
        data_digest: Digest of the pairs; a change of the data is a change of the cache key.
        code_digest: Digest of the stage's code; a change of the code is a change of the cache key.
        preference_data: File, folder or address of preference pairs; empty for none.
        base_model_digest: Digest of the base model, as recorded with the data's; empty: the data is not compared.

    Returns:
        How many rows were judged.
    """
    from components.data_validation.stage import check_preferences

    return check_preferences(
        report=report.path,
        dataset=dataset.path,
        base_model=base_model,
        settings=settings,
        source=collection_settings.get("source", "dataset"),
        preference_data=preference_data,
        data_digest=data_digest,
        base_model_digest=base_model_digest,
    )
