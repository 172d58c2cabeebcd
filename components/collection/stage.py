"""Collection: the preference pairs that the reward model learns from.

Either the user's own pairs, passed through, or pairs of answers sampled from the SFT policy to the dataset's training
prompts and judged by raters that the user plugs in. Nothing is validated or split here. The `pairs` artifact goes to a
second task of the data_validation component, which treats both the same way, so that no pair reaches training
unchecked:

    pairs.jsonl       source "raters": one PreferenceRecord a line
    user/*            source "dataset": the user's files, byte for byte; or `user/source.json` {"uri": ...}
    provenance.json   {"source", "policy", "dataset", ...}: where the pairs come from and what the sampling cost

Exactly one of `pairs.jsonl` and `user/` is there.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from components.collection.judging import judge_pairs, load_rater
from components.collection.sampling import SamplingCounts, draw_pairs
from components.collection.settings import CollectionSettings
from components.collection.user_data import pass_through
from components.shared.artifacts import Artifact, Draft, read_artifact, write_artifact
from components.shared.errors import InputError
from components.shared.files import write_json
from components.shared.locations import require_as_recorded
from components.shared.records import PreferenceRecord, PromptRecord, read_records, write_records
from components.shared.settings import parse_settings
from components.shared.tracking import stage_run

__all__ = ["PAIRS_FILE", "PROVENANCE_FILE", "USER_FOLDER", "run"]

PAIRS_FILE = "pairs.jsonl"
PROVENANCE_FILE = "provenance.json"
USER_FOLDER = "user"

logger = logging.getLogger(__name__)


def run(
    *,
    policy: str,
    dataset: str,
    output: str,
    preference_data: str,
    seed: int,
    settings: dict[str, Any],
    data_digest: str = "",
    base_model_digest: str = "",
) -> dict[str, Any]:
    """Writes a `pairs` artifact.

    Args:
        policy: `policy` artifact to sample from.
        dataset: `dataset` artifact with the training prompts.
        output: Where the artifact shall be.
        preference_data: The user's preference data, for source "dataset"; else ignored.
        seed: Of prompts' order, sampling and raters.
        settings: A `CollectionSettings` as a dict.
        data_digest: Digest of the preference data, as the first step of the run recorded it.
        base_model_digest: Digest of the base model, recorded with it. Empty: the data is not compared.

    Returns:
        Digest, source, and the number of pairs (None when they were passed through uncounted).

    Raises:
        InputError: No preference data, or other than was recorded, no prompts, a faulty plug-in, or not one pair of
            differing answers.
    """
    parsed = parse_settings(settings, CollectionSettings, where="collection")
    policy_artifact = read_artifact(policy, "policy")
    dataset_artifact = read_artifact(dataset, "dataset")
    inputs = {"policy": policy_artifact.digest, "dataset": dataset_artifact.digest}
    provenance: dict[str, Any] = {"source": parsed.source, **inputs, "seed": seed}
    with (
        stage_run("collection", settings=parsed.model_dump(mode="json"), seed=seed) as tracked,
        write_artifact(
            output, "pairs", inputs=inputs, settings=parsed.model_dump(mode="json"), stage="collection"
        ) as draft,
    ):
        if parsed.source == "dataset":
            provenance.update(_from_user(preference_data, draft))
            require_as_recorded([preference_data], data_digest, base_model_digest)  # after the copy: what was copied
        else:
            provenance.update(_from_raters(policy_artifact, dataset_artifact, draft, seed, parsed))
            tracked.log_metrics({name: float(provenance[name]) for name in ("pairs", "answers", "pairs_given_up")})
        write_json(draft.path / PROVENANCE_FILE, provenance)
        draft.metadata["provenance"] = provenance
    return {
        "digest": read_artifact(output, "pairs").digest,
        "source": parsed.source,
        "pairs": provenance.get("pairs"),
    }


def _from_user(preference_data: str, draft: Draft) -> dict[str, Any]:
    if not preference_data:
        raise InputError(
            "no preference data is given.",
            where="collection.source: dataset",
            hint="Name the preference file, or set collection.source to 'raters'.",
        )
    return pass_through(preference_data, draft.path / USER_FOLDER)


def _from_raters(
    policy: Artifact, dataset: Artifact, draft: Draft, seed: int, settings: CollectionSettings
) -> dict[str, Any]:
    """Samples, judges and writes the pairs; returns the provenance."""
    from components.collection.policy_sampler import policy_sampler  # torch: not for pairs that are passed through

    prompts_file = dataset.file("prompts/train.jsonl")
    prompts = list(read_records(prompts_file, PromptRecord))
    if not prompts:
        raise InputError("holds no prompt to sample answers for.", where=str(prompts_file))
    plug_in = str(settings.raters)
    rater = load_rater(plug_in, seed=seed)
    pairs, counts = draw_pairs(
        prompts,
        pairs=settings.pairs,
        samples_per_prompt=settings.samples_per_prompt,
        resample_rounds=settings.resample_rounds,
        sample=policy_sampler(policy.path, seed, settings),
        rng=random.Random(seed),
    )
    if not pairs:
        raise InputError(
            "the policy gave the same answer every time, so there is nothing to prefer.",
            where="collection",
            hint="Raise collection.temperature or collection.samples_per_prompt.",
        )
    _warn_of_shortage(counts, settings)
    shared = {"policy": policy.digest, "temperature": settings.temperature, "raters": plug_in}
    records = judge_pairs(pairs, rater, where=plug_in, provenance=shared)
    write_records(draft.path / PAIRS_FILE, records)
    return _provenance(records, prompts, counts, settings)


def _warn_of_shortage(counts: SamplingCounts, settings: CollectionSettings) -> None:
    if counts.pairs_given_up:
        logger.warning(
            "%d of %d pairs were given up: after %d rounds of sampling the answers to their prompts still read alike.",
            counts.pairs_given_up,
            settings.pairs,
            settings.resample_rounds + 1,
        )


def _provenance(
    records: Sequence[PreferenceRecord],
    prompts: Sequence[PromptRecord],
    counts: SamplingCounts,
    settings: CollectionSettings,
) -> dict[str, Any]:
    return {
        "raters": settings.raters,
        "temperature": settings.temperature,
        "max_response_tokens": settings.max_response_tokens,
        "samples_per_prompt": settings.samples_per_prompt,
        "pairs_wanted": settings.pairs,
        "pairs": len(records),
        "prompts": len(prompts),
        **counts.as_dict(),
        "pairs_by_rater": dict(sorted(Counter(str(record.rater) for record in records).items())),
        "pairs_by_slice": dict(sorted(Counter(record.slice for record in records).items())),
    }
