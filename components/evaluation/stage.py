"""Evaluation: what the candidate, its checkpoints, the reference and the champion answer, measured by one yardstick.

Every role answers held-out prompts and the human-evaluation prompts with its own tokenizer and a seed of its own. Both
reward models score every answer, KL to the reference is measured again by full forward passes, and the texts are
searched for refusals, repetition and sameness. The answers to the human-evaluation prompts are what people then judge
blind.

In soak `candidate` is the live champion and `reference` its predecessor, both fetched from the registry by URI and
digest, and the prompts are fresh ones (`settings.prompts: {fresh: n}`). KL is then measured against `kl_reference`, the
SFT policy, if that is given; the predecessor is no policy that the champion was held close to, so without an SFT policy
KL is null.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from components.evaluation.answers import AnswerRow, answer_prompts, load_reference, load_scorer
from components.evaluation.roles import CANDIDATE, REFERENCE, PolicySource, Role, find_roles
from components.evaluation.settings import EvaluationSettings
from components.evaluation.summary import flat_figures, summarise
from components.shared.artifacts import Artifact, read_artifact, write_artifact
from components.shared.errors import InputError
from components.shared.files import write_json, write_jsonl
from components.shared.records import PromptRecord, read_records, stable_order
from components.shared.settings import parse_settings
from components.shared.tracking import stage_run

__all__ = ["run", "select_prompts"]

logger = logging.getLogger(__name__)


def run(
    *,
    reference: str = "",
    candidate: str = "",
    checkpoints: str = "",
    reward_model: str,
    heldout_reward_model: str,
    dataset: str,
    output: str,
    champion_uri: str = "",
    champion_digest: str = "",
    reference_uri: str = "",
    reference_digest: str = "",
    candidate_uri: str = "",
    candidate_digest: str = "",
    kl_reference: str = "",
    seed: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Writes an `evaluation` artifact.

    Args:
        reference: `policy` artifact that the others are compared with; or give `reference_uri` and `reference_digest`.
            By default `kl_reference`: in soak the first champion has no predecessor.
        candidate: `policy` artifact under test; or give `candidate_uri` and `candidate_digest`.
        checkpoints: `policy_checkpoints` artifact; empty for none.
        reward_model: `reward_model` artifact that PPO optimised.
        heldout_reward_model: `reward_model` artifact that was never optimised.
        dataset: `dataset` artifact with the prompts.
        output: Where the artifact shall be.
        champion_uri: The champion in the registry; empty if there is none.
        champion_digest: Its digest.
        reference_uri: The reference in the registry (soak).
        reference_digest: Its digest.
        candidate_uri: The candidate in the registry (soak).
        candidate_digest: Its digest.
        kl_reference: `policy` artifact that KL is measured against; by default `reference` where that is an artifact.
        seed: Seed of the run.
        settings: An `EvaluationSettings` as a dict.

    Returns:
        Digest, roles, and the candidate's overall figures.

    Raises:
        InputError: A role that is not given, or a prompt set that is missing or empty.
        ArtifactError: An input that is damaged or of another kind.
    """
    parsed = parse_settings(settings, EvaluationSettings, where="evaluation")
    if not (reference or reference_uri):
        reference = kl_reference
    inputs = {
        "reward_model": read_artifact(reward_model, "reward_model"),
        "heldout_reward_model": read_artifact(heldout_reward_model, "reward_model"),
        "dataset": read_artifact(dataset, "dataset"),
    }
    if kl_reference or reference:
        inputs["kl_reference"] = read_artifact(kl_reference or reference, "policy")
    prompts = select_prompts(inputs["dataset"], parsed)
    with (
        tempfile.TemporaryDirectory(prefix="evaluation-") as downloads,
        stage_run("evaluation", settings=parsed.model_dump(mode="json"), seed=seed) as tracked,
    ):
        roles = find_roles(
            reference=PolicySource(reference, reference_uri, reference_digest),
            candidate=PolicySource(candidate, candidate_uri, candidate_digest),
            champion=PolicySource(uri=champion_uri, digest=champion_digest),
            checkpoints=checkpoints,
            max_checkpoints=parsed.max_checkpoints,
            downloads=Path(downloads),
        )
        rows = _answers_by_role(roles, prompts, inputs, seed, parsed)
        summaries = {role.name: summarise(rows[role.name], parsed) for role in roles}
        digest = _write(output, roles, rows, summaries, inputs, parsed)
        _track(tracked, roles, summaries)
        tracked.log_artifact(Path(output) / "metrics.json")
    candidate_figures = {f"{CANDIDATE}_{name}": value for name, value in flat_figures(summaries[CANDIDATE]).items()}
    return {"digest": digest, "roles": [role.name for role in roles], **candidate_figures}


def select_prompts(dataset: Artifact, settings: EvaluationSettings) -> dict[str, list[PromptRecord]]:
    """The prompts of each set that the settings name.

    In `stable_order`: every run asks the same prompts, and human_eval asks about the ones that were answered.

    Raises:
        InputError: The dataset lacks a set, or it is empty.
    """
    selected: dict[str, list[PromptRecord]] = {}
    for name, count in settings.prompts.items():
        file = dataset.file(f"prompts/{name}.jsonl")
        records = stable_order(read_records(file, PromptRecord))
        if not records:
            raise InputError(f"prompt set {name!r} is empty.", where=str(file), hint="Change evaluation.prompts.")
        if len(records) < count:
            logger.warning("Prompt set %r has %d prompts, %d were asked for.", name, len(records), count)
        selected[name] = records[:count]
    return selected


def _answers_by_role(
    roles: list[Role],
    prompts: dict[str, list[PromptRecord]],
    inputs: dict[str, Artifact],
    seed: int,
    settings: EvaluationSettings,
) -> dict[str, list[AnswerRow]]:
    """Loads the models that score once, and one policy after the other."""
    reward_model, heldout_reward_model = (
        load_scorer(inputs[name].path) for name in ("reward_model", "heldout_reward_model")
    )
    anchor = inputs.get("kl_reference")
    kl_reference = load_reference(anchor.path, anchor.digest) if anchor else None
    adapter_base = next(role.folder for role in roles if role.name == REFERENCE)
    few = {
        name: records[: settings.checkpoint_prompts]
        for name, records in prompts.items()
        if name == settings.checkpoint_set
    }
    return {
        role.name: answer_prompts(
            role,
            few if role.is_checkpoint else prompts,
            kl_reference=kl_reference,
            reward_model=reward_model,
            heldout_reward_model=heldout_reward_model,
            adapter_base=adapter_base,
            seed=seed,
            settings=settings,
        )
        for role in roles
    }


def _write(
    output: str,
    roles: list[Role],
    rows: dict[str, list[AnswerRow]],
    summaries: dict[str, dict[str, Any]],
    inputs: dict[str, Artifact],
    settings: EvaluationSettings,
) -> str:
    """Writes the artifact and returns its digest."""
    digests = {name: artifact.digest for name, artifact in inputs.items()} | {role.name: role.digest for role in roles}
    recorded = settings.model_dump(mode="json")
    with write_artifact(output, "evaluation", inputs=digests, settings=recorded, stage="evaluation") as draft:
        write_json(draft.path / "models.json", {role.name: role.as_json() for role in roles})
        write_json(draft.path / "metrics.json", summaries)
        write_jsonl(draft.path / "generations.jsonl", (row.as_json() for role in roles for row in rows[role.name]))
    return read_artifact(output, "evaluation").digest


def _track(tracked: Any, roles: list[Role], summaries: dict[str, dict[str, Any]]) -> None:
    """Logs each role's figures; the checkpoints' as a curve over training steps."""
    for role in roles:
        figures = flat_figures(summaries[role.name])
        if role.is_checkpoint:
            tracked.log_metrics({f"checkpoint/{name}": value for name, value in figures.items()}, step=role.step)
        else:
            tracked.log_metrics({f"{role.name}/{name}": value for name, value in figures.items()})
