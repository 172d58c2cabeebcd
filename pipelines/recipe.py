"""What a run makes of its data: a digest of every setting that decides its result, of the code, and of the images.

Retraining compares it with that of the last run, as it compares the data: a changed settings file, policy, image or
version of the code is as new as a changed row. Data and base model are compared by content, and where a run happens
decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.release_gate.policy import load_policy_file
from components.shared.code_version import code_version
from components.shared.files import digest_of
from components.shared.images import LIGHT_IMAGE, TRAIN_IMAGE
from pipelines.placement import Place, load_profile
from pipelines.settings import RunSettings

__all__ = ["overridden", "recipe_of"]

_COMPARED_BY_CONTENT = {"base_model", "sft_data", "prompt_data", "preference_data", "gate_policy", "plug_ins"}
_DECIDES_NOTHING = {"model_name", "prerequisites_settings", "requested_by"}
_STAGES = ("data_validation", "sft", "collection", "reward_model", "evaluation", "human_eval", "release_gate")


def recipe_of(settings: RunSettings, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Digests by name: of a pipeline's parameters, of `gate_policy`, `code` and `images`.

    Args:
        settings: The run.
        arguments: The pipeline's parameters for it.
    """
    compared = {name: value for name, value in arguments.items() if name not in _COMPARED_BY_CONTENT | _DECIDES_NOTHING}
    return {
        **{name: digest_of(value) for name, value in compared.items()},
        "gate_policy": load_policy_file(settings.release_gate.policy).digest,
        "code": digest_of({stage: code_version(stage) for stage in (*_STAGES, settings.optimizer)}),
        "images": digest_of(_images(settings)),
    }


def overridden(recipe: Mapping[str, str], parameters: Mapping[str, Any]) -> dict[str, str]:
    """The recipe of a run that is given other parameters than its settings say.

    Args:
        recipe: By the settings.
        parameters: What is given in place of them.
    """
    return {**recipe, **{name: digest_of(value) for name, value in parameters.items() if name in recipe}}


def _images(settings: RunSettings) -> dict[str, str]:
    profile, execution = load_profile(settings.execution.profile), settings.execution
    light = profile.resources("light", execution.light)
    train = profile.resources("train", execution.train)
    kinds: list[tuple[str, Place, str]] = [("light", light, LIGHT_IMAGE), ("train", train, TRAIN_IMAGE)]
    named = {kind: place.resources.image or own for kind, place, own in kinds}
    return named | {step: found.image for step, found in profile.steps.items() if found.image}
