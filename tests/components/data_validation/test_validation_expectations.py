"""The suites of Great Expectations find each fault in the right rows, and their results hold no row value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_validation import make_pair, make_prompt, make_sft, make_tokenizer, words

from components.data_validation import expectations
from components.data_validation.expectations import ROW, run_expectations
from components.data_validation.formats import Candidate, Kind, to_candidates
from components.data_validation.measures import measure, visible_text
from components.data_validation.settings import DataValidationSettings
from components.data_validation.sources import RawRow

LIMITS = DataValidationSettings(min_rows=1, max_prompt_tokens=12, max_response_tokens=12)


def _candidates(kind: Kind, rows: list[dict[str, Any]]) -> list[Candidate]:
    return to_candidates([RawRow("data.jsonl", line, row) for line, row in enumerate(rows, start=1)], kind)


def _failed(kind: Kind, rows: list[dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    frame = measure(_candidates(kind, rows), kind, make_tokenizer())
    return {r.check: r.unexpected for r in run_expectations(frame, kind, LIMITS) if not r.passed}


def test_good_rows_of_every_kind_pass() -> None:
    assert _failed("sft", [make_sft(n) for n in range(3)]) == {}
    assert _failed("prompts", [make_prompt(n) for n in range(3)]) == {}
    assert _failed("preferences", [make_pair(n) for n in range(3)]) == {}


def test_each_fault_is_found_in_its_row() -> None:
    bad: list[tuple[str, dict[str, Any]]] = [
        ("missing_completion", {"completion": None}),
        ("completion_of_wrong_type", {"completion": 3}),
        ("blank_completion", {"completion": " \u200b\u00a0\t\u2800"}),
        ("overlong_completion", {"completion": words(1, 12)}),
        ("missing_prompt", {"prompt": None}),
        ("blank_prompt", {"prompt": ""}),
        ("overlong_prompt", {"prompt": words(1, 12)}),
        ("malformed_slice", {"slice": "a\nb"}),
        ("slice_of_wrong_type", {"slice": 1.5}),
        ("group_id_of_wrong_type", {"group_id": ["g"]}),
    ]
    rows = [make_sft(0), *(make_sft(n, **fault) for n, (_, fault) in enumerate(bad, start=1))]
    failed = _failed("sft", rows)
    assert {check: failed.get(check, ()) for check, _ in bad} == {
        check: (number,) for number, (check, _) in enumerate(bad, start=1)
    }


def test_each_fault_of_a_judgement_is_found() -> None:
    bad: list[tuple[str, dict[str, Any]]] = [
        ("strength_of_wrong_type", {"strength": "strong"}),
        ("strength_out_of_range", {"strength": 1.5}),
        ("unknown_source", {"source": "robot"}),
        ("chosen_finished_of_wrong_type", {"chosen_finished": "yes"}),
        ("rationale_of_wrong_type", {"rationale": 3}),
        ("blank_rejected", {"rejected": "\u3164"}),
    ]
    failed = _failed("preferences", [make_pair(0), *(make_pair(n, **fault) for n, (_, fault) in enumerate(bad, 1))])
    assert failed == {check: (number,) for number, (check, _) in enumerate(bad, start=1)}


def test_an_integer_beyond_every_float_is_out_of_range() -> None:
    assert _failed("preferences", [make_pair(0), make_pair(1, strength=10**400)]) == {"strength_out_of_range": (1,)}


def test_an_empty_table_fails_the_row_count_though_it_passes_all_else() -> None:
    assert _failed("prompts", []) == {"too_few_rows": ()}


def test_no_row_value_is_in_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[Any] = []
    original = expectations._to_result
    monkeypatch.setattr(expectations, "_to_result", lambda result: (outcomes.append(result), original(result))[1])
    rows = [make_sft(1, prompt="topsecretvalue " * 20, completion={"text": "topsecretvalue"}, slice="topsecretvalue\n")]
    assert len(_failed("sft", rows)) == 3
    told = json.dumps([outcome.to_json_dict() for outcome in outcomes])
    assert ROW in told
    assert "topsecretvalue" not in told


def test_tokens_are_counted_as_training_will_see_them() -> None:
    turns = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2 w3"}]
    frame = measure(
        _candidates(
            "preferences",
            [
                make_pair(1, prompt="w1 w2", chosen="w1", rejected="w1 w2", rejected_finished=False),
                make_pair(2, prompt=turns, chosen="w1 w2 w3"),
            ],
        ),
        "preferences",
        make_tokenizer(),
    )
    assert list(frame["prompt_tokens"]) == [4, 6]  # role names and the opening of the answer count
    assert list(frame["chosen_tokens"]) == [2, 4]  # EOS counts
    assert frame["rejected_tokens"][0] == 2  # but not in an answer that was cut


def test_prompts_that_the_chat_template_refuses_and_control_tokens_are_rejected() -> None:
    late = [{"role": "user", "content": "w1"}, {"role": "system", "content": "w2"}, {"role": "user", "content": "w3"}]
    candidates = _candidates("sft", [make_sft(1, prompt=late), make_sft(2, completion="w1 <eos> w2"), make_sft(3)])
    measure(candidates, "sft", make_tokenizer())
    assert [[(r.check, "system must come first" in r.message) for r in c.reasons] for c in candidates] == [
        [("unrenderable_prompt", True)],
        [("control_token", False)],
        [],
    ]


def test_visible_text_is_what_a_reader_sees() -> None:
    assert visible_text(" a\u200b \u00a0b\x00\n") == "a b"
    assert visible_text("ﬁne A") == "fine A"
    assert visible_text("\u00ad\u2060\ufeff\u115f ") == ""
