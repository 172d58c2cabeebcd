"""First step of a run: says in plain words what is missing before a GPU hour is spent, and pins what the run rests on.

Every later step uses the champion's digest and not the alias, so that a promotion in the middle of the run cannot
change what it is compared with.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from components.prerequisites.checks import (
    check_base_model,
    check_checkpoints,
    check_data,
    check_database,
    check_gold_items,
    check_gpu,
    check_ledger_anchor,
    check_plug_in,
    check_reward_model,
    check_tracking,
)
from components.prerequisites.new_data import input_digests, inputs_tags
from components.prerequisites.settings import PrerequisitesSettings
from components.shared.artifact_sources import artifact_digest
from components.shared.champion import resolve_champion
from components.shared.errors import PlumblineError
from components.shared.files import digest_of
from components.shared.hub_models import pinned_model
from components.shared.locations import recorded_digest
from components.shared.plugins import plug_in_digest
from components.shared.settings import parse_settings
from components.shared.tracking import stage_run, tag_pipeline_run

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(
    *,
    base_model: str,
    data: Mapping[str, str],
    model_name: str,
    plug_ins: Sequence[str],
    settings: dict,
    reward_rules: Sequence[str] = (),
    reward_models: Sequence[str] = (),
    recipe: Mapping[str, str] | None = None,
    human_eval: Mapping[str, Any] | None = None,
    collection: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Checks everything, then pins what later steps depend on.

    Args:
        base_model: Model folder or hub id.
        data: URI of each data source by name; empty ones are not used by this run.
        model_name: The registered model.
        plug_ins: `module:attribute` names that later steps load.
        settings: `PrerequisitesSettings`.
        reward_rules: `module:function` names of rules that PPO is paid by.
        reward_models: Addresses of reward models that PPO is paid by, beside the one that the run trains.
        recipe: Digest of each setting, of code and images, by name: retraining compares them.
        human_eval: HumanEvalSettings; the items by which raters are checked are looked at.
        collection: CollectionSettings; the plug-in that judges pairs is pinned.

    Returns:
        `champion_version`, `champion_digest`, `champion_uri` (empty when there is none yet), `base_model` (a hub
        model by its commit), `base_model_digest`,
        `data_digest` (demonstrations and prompts) and `preference_digest`; the last two take in the base model, whose
        tokens validation counts. `plug_in_digest`: of the source of the plug-in that collection loads.
        `reward_digest`: of the further reward models and the rules' source. Each is for the step that uses it, so that
        an edited rule or panel asks no rater again.

    Raises:
        PlumblineError: All that is missing, one fault a line.
    """
    with stage_run("prerequisites", settings=settings):
        parsed = parse_settings(settings, PrerequisitesSettings, where="prerequisites settings")
        sources = [partial(check_data, name, uri) for name, uri in data.items() if uri]
        _run_all(
            *sources,
            partial(check_base_model, base_model),
            partial(check_checkpoints, os.environ.get("PLUMBLINE_CHECKPOINTS", ""), parsed.min_free_disk_gib),
            partial(check_gpu, parsed.require_gpu),
            *(partial(check_plug_in, reference) for reference in (*plug_ins, *reward_rules)),
            *(partial(check_reward_model, uri) for uri in reward_models),
            *_gold_items(human_eval or {}),
            check_tracking,
            check_database,
            check_ledger_anchor,
        )
        champion = resolve_champion(model_name)
        logger.info("champion of %s: %s", model_name, f"version {champion.version}" if champion else "none yet")
        pinned = pinned_model(base_model)
        inputs = input_digests(pinned, data, recipe, [*plug_ins, *reward_rules])
        tag_pipeline_run(inputs_tags(model_name, inputs))
        base = inputs["base_model"]
        return {
            "champion_version": champion.version if champion else "",
            "champion_digest": champion.digest if champion else "",
            "champion_uri": champion.uri if champion else "",
            "data_digest": recorded_digest([inputs["sft"], inputs["prompts"]], base),
            "preference_digest": recorded_digest([inputs["preferences"]], base),
            "base_model": pinned,
            "base_model_digest": base,
            "plug_in_digest": plug_in_digest(_raters(collection or {})),
            "reward_digest": _reward_digest(reward_rules, reward_models),
        }


def _raters(collection: Mapping[str, Any]) -> list[str]:
    """The plug-in that collection loads, if it does."""
    raters = collection.get("raters")
    return [raters] if raters and collection.get("source") == "raters" else []


def _gold_items(human_eval: Mapping[str, Any]) -> list[Callable[[], str]]:
    uri, used = human_eval.get("gold_data"), human_eval.get("gold_items")
    return [partial(check_gold_items, str(uri), int(human_eval["gold_min_count"]))] if uri and used else []


def _reward_digest(rules: Sequence[str], models: Sequence[str]) -> str:
    return digest_of([plug_in_digest(rules), {uri: artifact_digest(uri, "reward_model") for uri in models}])


def _run_all(*checks: Callable[[], str]) -> None:
    """Runs every check before it fails, so that a person mends everything at once."""
    faults = []
    for check in checks:
        try:
            logger.info("ok    %s", check())
        except PlumblineError as error:
            logger.error("FAIL  %s", error)
            faults.append(str(error))
    if len(faults) == 1:
        raise PlumblineError(faults[0], where="1 prerequisite missing")
    if faults:  # each with its own remedy, on a line of its own
        lines = "".join(f"\n  {number}. {fault}" for number, fault in enumerate(faults, start=1))
        raise PlumblineError(lines, where=f"{len(faults)} prerequisites missing")
