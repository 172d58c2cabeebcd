"""Makes a demo world on disk: demonstrations, prompts, an untrained model, and, if asked for, judged pairs.

The files are what a user would bring: raw JSON lines and a Hugging Face folder. Everything follows from the seed,
and the folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from components.demo_world.answers import QUALITIES, AnswerStyle, write_answer
from components.demo_world.prompts import Question, all_questions
from components.demo_world.raters import PreferenceRaters
from components.demo_world.tokenizer_and_model import Shape, save_model_folder
from components.demo_world.vocabulary import SLICES
from components.shared.errors import InputError
from components.shared.files import write_jsonl
from components.shared.records import PromptRecord

__all__ = ["PROMPTS_PER_SLICE", "make_world"]

PreferenceFormat = Literal["chosen_rejected", "candidates"]

PROMPTS_PER_SLICE = {
    "safe_howto": 500,
    "unsafe_request": 400,
    "harmless_lookalike": 500,
    "uncertain_fact": 350,
    "false_premise": 400,
}

_QUALITY_SHARES = {"good": 0.40, "vague": 0.22, "wrong": 0.22, "refusal": 0.16}
_FLATTERY_SHARE = 0.15
_OVER_CLAIM_SHARE = 0.15
_FILLER_SHARE = 0.12


def make_world(
    folder: str | Path,
    *,
    seed: int,
    demonstrations: int = 4000,
    prompts_per_slice: Mapping[str, int] = PROMPTS_PER_SLICE,
    preferences: int = 0,
    preference_format: PreferenceFormat = "chosen_rejected",
    shape: Shape = "llama",
    model_sizes: Mapping[str, int] | None = None,
) -> Path:
    """Writes `sft.jsonl`, `prompts.jsonl`, `model/` and, when `preferences` > 0, `preferences.jsonl`.

    Args:
        folder: Where to; must not exist, or be empty.
        seed: Seed of data and weights.
        demonstrations: Rows of `sft.jsonl`, `{"prompt", "completion", "slice"}`; their prompts are not among those
            of `prompts.jsonl`.
        prompts_per_slice: Rows of `prompts.jsonl`, `{"prompt", "slice"}`, by slice; all distinct.
        preferences: Rows of `preferences.jsonl`: two written answers to a prompt, judged by `PreferenceRaters`.
        preference_format: "chosen_rejected" (`prompt, chosen, rejected, slice`) or "candidates"
            (`prompt, candidate_0, candidate_1, choice, slice`).
        shape: Of the model, "llama" or "gpt2".
        model_sizes: Sizes of `make_model`; the defaults give 0.36 M parameters.

    Returns:
        The folder.

    Raises:
        InputError: The folder is not empty, or a slice has too few questions.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("something is already there.", where=str(folder), hint="Choose an empty folder.")
    rng = _seeded(seed, "world")
    asked, demonstrated = _deal_questions(prompts_per_slice, rng)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        write_jsonl(aside / "sft.jsonl", _demonstrations(demonstrated, demonstrations, _seeded(seed, "sft")))
        write_jsonl(aside / "prompts.jsonl", ({"prompt": q.text, "slice": q.slice} for q in asked))
        if preferences:
            rows = _preferences(asked, preferences, seed, preference_format)
            write_jsonl(aside / "preferences.jsonl", rows)
        save_model_folder(aside / "model", seed=seed, shape=shape, **dict(model_sizes or {}))
        aside.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return folder


def _deal_questions(
    prompts_per_slice: Mapping[str, int], rng: random.Random
) -> tuple[list[Question], dict[str, list[Question]]]:
    """Deals distinct questions: some to ask later, the others to demonstrate."""
    asked: list[Question] = []
    demonstrated: dict[str, list[Question]] = {}
    for slice_name in SLICES:
        questions = all_questions(slice_name)
        rng.shuffle(questions)
        count = prompts_per_slice.get(slice_name, 0)
        if count >= len(questions):
            raise InputError(
                f"{count} prompts of slice {slice_name!r} asked for, but it has {len(questions)} questions.",
                where="demo world",
                hint=f"Ask for fewer than {len(questions)}.",
            )
        asked.extend(questions[:count])
        demonstrated[slice_name] = questions[count:]
    rng.shuffle(asked)
    return asked, demonstrated


def _demonstrations(
    questions: Mapping[str, list[Question]], count: int, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Demonstrations of mixed quality, slices in equal parts, no row twice."""
    seen: set[tuple[str, str]] = set()
    while len(seen) < count:
        question = rng.choice(questions[SLICES[len(seen) % len(SLICES)]])
        completion = write_answer(question, _mixed_style(rng), rng)
        if (question.text, completion) not in seen:
            seen.add((question.text, completion))
            yield {"prompt": question.text, "completion": completion, "slice": question.slice}


def _mixed_style(rng: random.Random) -> AnswerStyle:
    quality = rng.choices(QUALITIES, weights=[_QUALITY_SHARES[quality] for quality in QUALITIES])[0]
    return AnswerStyle(
        quality,
        flattery=rng.random() < _FLATTERY_SHARE,
        over_claim=rng.random() < _OVER_CLAIM_SHARE,
        filler=rng.random() < _FILLER_SHARE,
    )


def _preferences(
    asked: list[Question], count: int, seed: int, preference_format: PreferenceFormat
) -> Iterator[dict[str, Any]]:
    rng = _seeded(seed, "preferences")
    raters = PreferenceRaters(seed)
    for number in range(count):
        question = asked[number % len(asked)]
        first = write_answer(question, _mixed_style(rng), rng)
        second = first
        while second == first:
            second = write_answer(question, _mixed_style(rng), rng)
        record = PromptRecord(id=f"pair-{number}", prompt=question.text, slice=question.slice)
        choice = raters.prefer(record, first, second, finished_a=True, finished_b=True)["choice"]
        yield _preference_row(question, first, second, choice, preference_format)


def _preference_row(
    question: Question, first: str, second: str, choice: str, preference_format: PreferenceFormat
) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": question.text, "slice": question.slice}
    if preference_format == "candidates":
        return row | {"candidate_0": first, "candidate_1": second, "choice": 0 if choice == "a" else 1}
    chosen, rejected = (first, second) if choice == "a" else (second, first)
    return row | {"chosen": chosen, "rejected": rejected}


def _seeded(seed: int, purpose: str) -> random.Random:
    return random.Random(hashlib.sha256(f"{seed} {purpose}".encode()).digest())
