"""Small artifacts and small panels for the tests of human_eval."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from components.human_eval.batch import Answer, Batch, GoldPair, Item, is_swapped
from components.human_eval.database import Judgement, judgement_id
from components.human_eval.settings import HumanEvalSettings
from components.shared.artifacts import write_artifact
from components.shared.files import write_json, write_jsonl
from components.shared.records import PromptRecord, SFTRecord, write_records

SLICES = ("howto", "unsafe")


def make_dataset(folder: Path, *, prompts: int = 40, demonstrations: int = 12, prompt_set: str = "human_eval") -> Path:
    """A dataset artifact: `prompts` judged ones, as many training ones, demonstrations in two slices."""
    path = folder / "dataset"
    with write_artifact(path, "dataset", stage="data_validation") as draft:
        for name in (prompt_set, "train"):
            write_records(draft.path / f"prompts/{name}.jsonl", [make_prompt(i, prefix=name) for i in range(prompts)])
        demos = [
            SFTRecord(id=f"demo-{i}", prompt=f"ask {i}", completion=f"demonstration {i}", slice=SLICES[i % 2])
            for i in range(demonstrations)
        ]
        write_records(draft.path / "sft/heldout.jsonl", demos)
    return path


def make_prompt(number: int, *, prefix: str = "human_eval") -> PromptRecord:
    return PromptRecord(id=f"{prefix}-{number}", prompt=f"question {number}", slice=SLICES[number % 2])


def make_evaluation(
    folder: Path,
    *,
    prompts: int = 40,
    roles: Iterable[str] = ("reference", "candidate"),
    answer: Callable[[str, int], str] = lambda role, number: f"{role} answers {number}",
    tokens: Callable[[str, int], int] = lambda role, number: 5 + (number * 7 + len(role)) % 11,
    prompt_set: str = "human_eval",
) -> Path:
    """An evaluation artifact; the candidate has the higher reward throughout."""
    path = folder / "evaluation"
    roles = list(roles)
    rows = [
        {
            "prompt_id": f"{prompt_set}-{number}",
            "prompt": f"question {number}",
            "slice": SLICES[number % 2],
            "prompt_set": prompt_set,
            "role": role,
            "response": answer(role, number),
            "n_tokens": tokens(role, number),
            "finished": True,
            "reward": 1.0 if role == "candidate" else 0.0,
            "heldout_reward": 0.0,
            "kl": None,
        }
        for role in roles
        for number in range(prompts)
    ]
    other_set = {**rows[0], "prompt_set": "heldout", "prompt_id": "heldout-0"}
    with write_artifact(path, "evaluation", stage="evaluation") as draft:
        write_json(draft.path / "models.json", {role: {"digest": role, "step": None, "name": role} for role in roles})
        write_jsonl(draft.path / "generations.jsonl", [*rows, other_set])
        write_json(draft.path / "metrics.json", {})
    return path


def make_item(number: int, **overrides: Any) -> Item:
    """A pair of candidate and reference on prompt `number`."""
    values: dict[str, Any] = {
        "item_id": f"item-{number}",
        "comparison": "candidate_vs_reference",
        "kind": "pair",
        "position": number,
        "record": make_prompt(number),
        "first": Answer("candidate", f"c{number}", 5 + number % 7, True),
        "second": Answer("reference", f"r{number}", 5 + number % 5, True),
    }
    return Item(**{**values, **overrides})


def make_gold_item(number: int) -> Item:
    answers = {
        "first": Answer("gold_better", "good", 3, True),
        "second": Answer("gold_worse", "bad", 3, True),
    }
    return make_item(number, item_id=f"gold-{number}", comparison="gold", kind="gold", **answers)


def make_batch(items: Iterable[Item], **settings: Any) -> Batch:
    chosen = HumanEvalSettings(**{"votes_per_prompt": 1, "gold_items": 0, **settings})
    return Batch("batch", "evaluation", "dataset", {}, chosen, 0, tuple(items))


def make_judgement(item_id: str, rater: str = "rater-1", prefers: str = "first", **overrides: Any) -> Judgement:
    """A judgement of `rater`, shown in the order drawn for him, that prefers `first`, `second`, `tie` or `both_bad`."""
    kind = overrides.get("kind", "vote")
    swapped = overrides.get("swapped", is_swapped(item_id, rater) != (kind == "repeat"))
    choice = prefers if prefers in ("tie", "both_bad") else "a" if (prefers == "first") != swapped else "b"
    values: dict[str, Any] = {
        "judgement_id": judgement_id(item_id, rater, kind, overrides.get("revision", 0)),
        "item_id": item_id,
        "rater": rater,
        "rater_kind": "simulated",
        "kind": kind,
        "swapped": swapped,
        "choice": choice,
        "flags_a": [],
        "flags_b": [],
        "created_at": "2026-01-01T00:00:00.000000+00:00",
    }
    return Judgement(**{**values, **overrides})


def make_gold_pairs(n: int) -> list[GoldPair]:
    return [GoldPair(make_prompt(i, prefix="train"), "good", "bad") for i in range(n)]


class CandidateFans:
    """Six raters who prefer the candidate's answers with probability 0.8, and know the gold answers."""

    kind = "simulated"
    chance = 0.8

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.raters = [f"rater-{number}" for number in range(6)]

    def judge(
        self, rater: str, record: PromptRecord, response_a: str, response_b: str, *, finished_a: bool, finished_b: bool
    ) -> Mapping[str, Any]:
        if "good" in (response_a, response_b):
            return {"choice": "a" if response_a == "good" else "b", "flags_a": [], "flags_b": []}
        likes_a = response_a.startswith("candidate")
        follows = random.Random(f"{self.seed} {rater} {response_a} {response_b}").random() < self.chance
        return {"choice": "a" if likes_a == follows else "b", "flags_a": [], "flags_b": []}

    def gold_items(self, records: Iterable[PromptRecord], n: int) -> list[dict[str, Any]]:
        return [
            {"record": record, "response_a": "bad", "response_b": "good", "expected": "b"}
            for record, _ in zip(records, range(n), strict=False)
        ]


class OneClicksLeft(CandidateFans):
    """Rater 0 always clicks the left answer."""

    def judge(self, rater: str, record: PromptRecord, response_a: str, response_b: str, **finished: bool) -> Any:
        if rater == "rater-0":
            return {"choice": "a", "flags_a": ["unsafe"], "flags_b": []}
        return super().judge(rater, record, response_a, response_b, **finished)


class AsksForRewards(CandidateFans):
    """Chooses the answer with the higher reward, as shown."""

    sees_rewards = True

    def judge(self, rater: str, record: PromptRecord, response_a: str, response_b: str, **shown: Any) -> Any:
        if shown["reward_a"] is None:
            return {"choice": "a" if response_a == "good" else "b"}
        return {"choice": "a" if shown["reward_a"] > shown["reward_b"] else "b"}


class NeverAsked(CandidateFans):
    """Fails when it is asked anything."""

    def judge(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("asked twice")


class Broken(CandidateFans):
    """Returns no verdict."""

    def judge(self, *_: Any, **__: Any) -> Any:
        return {"choice": "left"}


class ClaimsToBePeople(CandidateFans):
    """Votes of people cannot come from a plug-in."""

    kind = "human"


class FewGold(CandidateFans):
    """Offers two gold items only."""

    def gold_items(self, records: Iterable[PromptRecord], n: int) -> list[dict[str, Any]]:
        return super().gold_items(records, 2)


class NoGold(CandidateFans):
    """Offers no gold items of its own, and takes the demonstrations of a prompt for what they are."""

    gold_items = None

    def judge(self, rater: str, record: PromptRecord, response_a: str, response_b: str, **finished: bool) -> Any:
        if record.id.startswith("demo-"):
            return {"choice": "a" if response_a == f"demonstration {record.id.removeprefix('demo-')}" else "b"}
        return super().judge(rater, record, response_a, response_b, **finished)
