"""Every accepted format becomes the same fields; what has none is told apart."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_validation import checks_of

from components.data_validation.formats import Kind, to_candidates
from components.data_validation.sources import RawRow
from components.shared.errors import InputError

USER = {"role": "user", "content": "Q"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


def _read(kind: Kind, *rows: dict[str, Any]) -> list[Any]:
    return to_candidates([RawRow("data.jsonl", line, row) for line, row in enumerate(rows, start=1)], kind)


def _label_studio(selected: str | None = "right", **overrides: Any) -> dict[str, Any]:
    result = [] if selected is None else [{"type": "pairwise", "value": {"selected": selected}}]
    return {
        "id": 7,
        "data": {"prompt": "Q", "answer1": "bad", "answer2": "good", "slice": "one"},
        "annotations": [{"id": 1, "completed_by": 5, "was_cancelled": False, "result": result}],
        **overrides,
    }


def _argilla(responses: Any, **fields: str) -> dict[str, Any]:
    return {
        "id": "r1",
        "fields": {"prompt": "Q", "response1": "bad", "response2": "good", **fields},
        "responses": responses,
    }


RANKING = [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 2}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "good", "rejected": "bad"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Q", "candidate_0": "good", "candidate_1": "bad", "choice": 0},
        {"input_text": "Q", "candidate_0": "bad", "candidate_1": "good", "choice": 1.0},
        {"input_text": "Q", "candidate_0": "bad", "candidate_1": "good", "choice": "1"},
        _label_studio(),
        _label_studio(data={"prompt": "Q", "left": "bad", "right": "good", "source": "web"}),
        _label_studio(
            data={"prompt": "Q", "z": "bad", "a": "good", "note": "n"},
            annotations=[{"result": [{"type": "pairwise", "to_name": "z,a", "value": {"selected": "right"}}]}],
        ),
        _argilla({"preference": [{"value": "response2", "user_id": "u"}]}),
        _argilla({"preference": [{"value": RANKING, "user_id": "u", "status": "submitted"}]}),
        _argilla([{"user_id": "u", "status": "submitted", "values": {"preference": {"value": RANKING}}}]),
    ],
)
def test_every_preference_format_says_the_same(row: dict[str, Any]) -> None:
    (candidate,) = _read("preferences", row)
    values = candidate.values
    assert not candidate.reasons
    assert (values["prompt"], values["chosen"], values["rejected"]) == ("Q", "good", "bad")
    assert (values["strength"], values["source"], values["chosen_finished"]) == (1.0, "human", True)
    assert values["id"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, {"role": "assistant", "content": "A"}]},
        {"prompt": "Q", "completion": "A"},
        {"prompt": [USER], "completion": [{"role": "assistant", "content": "A"}]},
    ],
)
def test_every_demonstration_format_says_the_same(row: dict[str, Any]) -> None:
    (candidate,) = _read("sft", row)
    assert (candidate.values["prompt"], candidate.values["completion"]) == ("Q", "A")
    assert candidate.values["slice"] == "all"


def test_a_conversation_keeps_its_turns() -> None:
    turns = [{"role": "system", "content": "S"}, USER, BAD, USER]
    (candidate,) = _read("sft", {"messages": [*turns, GOOD]})
    assert candidate.values["prompt"] == turns


def test_two_raters_of_a_label_studio_task_are_two_pairs_and_a_skipped_task_is_set_aside() -> None:
    vote = [{"type": "pairwise", "value": {"selected": "left"}}]
    reason = [{"type": "textarea", "value": {"text": ["clearer"]}}]
    task = _label_studio(
        annotations=[
            {"id": 1, "completed_by": {"id": 5, "email": "a@b.example"}, "result": vote + reason},
            {"id": 2, "completed_by": 6, "result": vote},
            {"id": 3, "completed_by": 7, "was_cancelled": True, "result": vote},
        ]
    )
    first, second, skipped = _read("preferences", task, _label_studio(selected=None))
    assert [(c.values["rater"], c.values["id"], c.values["rationale"]) for c in (first, second)] == [
        ("5", "7-1", "clearer"),
        ("6", "7-2", None),
    ]
    assert checks_of([skipped]) == [["no_preference"]]


def test_a_ranking_of_three_becomes_its_strict_pairs() -> None:
    ranks = [{"value": "response1", "rank": 2}, {"value": "response2", "rank": 1}, {"value": "response3", "rank": 2}]
    pairs = _read("preferences", _argilla({"q": [{"value": ranks, "user_id": "u"}]}, response3="worse"))
    assert [(p.values["chosen"], p.values["rejected"]) for p in pairs] == [("good", "bad"), ("good", "worse")]
    assert len({p.values["id"] for p in pairs}) == 2


def test_drafts_and_answers_to_other_questions_are_no_preference() -> None:
    responses = {"q": [{"value": "response2", "status": "draft"}], "comment": [{"value": "fine", "user_id": "u"}]}
    (candidate,) = _read("preferences", _argilla(responses))
    assert checks_of([candidate]) == [["no_preference"]]


@pytest.mark.parametrize(
    ("kind", "row", "check"),
    [
        ("sft", {"messages": [USER]}, "malformed_messages"),
        ("sft", {"messages": []}, "malformed_messages"),
        ("sft", {"messages": [{"role": "tool", "content": "x"}, GOOD]}, "malformed_messages"),
        ("sft", {"messages": [USER, {"role": "assistant", "content": None}]}, "malformed_messages"),
        ("prompts", {"prompt": [USER, GOOD]}, "malformed_messages"),
        ("preferences", {"chosen": [USER, GOOD], "rejected": [BAD, BAD]}, "no_common_prompt"),
        ("preferences", {"prompt": "Q", "candidate_0": "a", "candidate_1": "b", "choice": 2}, "unknown_choice"),
        ("preferences", {"prompt": "Q", "candidate_0": "a", "candidate_1": "b", "choice": True}, "unknown_choice"),
        ("preferences", _label_studio(data={"prompt": "Q", "one": "x"}), "missing_answers"),
        ("preferences", _argilla({}, response2=None), "missing_answers"),  # type: ignore[arg-type]
    ],
)
def test_a_row_whose_parts_cannot_be_found_is_set_aside(kind: Kind, row: dict[str, Any], check: str) -> None:
    assert checks_of(_read(kind, row)) == [[check]]


def test_wrong_columns_in_a_whole_file_are_an_error_that_names_them_and_what_is_accepted() -> None:
    with pytest.raises(InputError) as error:
        _read("preferences", {"question": "Q", "best": "a"}, {"x": 1})
    for part in ("data.jsonl, row 1", "best, question", "'chosen' and 'rejected'", "candidate_0", "Label Studio"):
        assert part in str(error.value)


def test_wrong_columns_in_one_row_set_that_row_aside() -> None:
    assert checks_of(_read("prompts", {"prompt": "Q"}, {"text": "Q"})) == [[], ["wrong_columns"]]


def test_ids_follow_from_content_and_small_extra_columns_are_kept() -> None:
    first, again, other = _read(
        "prompts", {"prompt": "Q", "topic": "t", "metadata": {"a": 1}}, {"prompt": "Q"}, {"prompt": "R", "id": 5}
    )
    assert first.values["id"] == again.values["id"] != other.values["id"] == "5"
    assert first.values["metadata"] == {"topic": "t", "a": 1}
