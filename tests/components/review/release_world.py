"""A release that the real gate judged, with evidence that has pairs, judgements and words in it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "release_gate"))  # the small evidence of the gate's tests

from tiny_release import MODEL, make_evidence

from components.release_gate.stage import run_gate
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.files import read_json, read_jsonl, write_json, write_jsonl

__all__ = ["MODEL", "judge_release"]

_IMPORTER: str | None = None
_RATERS = [f"rater-{number}" for number in range(4)]


def judge_release(
    root: Path,
    *,
    weights: str = "candidate",
    texts: Sequence[str] = ("An answer that helps.", "An answer that does not."),
    rationale: str = "The first one says why.",
    actor_policy: str = "production",
    **evidence: Any,
) -> str:
    """Has the gate judge a candidate; returns its version.

    Args:
        root: An empty folder.
        weights: The candidate's weights, as text.
        texts: Texts of prompts and answers, in turn.
        rationale: What the raters say.
        actor_policy: Gate policy.
        **evidence: See `tiny_release.make_evidence`.
    """
    made = make_evidence(root, weights=weights, **evidence)
    _put_words_in(Path(made.evidence), texts, rationale)
    result = run_gate(
        **made.as_arguments(),
        output=str(root / "decision"),
        mode="candidate",
        policy=actor_policy,
        model_name=MODEL,
        seed=0,
    )
    return result["version"]


def _put_words_in(path: Path, texts: Sequence[str], rationale: str) -> None:
    artifact = read_artifact(path, "human_evidence")
    statistics = read_json(artifact.file("statistics.json"))
    if _IMPORTER:
        file = {"source": "labels.json", "digest": "f" * 64, "labels": 9, "judgements": 9}
        statistics["imports"] = [{"actor": _IMPORTER, "created_at": "2026-01-01T00:00:00+00:00", **file}]
    outcomes = list(read_jsonl(artifact.file("outcomes.jsonl")))
    main = [row for row in outcomes if row["comparison"] == "candidate_vs_reference"]
    items = [_item(number, row, texts) for number, row in enumerate(main)]
    judgements = [
        _judgement(number, item["item_id"], rater, rationale)
        for number, item in enumerate(items)
        for rater in _RATERS[: 1 + number % 3]
    ]
    with write_artifact(path, "human_evidence", inputs=artifact.manifest["inputs"], stage="human_eval") as draft:
        write_json(draft.path / "statistics.json", statistics)
        write_jsonl(draft.path / "outcomes.jsonl", outcomes)
        write_jsonl(draft.path / "items.jsonl", items)
        write_jsonl(draft.path / "judgements.jsonl", judgements)


def _item(number: int, outcome: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    def text(place: int) -> str:
        return texts[(number + place) % len(texts)]

    return {
        "item_id": f"item-{number}",
        "comparison": outcome["comparison"],
        "kind": "pair",
        "prompt_id": outcome["prompt_id"],
        "slice": outcome["slice"],
        "prompt": text(0),
        "first": {"role": "candidate", "response": text(1), "n_tokens": 5, "finished": True},
        "second": {"role": "reference", "response": text(2), "n_tokens": 5, "finished": False},
    }


def _judgement(number: int, item_id: str, rater: str, rationale: str) -> dict[str, Any]:
    return {
        "judgement_id": f"{item_id}-{rater}",
        "item_id": item_id,
        "rater": rater,
        "rater_kind": "human",
        "kind": "vote",
        "shown_a": "candidate",
        "shown_b": "reference",
        "choice": ("a", "b", "tie", "both_bad")[number % 4],
        "prompt_id": f"p{number}",
        "flags_a": [],
        "flags_b": ["unsafe"] if number % 50 == 0 else [],  # the reference's answer: the candidate has no bad ones
        "rationale": rationale,
        "supersedes": None,
        "created_at": "2026-01-01T00:00:00+00:00",
        "imported_by": _IMPORTER,
    }
