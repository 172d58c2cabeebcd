"""Human evaluation: blind pairs from the evaluation's answers, judged, and what the judgements show.

    evaluation > batch of blind pairs > evidence database > judgements > statistics > `human_evidence`

With people as raters the step only opens the batch and reports what is there so far (`complete` is false until every
pair has its votes, or the stopping rule has closed the batch); run again later, it finds the same batch with the votes
that have come in. Where its inputs lie goes into the artifact's manifest, so that a later release run finds them again.
A plugged-in panel judges at once, and its votes are marked as simulated or AI. What is complete is closed, so that
nobody changes a vote that the gate has seen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from components.human_eval.batch import Batch, GoldPair, Item, assign, build_batch
from components.human_eval.database import EvidenceDatabase, Judgement, judgement_id, open_database
from components.human_eval.evidence import Evidence, weigh_evidence
from components.human_eval.gold_items import demonstration_gold_pairs, given_gold_pairs, gold_prompts
from components.human_eval.imports import find_imports, tell_imports
from components.human_eval.panel import RaterPanel, judge_assignments, load_panel, panel_gold_pairs
from components.human_eval.settings import PEOPLE, HumanEvalSettings
from components.human_eval.stopping import why_stopped_early
from components.shared.artifacts import Artifact, read_artifact, write_artifact
from components.shared.errors import InputError
from components.shared.files import write_json, write_jsonl
from components.shared.settings import parse_settings
from components.shared.tracking import StageRun, stage_run

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(
    *,
    evaluation: str,
    dataset: str,
    output: str,
    seed: int,
    settings: dict[str, Any],
    locations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Writes a `human_evidence` artifact.

    Args:
        evaluation: `evaluation` artifact.
        dataset: `dataset` artifact that its prompts come from.
        output: Where the artifact shall be.
        seed: Seed of the raters' turns and of the bootstrap.
        settings: A `HumanEvalSettings` as a dict.
        locations: Addresses of `evaluation` and `dataset`, under which a later run finds them; their folders if None.

    Returns:
        `complete`, `batch_id`, `digest`, and of candidate against reference `win_rate`, `lower`, `upper`, `n_prompts`,
        `n_votes`.

    Raises:
        InputError: Settings, the panel or the database cannot be used.
        ArtifactError: An input is damaged, of another kind, or does not fit the other one.
        PlumblineError: The database failed.
    """
    parsed = parse_settings(settings, HumanEvalSettings, where="human_eval")
    answers = read_artifact(evaluation, "evaluation")
    data = read_artifact(dataset, "dataset")
    with stage_run("human_eval", settings=parsed.model_dump(mode="json"), seed=seed) as tracked:
        panel = None if parsed.panel == PEOPLE else load_panel(parsed.panel, seed=seed)
        batch = build_batch(answers, data, parsed, seed, _gold_pairs(panel, data, parsed))
        database = open_database()
        database.open_batch(batch)
        if panel is not None:
            _judge_what_is_open(panel, batch, database)
        judgements = database.judgements(batch.batch_id)
        stopped_early = why_stopped_early(database, batch.batch_id)
        evidence = weigh_evidence(batch, judgements, seed=seed, stopped_early=stopped_early)
        imports = find_imports(database, batch.batch_id)
        evidence.statistics["imports"] = tell_imports(imports, judgements)
        _close_if_settled(database, batch, evidence)
        about = {
            "seed": seed,
            "locations": dict(locations or {"evaluation": evaluation, "dataset": dataset}),
            "panel": parsed.panel,
            "deadline": database.deadline(batch.batch_id).isoformat(),
            "closed": database.closure(batch.batch_id) is not None,
        }
        importers = {name: found.actor for name, found in imports.items()}
        digest = _write(output, batch, judgements, evidence, importers, about)
        result = {"digest": digest, **_headline(evidence)}
        _track(tracked, evidence)
    if not result["complete"]:
        logger.warning("Batch %s awaits evidence: not every pair has its votes yet.", batch.batch_id)
    return result


def _gold_pairs(panel: RaterPanel | None, data: Artifact, settings: HumanEvalSettings) -> list[GoldPair]:
    if not settings.gold_items:
        return []
    if settings.gold_data:
        given = given_gold_pairs(settings.gold_data, settings.gold_items)
        if len(given) < settings.gold_min_count:
            raise InputError(
                f"{len(given)} gold items, but gold_min_count is {settings.gold_min_count}: no vote could ever count.",
                where=settings.gold_data,
            )
        return given
    if panel is not None:
        offered = panel_gold_pairs(panel, gold_prompts(data), settings.gold_items, where=settings.panel)
        if offered is not None:
            return offered
    return demonstration_gold_pairs(data, settings.gold_items)


def _judge_what_is_open(panel: RaterPanel, batch: Batch, database: EvidenceDatabase) -> None:
    """Only what has no judgement yet is judged, so that a step that runs again asks nobody twice."""
    given = {judgement.judgement_id for judgement in database.judgements(batch.batch_id)}
    open_assignments = [
        assignment
        for assignment in assign(batch, panel.raters)
        if judgement_id(assignment.item.item_id, assignment.rater, assignment.kind) not in given
    ]
    if open_assignments:
        database.add_judgements(judge_assignments(panel, open_assignments, where=batch.settings.panel))


def _close_if_settled(database: EvidenceDatabase, batch: Batch, evidence: Evidence) -> None:
    """Closes a complete batch, unless a rater's votes still wait for the gold items that make them count."""
    needed = batch.settings.gold_min_count if batch.settings.gold_items else 0
    raters = evidence.statistics["raters"].values()
    if evidence.statistics["complete"] and all(rater["gold_n"] >= needed for rater in raters):
        database.close(batch.batch_id, actor="human_eval", reason="Complete: the evidence was read.")


def _write(
    output: str,
    batch: Batch,
    judgements: list[Judgement],
    evidence: Evidence,
    importers: Mapping[str, str],
    about: Mapping[str, Any],
) -> str:
    items = {item.item_id: item for item in batch.items}
    with write_artifact(
        output,
        "human_evidence",
        inputs={"evaluation": batch.evaluation_digest, "dataset": batch.dataset_digest},
        settings=batch.settings.model_dump(mode="json"),
        stage="human_eval",
    ) as draft:
        write_jsonl(draft.path / "items.jsonl", (_item_json(item) for item in batch.items))
        write_jsonl(
            draft.path / "judgements.jsonl",
            (_judgement_json(judgement, items[judgement.item_id], importers) for judgement in judgements),
        )
        write_jsonl(draft.path / "outcomes.jsonl", (outcome.as_json() for outcome in evidence.outcomes))
        write_json(draft.path / "statistics.json", evidence.statistics)
        draft.metadata.update(_headline(evidence) | dict(about))
    return read_artifact(output, "human_evidence").digest


def _item_json(item: Item) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "comparison": item.comparison,
        "kind": item.kind,
        "prompt_id": item.record.id,
        "slice": item.record.slice,
        "prompt": item.record.model_dump(mode="json")["prompt"],
        "first": item.first.as_json(),
        "second": item.second.as_json(),
    }


def _judgement_json(judgement: Judgement, item: Item, importers: Mapping[str, str]) -> dict[str, Any]:
    roles = (item.second.role, item.first.role) if judgement.swapped else (item.first.role, item.second.role)
    return {
        "judgement_id": judgement.judgement_id,
        "item_id": judgement.item_id,
        "comparison": item.comparison,
        "prompt_id": item.record.id,
        "slice": item.record.slice,
        "rater": judgement.rater,
        "rater_kind": judgement.rater_kind,
        "shown_a": roles[0],
        "shown_b": roles[1],
        "choice": judgement.choice,
        "flags_a": judgement.flags_a,
        "flags_b": judgement.flags_b,
        "kind": judgement.kind,
        "created_at": judgement.created_at,
        "rationale": judgement.rationale,
        "rubric": judgement.rubric,
        "supersedes": judgement.supersedes,
        "adjudication": judgement.adjudication,
        "imported_by": importers[judgement.import_id] if judgement.import_id else None,
    }


def _headline(evidence: Evidence) -> dict[str, Any]:
    main = evidence.statistics["comparisons"]["candidate_vs_reference"]
    return {
        "complete": evidence.statistics["complete"],
        "batch_id": evidence.statistics["batch_id"],
        **{name: main[name] for name in ("win_rate", "lower", "upper", "n_prompts", "n_votes")},
    }


def _track(tracked: StageRun, evidence: Evidence) -> None:
    for name, comparison in evidence.statistics["comparisons"].items():
        tracked.log_metrics(
            {f"{name}/{figure}": comparison[figure] for figure in ("win_rate", "lower", "upper", "n_prompts")}
        )
    tracked.log_metrics({name: evidence.statistics[name] for name in ("alpha", "raw_agreement", "position_bias")})
