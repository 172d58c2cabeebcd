"""Which answers the report shows side by side: a stated rule, so that nobody can pick the pretty ones.

From each slice the prompts whose hash comes first; beside them the prompts on which the reward rose most although
people preferred the baseline: there the reward model is wrong.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from components.report.parts import Parts
from components.shared.trajectory import standard_deviation

__all__ = ["MOST_DISLIKED", "PER_SLICE", "Answer", "Sample", "choose_samples"]

PER_SLICE = 2
MOST_DISLIKED = 4
_MOST_RATIONALES = 3
_SHOWN_ROLES = ("reference", "candidate", "champion")


@dataclass(frozen=True)
class Answer:
    """One model's answer.

    Attributes:
        role: Who answered.
        text: The answer, untrusted.
        gain: Reward gain over the baseline's answer, in standard deviations; None where not known.
        heldout_gain: The same by the second reward model.
        n_tokens: Length in tokens.
        finished: False when it was cut at the length limit.
    """

    role: str
    text: str
    gain: float | None
    heldout_gain: float | None
    n_tokens: int | None
    finished: bool


@dataclass(frozen=True)
class Sample:
    """The answers to one prompt and what people said of them.

    Attributes:
        prompt: The prompt as recorded: text, or a list of turns.
        slice: Its slice.
        answers: Baseline, candidate and, if there is one, champion.
        outcomes: Comparison -> (outcome for its first-named role in [0, 1], votes).
        flags: What raters marked, such as `unsafe`, by role.
        rationales: What raters wrote, untrusted.
    """

    prompt: Any
    slice: str
    answers: list[Answer]
    outcomes: dict[str, tuple[float, int]] = field(default_factory=dict)
    flags: dict[str, list[str]] = field(default_factory=dict)
    rationales: list[str] = field(default_factory=list)

    @property
    def gain(self) -> float | None:
        """Reward gain of the candidate, in standard deviations."""
        return next((answer.gain for answer in self.answers if answer.role == "candidate"), None)

    @property
    def outcome(self) -> float | None:
        """What people said of the candidate against the baseline: 1 candidate, 0 baseline; None when not judged."""
        return self.outcomes.get("candidate_vs_reference", (None, 0))[0]


def choose_samples(parts: Parts) -> tuple[list[Sample], list[Sample]]:
    """The samples to show.

    Returns:
        Up to `PER_SLICE` prompts of each slice by the hash of their id, judged ones first; and up to `MOST_DISLIKED`
        prompts, other than those, whose reward rose most while people preferred the baseline.
    """
    samples = _collect(parts)
    order = sorted(samples, key=lambda prompt_id: (samples[prompt_id].outcome is None, _hash(prompt_id)))
    by_slice: dict[str, list[str]] = defaultdict(list)
    for prompt_id in order:
        by_slice[samples[prompt_id].slice].append(prompt_id)
    chosen = [prompt_id for name in sorted(by_slice) for prompt_id in by_slice[name][:PER_SLICE]]
    disliked = [prompt_id for prompt_id in order if prompt_id not in chosen and _is_disliked(samples[prompt_id])]
    disliked.sort(key=lambda prompt_id: -(samples[prompt_id].gain or 0.0))
    return [samples[i] for i in chosen], [samples[i] for i in disliked[:MOST_DISLIKED]]


def _is_disliked(sample: Sample) -> bool:
    return (sample.gain or 0.0) > 0.0 and sample.outcome is not None and sample.outcome < 0.5


def _collect(parts: Parts) -> dict[str, Sample]:
    """Samples by prompt id, of prompts that baseline and candidate both answered."""
    answers: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in parts.generations:
        if row["role"] in _SHOWN_ROLES:
            answers[row["prompt_id"]][row["role"]] = row
    outcomes: dict[str, dict[str, tuple[float, int]]] = defaultdict(dict)
    for row in parts.outcomes:
        outcomes[row["prompt_id"]][row["comparison"]] = (row["outcome"], row.get("n_votes") or 0)
    remarks = _remarks(parts)
    return {
        prompt_id: Sample(
            prompt=rows["reference"]["prompt"],
            slice=rows["reference"]["slice"],
            answers=[_answer(parts, rows, role) for role in _SHOWN_ROLES if role in rows],
            outcomes=outcomes.get(prompt_id, {}),
            flags=remarks.get(prompt_id, ({}, []))[0],
            rationales=remarks.get(prompt_id, ({}, []))[1],
        )
        for prompt_id, rows in answers.items()
        if "reference" in rows and "candidate" in rows
    }


def _answer(parts: Parts, rows: dict[str, dict[str, Any]], role: str) -> Answer:
    row = rows[role]
    gains = {key: _gain(parts, rows["reference"], row, key) for key in ("reward", "heldout_reward")}
    return Answer(
        role=role,
        text=row["response"],
        gain=gains["reward"],
        heldout_gain=gains["heldout_reward"],
        n_tokens=row.get("n_tokens"),
        finished=row.get("finished") is not False,
    )


def _gain(parts: Parts, baseline: dict[str, Any], row: dict[str, Any], key: str) -> float | None:
    deviation = standard_deviation(parts, key)
    if deviation is None or row.get(key) is None or baseline.get(key) is None:
        return None
    return (row[key] - baseline[key]) / deviation


def _remarks(parts: Parts) -> dict[str, tuple[dict[str, list[str]], list[str]]]:
    """Flags by role, and the first rationales, of each prompt's votes."""
    remarks: dict[str, tuple[dict[str, list[str]], list[str]]] = {}
    for judgement in parts.judgements:
        if judgement.get("kind") not in (None, "vote"):
            continue
        flags, rationales = remarks.setdefault(judgement["prompt_id"], ({}, []))
        for side in ("a", "b"):
            known = flags.setdefault(str(judgement.get(f"shown_{side}")), [])
            known += [flag for flag in judgement.get(f"flags_{side}") or [] if flag not in known]
        if judgement.get("rationale") and len(rationales) < _MOST_RATIONALES:
            rationales.append(judgement["rationale"])
    return remarks


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
