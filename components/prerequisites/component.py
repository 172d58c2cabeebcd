"""Kubeflow component of the prerequisites step."""

from typing import NamedTuple

from kfp import dsl

from components.shared.images import LIGHT_IMAGE

__all__ = ["new_data", "prerequisites"]


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def prerequisites(
    base_model: str,
    sft_data: str,
    prompt_data: str,
    preference_data: str,
    model_name: str,
    plug_ins: list,
    settings: dict,
    reward_rules: list = [],  # noqa: B006 - KFP reads the default, nothing writes to it
    reward_models: list = [],  # noqa: B006
    recipe: dict = {},  # noqa: B006
    human_eval_settings: dict = {},  # noqa: B006
    collection_settings: dict = {},  # noqa: B006
) -> NamedTuple(
    "Outputs",
    [
        ("champion_version", str),
        ("champion_digest", str),
        ("champion_uri", str),
        ("data_digest", str),
        ("preference_digest", str),
        ("base_model", str),
        ("base_model_digest", str),
        ("plug_in_digest", str),
        ("reward_digest", str),
    ],
):  # type: ignore[valid-type]
    """Checks data, models, disk, device, plug-ins, MLflow, database; pins champion, data, models and rules to digests.

    Args:
        base_model: Model folder or hub id that training starts from.
        sft_data: Demonstrations.
        prompt_data: Prompts.
        preference_data: Preference pairs; empty when they are collected by this run.
        model_name: Registered model whose champion the candidate is compared with.
        plug_ins: `module:attribute` names that later steps load.
        settings: PrerequisitesSettings.
        reward_rules: `module:function` names of rules that PPO is paid by.
        reward_models: Addresses of reward models that PPO is paid by, beside the one that the run trains.
        recipe: Digest of each setting, of code and images, by name: a retraining run compares them.
        human_eval_settings: HumanEvalSettings; the items by which raters are checked must be there.
        collection_settings: CollectionSettings; the plug-in that judges pairs is pinned for collection.

    Returns:
        Version, digest and URI of the champion, empty when there is none yet; the base model, on the hub by its commit,
        so that later steps load what this one saw; digests of the data, the preference
        pairs, the base model, the source of the plug-in that collection loads, and the further rewards (models and
        rules' source), so that the cache of a later step sees a change of what lies behind a path or a name that it
        uses, and of no other.
    """
    from collections import namedtuple

    from components.prerequisites.stage import run

    data = {"sft": sft_data, "prompts": prompt_data, "preferences": preference_data}
    found = run(
        base_model=base_model,
        data=data,
        model_name=model_name,
        plug_ins=plug_ins,
        reward_rules=reward_rules,
        reward_models=reward_models,
        recipe=recipe,
        human_eval=human_eval_settings,
        collection=collection_settings,
        settings=settings,
    )
    return namedtuple("Outputs", list(found))(**found)


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def new_data(
    base_model: str,
    sft_data: str,
    prompt_data: str,
    preference_data: str,
    model_name: str,
    force: bool,
    recipe: dict = {},  # noqa: B006 - KFP reads the default, nothing writes to it
    plug_ins: list = [],  # noqa: B006
    reward_rules: list = [],  # noqa: B006
) -> NamedTuple("Outputs", [("changed", bool), ("reason", str)]):  # type: ignore[valid-type]
    """Compares data, base model, settings and code with those of the model's last training run that ended well.

    Args:
        base_model: Model folder or hub id that training starts from.
        sft_data: Demonstrations.
        prompt_data: Prompts.
        preference_data: Preference pairs; empty when they are collected by the run.
        model_name: Registered model.
        force: Train whatever is found.
        recipe: Digest of each setting, of code and images, by name.
        plug_ins: `module:attribute` names that steps load; a change of their source is new.
        reward_rules: `module:function` names of rules that PPO is paid by; the same.

    Returns:
        Whether there is anything new, and what, in words.
    """
    from collections import namedtuple

    from components.prerequisites.new_data import run

    data = {"sft": sft_data, "prompts": prompt_data, "preferences": preference_data}
    found = run(
        base_model=base_model,
        data=data,
        model_name=model_name,
        force=force,
        recipe=recipe,
        plug_ins=[*plug_ins, *reward_rules],
    )
    return namedtuple("Outputs", list(found))(**found)
