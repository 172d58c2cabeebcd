"""Blind pairs from an evaluation's answers: what is asked, of whom, and in which order it is shown.

Everything here is a function of the evaluation, the settings and the seed, so a step that runs again makes the very
same batch. Which answer stands left is drawn for each rater and item anew. Two identical answers are a tie that nobody
needs to be asked about; they are items of kind `identical`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from components.human_eval.settings import PEOPLE, HumanEvalSettings
from components.shared.artifacts import Artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.files import digest_of, read_json, read_jsonl
from components.shared.plugins import plug_in_digest
from components.shared.records import PromptRecord, read_records, stable_order

__all__ = [
    "GOLD",
    "GOLD_BETTER",
    "Answer",
    "Assignment",
    "Batch",
    "GoldPair",
    "Item",
    "assign",
    "build_batch",
    "is_swapped",
    "list_comparisons",
    "uniform",
]

GOLD = "gold"
GOLD_BETTER = "gold_better"
GOLD_WORSE = "gold_worse"
REFERENCE = "reference"

_ID_LENGTH = 32


@dataclass(frozen=True)
class Answer:
    """One answer of a pair. `reward` is for panels that ask for it; raters never see it and it is not stored."""

    role: str
    response: str
    n_tokens: int
    finished: bool
    reward: float | None = None

    def as_json(self) -> dict[str, Any]:
        """What the database and the artifact keep."""
        return {
            "role": self.role,
            "response": self.response,
            "n_tokens": self.n_tokens,
            "finished": self.finished,
        }


@dataclass(frozen=True)
class Item:
    """A pair of answers to one prompt.

    Attributes:
        item_id: Derived from batch, comparison, kind and prompt.
        comparison: `<first role>_vs_<second role>`, or `gold`.
        kind: `identical` items are ties without a vote.
        position: Place of the prompt in the fixed order.
        record: The prompt.
        first: Answer of the first-named role; of a gold item, the better answer.
        second: Answer of the second-named role.
    """

    item_id: str
    comparison: str
    kind: Literal["pair", "identical", "gold"]
    position: int
    record: PromptRecord
    first: Answer
    second: Answer


@dataclass(frozen=True)
class GoldPair:
    """An easy pair whose better answer is known."""

    record: PromptRecord
    better: str
    worse: str


@dataclass(frozen=True)
class Assignment:
    """One question to one rater.

    Attributes:
        item: What is asked.
        rater: Who is asked.
        kind: A vote, a gold item, or a vote asked again with the answers swapped.
        swapped: The second answer is shown as A.
    """

    item: Item
    rater: str
    kind: Literal["vote", "gold", "repeat"]
    swapped: bool


@dataclass(frozen=True)
class Batch:
    """All that is asked about one evaluation."""

    batch_id: str
    evaluation_digest: str
    dataset_digest: str
    models: dict[str, Any]
    settings: HumanEvalSettings
    seed: int
    items: tuple[Item, ...]


def build_batch(
    evaluation: Artifact, dataset: Artifact, settings: HumanEvalSettings, seed: int, gold: Sequence[GoldPair]
) -> Batch:
    """Makes the batch of an evaluation.

    Args:
        evaluation: `evaluation` artifact with answers to `settings.prompt_set`.
        dataset: `dataset` artifact that those prompts come from.
        settings: Of the stage.
        seed: Seed of the stage.
        gold: Items with a known answer.

    Raises:
        ArtifactError: The evaluation lacks a role, answers of it, or answers prompts that the dataset does not have.
        InputError: Fewer gold items than a rater needs for votes to count.
    """
    if settings.gold_items and len(gold) < settings.gold_min_count:
        raise InputError(
            f"only {len(gold)} gold items can be made, but a rater needs {settings.gold_min_count} before votes count.",
            where="human_eval.gold_items",
            hint="Give the panel gold items, or set gold_items to 0 to judge raters by their repeats alone.",
        )
    models = read_json(evaluation.file("models.json"))
    batch_id = digest_of(
        {
            "evaluation": evaluation.digest,
            "dataset": dataset.digest,
            "settings": settings.batch_fields(),
            "seed": seed,
            "panel": plug_in_digest([settings.panel]) if settings.panel != PEOPLE else PEOPLE,
            "gold": [[pair.record.id, pair.better, pair.worse] for pair in gold],
        }
    )[:_ID_LENGTH]
    records = _records(dataset, settings)
    answers = _answers(evaluation, settings.prompt_set, records)
    items = [
        item
        for comparison, limit in list_comparisons(models, settings, where=str(evaluation.path)).items()
        for item in _pairs(batch_id, comparison, limit, records, answers, where=str(evaluation.path))
    ]
    items += [_gold_item(batch_id, position, pair) for position, pair in enumerate(gold)]
    return Batch(batch_id, evaluation.digest, dataset.digest, models, settings, seed, tuple(items))


def list_comparisons(
    models: Mapping[str, Any], settings: HumanEvalSettings, *, where: str
) -> dict[tuple[str, str], int]:
    """Which roles are compared, and on how many prompts.

    Args:
        models: `models.json` of the evaluation.
        settings: Of the stage.
        where: The evaluation, for the error.

    Returns:
        Candidate against reference, candidate against champion if there is one, each checkpoint against reference.

    Raises:
        ArtifactError: The evaluation has no candidate or no reference.
    """
    for role in ("candidate", REFERENCE):
        if role not in models:
            raise ArtifactError(f"has no role {role!r}.", where=where, hint="Run the evaluation again.")
    comparisons = {("candidate", REFERENCE): settings.n_prompts}
    if "champion" in models:
        comparisons["candidate", "champion"] = settings.n_prompts
    if settings.checkpoint_prompts:
        checkpoints = sorted(role for role in models if role.startswith("step-"))
        comparisons |= {(role, REFERENCE): settings.checkpoint_prompts for role in checkpoints}
    return comparisons


def assign(batch: Batch, raters: Sequence[str]) -> list[Assignment]:
    """Who is asked what: every pair by `votes_per_prompt` raters, every gold item by all, some votes twice.

    Raters take turns in an order drawn from the seed, so that loads differ by one vote at most.

    Raises:
        InputError: Fewer raters than votes a pair.
    """
    votes = batch.settings.votes_per_prompt
    if len(raters) < votes:
        raise InputError(
            f"{len(raters)} rater(s) cannot give {votes} votes a prompt.",
            where="human_eval.votes_per_prompt",
            hint="Ask for fewer votes, or name more raters.",
        )
    turns = _turns(sorted(raters), votes, seed=batch.batch_id)
    assignments: list[Assignment] = []
    for item in batch.items:
        if item.kind == "gold":
            assignments += [
                Assignment(item, rater, "gold", is_swapped(item.item_id, rater)) for rater in sorted(raters)
            ]
        elif item.kind == "pair":
            for rater in next(turns):
                assignments += _vote_and_repeat(item, rater, batch.settings.repeat_share)
    return assignments


def is_swapped(item_id: str, rater: str) -> bool:
    """Whether this rater sees the second answer of this item as A: a fair coin that always falls the same way."""
    return uniform(item_id, rater, "position") < 0.5


def _records(dataset: Artifact, settings: HumanEvalSettings) -> dict[str, PromptRecord]:
    file = dataset.file(f"prompts/{settings.prompt_set}.jsonl")
    return {record.id: record for record in stable_order(read_records(file, PromptRecord))}


def _answers(
    evaluation: Artifact, prompt_set: str, records: Mapping[str, PromptRecord]
) -> dict[str, dict[str, Answer]]:
    """Answers by role and prompt."""
    file = evaluation.file("generations.jsonl")
    answers: dict[str, dict[str, Answer]] = {}
    for number, row in enumerate(read_jsonl(file), start=1):
        if row["prompt_set"] != prompt_set:
            continue
        where = f"{file}, record {number}"
        if row["prompt_id"] not in records:
            raise ArtifactError(
                f"answers prompt {row['prompt_id']!r}, which the dataset's {prompt_set} prompts do not have.",
                where=where,
                hint="Give the dataset that the evaluation was made with.",
            )
        of_role = answers.setdefault(row["role"], {})
        if row["prompt_id"] in of_role:
            raise ArtifactError(f"{row['role']} answers prompt {row['prompt_id']!r} twice.", where=where)
        of_role[row["prompt_id"]] = Answer(
            role=row["role"],
            response=row["response"],
            n_tokens=row["n_tokens"],
            finished=row["finished"],
            reward=row["reward"],
        )
    return answers


def _pairs(
    batch_id: str,
    roles: tuple[str, str],
    limit: int,
    records: Mapping[str, PromptRecord],
    answers: Mapping[str, Mapping[str, Answer]],
    *,
    where: str,
) -> list[Item]:
    first, second = (answers.get(role, {}) for role in roles)
    shared = [prompt_id for prompt_id in records if prompt_id in first and prompt_id in second][:limit]
    comparison = f"{roles[0]}_vs_{roles[1]}"
    if not shared:
        raise ArtifactError(
            f"{roles[0]} and {roles[1]} answer no prompt in common: {comparison} cannot be judged.",
            where=where,
            hint="Let evaluation.prompts and human_eval.prompt_set name the same set.",
        )
    items = []
    for position, prompt_id in enumerate(shared):
        one, other = first[prompt_id], second[prompt_id]
        same = (one.response, one.finished) == (other.response, other.finished)
        kind = "identical" if same else "pair"
        item_id = _item_id(batch_id, comparison, prompt_id)
        items.append(Item(item_id, comparison, kind, position, records[prompt_id], one, other))
    return items


def _gold_item(batch_id: str, position: int, pair: GoldPair) -> Item:
    better, worse = (
        Answer(role=role, response=text, n_tokens=len(text.split()), finished=True)
        for role, text in ((GOLD_BETTER, pair.better), (GOLD_WORSE, pair.worse))
    )
    return Item(_item_id(batch_id, GOLD, pair.record.id), GOLD, "gold", position, pair.record, better, worse)


def _item_id(batch_id: str, comparison: str, prompt_id: str) -> str:
    return digest_of([batch_id, comparison, prompt_id])[:_ID_LENGTH]


def _turns(raters: Sequence[str], votes: int, *, seed: str) -> Iterator[list[str]]:
    """Endless groups of `votes` distinct raters; everybody has a turn before anybody has the next one."""
    rng = random.Random(seed)
    waiting: list[str] = []
    while True:
        group, waiting = waiting[:votes], waiting[votes:]
        if len(group) < votes:
            fresh = rng.sample(raters, len(raters))
            late = [rater for rater in fresh if rater not in group][: votes - len(group)]
            waiting = [rater for rater in fresh if rater not in late]
            group += late
        yield group


def _vote_and_repeat(item: Item, rater: str, repeat_share: float) -> list[Assignment]:
    swapped = is_swapped(item.item_id, rater)
    asked = [Assignment(item, rater, "vote", swapped)]
    if uniform(item.item_id, rater, "repeat") < repeat_share:
        asked.append(Assignment(item, rater, "repeat", not swapped))
    return asked


def uniform(*parts: str) -> float:
    """A number in [0, 1) that depends on `parts` alone."""
    return int.from_bytes(hashlib.sha256("\x1f".join(parts).encode()).digest()[:8]) / 2**64
