"""Preference exports of annotation tools, as pairs of `prompt`, `chosen`, `rejected` and who judged.

Label Studio's JSON export has a task a row: `data` holds the texts, `annotations` one entry a rater, whose pairwise
result says "left" or "right". Argilla's has a record a row: `fields` holds the texts, `responses` the answers to the
questions, as its version 2 exports them (`{question: [{value, user_id}]}`) or as version 1 did
(`[{user_id, status, values: {question: {value}}}]`). A ranking of several answers becomes all its strict pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from components.data_validation.faults import RowFault

__all__ = ["argilla_pairs", "label_studio_pairs"]

_PROMPT_NAMES = ("prompt", "instruction", "input_text", "question", "request", "input", "context")
_CARRIED = ("slice", "group_id")
_USUAL_PAIRS = (
    ("left", "right"),
    *(
        (f"{stem}{left}", f"{stem}{right}")
        for stem in ("answer", "text", "response", "candidate", "option")
        for left, right in (("1", "2"), ("0", "1"), ("a", "b"))
    ),
)


def label_studio_pairs(task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Pairs of one Label Studio task: one a rater who chose.

    Raises:
        RowFault: No prompt, not two answers, or nobody chose.
    """
    data = _mapping(task["data"], "data")
    prompt = _find_prompt(data, "data")
    pairs = []
    for annotation in task["annotations"] if isinstance(task["annotations"], list) else []:
        comparison = _comparison(annotation)
        if comparison is None:
            continue
        left, right = _compared_names(data, comparison)
        chosen, rejected = (left, right) if comparison["value"]["selected"] == "left" else (right, left)
        pairs.append(
            {
                **{name: data.get(name) for name in _CARRIED},
                "id": f"{task.get('id', 'task')}-{annotation.get('id', len(pairs))}",
                "prompt": prompt,
                "chosen": data[chosen],
                "rejected": data[rejected],
                "rater": _rater(annotation.get("completed_by")),
                "rationale": _rationale(annotation),
            }
        )
    if not pairs:
        raise RowFault("no_preference", "no annotation chooses left or right")
    yield from pairs


def argilla_pairs(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Pairs of one Argilla record: one a rater who preferred an answer, or each strict pair of a ranking.

    Raises:
        RowFault: No prompt, fewer than two answers, or no submitted preference.
    """
    fields = _mapping(record["fields"], "fields")
    prompt = _find_prompt(fields, "fields")
    used = next(name for name in _PROMPT_NAMES if name in fields)
    answers = {name: text for name, text in fields.items() if name != used and isinstance(text, str)}
    if len(answers) < 2:
        raise RowFault("missing_answers", f"fields: fewer than two answers beside {used!r}")
    pairs = []
    for rater, value in _argilla_answers(record["responses"]):
        for better, worse in _strict_pairs(value, list(answers)):
            metadata = record.get("metadata")
            pairs.append(
                {
                    **{name: metadata.get(name) for name in _CARRIED if isinstance(metadata, dict)},
                    "id": f"{record.get('id', 'record')}-{len(pairs)}",
                    "prompt": prompt,
                    "chosen": answers[better],
                    "rejected": answers[worse],
                    "rater": rater,
                }
            )
    if not pairs:
        raise RowFault("no_preference", "no submitted response prefers one answer")
    yield from pairs


# --- Label Studio ----------------------------------------------------------------------------------------------------


def _comparison(annotation: Any) -> Mapping[str, Any] | None:
    """The pairwise result of an annotation that was submitted and chose a side."""
    if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
        return None
    for result in annotation.get("result") or []:
        if isinstance(result, dict) and result.get("type") == "pairwise" and isinstance(result.get("value"), dict):
            return result if result["value"].get("selected") in ("left", "right") else None
    return None


def _compared_names(data: Mapping[str, Any], comparison: Mapping[str, Any]) -> tuple[str, str]:
    """Columns of the left and the right text.

    They are those that the result's `to_name` lists, if the labelling interface named them as the data does; else a
    usual pair of names; else the only two texts beside the prompt, in the order of their names.
    """
    by_plain_name = {_plain(name): name for name in data}
    listed = [by_plain_name.get(_plain(part)) for part in str(comparison.get("to_name", "")).split(",")]
    if len(listed) == 2 and listed[0] and listed[1]:
        return listed[0], listed[1]
    for left, right in _USUAL_PAIRS:
        if left in by_plain_name and right in by_plain_name:
            return by_plain_name[left], by_plain_name[right]
    skipped = {*_PROMPT_NAMES, *_CARRIED, "id"}
    names = sorted(name for name, value in data.items() if name not in skipped and isinstance(value, str))
    if len(names) != 2:
        raise RowFault("missing_answers", f"data: cannot tell left from right among: {', '.join(names) or 'nothing'}")
    return names[0], names[1]


def _rationale(annotation: Mapping[str, Any]) -> str | None:
    for result in annotation.get("result") or []:
        if isinstance(result, dict) and result.get("type") == "textarea":
            text = (result.get("value") or {}).get("text")
            return " ".join(str(part) for part in text) if isinstance(text, list) else text
    return None


def _rater(completed_by: Any) -> str | None:
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("id", completed_by.get("email"))
    return None if completed_by is None else str(completed_by)


# --- Argilla ---------------------------------------------------------------------------------------------------------


def _argilla_answers(responses: Any) -> Iterator[tuple[str | None, Any]]:
    """Rater and value of each submitted answer to a question."""
    if isinstance(responses, dict):
        for answers in responses.values():
            for answer in answers if isinstance(answers, list) else []:
                if isinstance(answer, dict) and answer.get("status", "submitted") == "submitted":
                    yield _rater(answer.get("user_id")), answer.get("value")
    for response in responses if isinstance(responses, list) else []:
        if isinstance(response, dict) and response.get("status", "submitted") == "submitted":
            for answer in (response.get("values") or {}).values():
                yield _rater(response.get("user_id")), answer.get("value") if isinstance(answer, dict) else answer


def _strict_pairs(value: Any, names: list[str]) -> Iterator[tuple[str, str]]:
    """(better, worse) names that an answer to a preference question implies; none if it answers another question."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        ranks = {_field_name(item.get("value"), names): item.get("rank") for item in value}
        ranked = [(name, rank) for name, rank in ranks.items() if name is not None and isinstance(rank, int)]
        for (first, rank_first), (second, rank_second) in combinations(ranked, 2):
            if rank_first != rank_second:
                yield (first, second) if rank_first < rank_second else (second, first)
        return
    chosen = _field_name(value, names)
    if chosen is not None and len(names) == 2:
        yield chosen, next(name for name in names if name != chosen)


def _field_name(value: Any, names: list[str]) -> str | None:
    """The field that a label means: its name, whatever its punctuation (`response-1` is `response1`)."""
    wanted = _plain(value)
    return next((name for name in names if _plain(name) == wanted), None)


def _plain(value: Any) -> str:
    return "".join(character for character in str(value).casefold() if character.isalnum())


# --- both ------------------------------------------------------------------------------------------------------------


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise RowFault("wrong_columns", f"{name} is not an object")
    return value


def _find_prompt(texts: Mapping[str, Any], name: str) -> Any:
    for candidate in _PROMPT_NAMES:
        if candidate in texts:
            return texts[candidate]
    raise RowFault("wrong_columns", f"{name} holds no prompt ({', '.join(_PROMPT_NAMES)})")
