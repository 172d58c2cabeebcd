"""First step of a retraining run: is there anything new since the last run that ended well?

New is data or a base model of other content, and a changed recipe: settings, gate policy, code, images, plug-ins. What
a run was trained on, and by which recipe, stands in tags of its MLflow run, written by the prerequisites step. A run
that failed, was killed, or found nothing new does not count: the next one compares with the run before it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from components.shared.hub_models import model_digest
from components.shared.locations import data_digest
from components.shared.plugins import plug_in_digest
from components.shared.tracking import last_successful_run, stage_run

__all__ = ["input_digests", "inputs_tags", "run"]

_MODEL_TAG = "plumbline.trained_model"
_DIGEST_TAG = "plumbline.input."
_RUN_TAG = "plumbline.run_id"

logger = logging.getLogger(__name__)


def input_digests(
    base_model: str, data: Mapping[str, str], recipe: Mapping[str, str] | None = None, plug_ins: Sequence[str] = ()
) -> dict[str, str]:
    """Digest of every input of a training run, by name; empty addresses have one too.

    Args:
        base_model: Model folder or hub id.
        data: Address of each data source by name.
        recipe: Digest of each setting, of code and images, by name (`pipelines.recipe`).
        plug_ins: `module:attribute` names whose source counts too: raters, panels, rules of reward.

    Raises:
        InputError: Something is not there.
    """
    return {
        "base_model": model_digest(base_model),
        **{name: data_digest(uri) for name, uri in data.items()},
        **(recipe or {}),
        "plug_ins": plug_in_digest(plug_ins),
    }


def inputs_tags(model_name: str, digests: Mapping[str, str]) -> dict[str, str]:
    """What a run is trained on, as tags of its MLflow run."""
    return {_MODEL_TAG: model_name, **{f"{_DIGEST_TAG}{name}": digest for name, digest in digests.items()}}


def run(
    *,
    base_model: str,
    data: Mapping[str, str],
    model_name: str,
    force: bool,
    recipe: Mapping[str, str] | None = None,
    plug_ins: Sequence[str] = (),
) -> dict[str, object]:
    """Compares the inputs with those of the model's last training run that ended well.

    Args:
        base_model: Model folder or hub id.
        data: Address of each data source by name.
        recipe: As for `input_digests`.
        plug_ins: As for `input_digests`.
        model_name: Registered model.
        force: Train whatever is found.

    Returns:
        `changed`: whether to train; `reason`: why or why not, in words.

    Raises:
        InputError: Data or base model is not there.
        PlumblineError: MLflow, which remembers the earlier runs, does not answer.
    """
    with stage_run("new_data", settings={"model_name": model_name, "force": force}) as tracked:
        digests = input_digests(base_model, data, recipe, plug_ins)
        last = last_successful_run(_MODEL_TAG, model_name)
        if last is None:
            changed, reason = True, "no run before this one has ended well"
        else:
            earlier = last.get(_RUN_TAG, "an earlier run")
            differing = [name for name, digest in digests.items() if last.get(f"{_DIGEST_TAG}{name}") != digest]
            changed = bool(differing) or force
            if differing:
                reason = f"changed since {earlier}: {', '.join(differing)}"
            else:
                reason = f"nothing is new since {earlier}" + (", trained all the same, as asked" if force else "")
        logger.info("%s: %s", model_name, reason)
        tracked.set_tags({"plumbline.new_data": reason})
        return {"changed": changed, "reason": reason}
