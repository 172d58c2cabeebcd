"""Checks that compare texts, rows, or all rows."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tiny_validation import checks_of, make_candidate

from components.data_validation.checks import (
    count_disagreements,
    find_contradictions,
    find_duplicates,
    find_equal_answers,
    find_repeated_ids,
    measure_length_skew,
)
from components.data_validation.formats import Candidate
from components.data_validation.near_duplicates import find_near_duplicates, jaccard, shingles
from components.data_validation.settings import NearDuplicateSettings


def _pair(line: int, chosen: str = "yes", rejected: str = "no", **values: Any) -> Candidate:
    return make_candidate(line, **{"prompt": "Q", "chosen": chosen, "rejected": rejected, "id": str(line), **values})


def test_answers_that_look_the_same_prefer_nothing() -> None:
    pairs = [_pair(1, "so  it is", "so\u200b it is\n"), _pair(2, "So it is", "so it is")]
    find_equal_answers(pairs)
    assert checks_of(pairs) == [["chosen_equals_rejected"], []]


def test_the_first_good_row_stays_and_its_repetitions_go() -> None:
    rows = [make_candidate(n, prompt="Q", completion=text) for n, text in enumerate(["A", "A ", "B", "A"], start=1)]
    rows[0].reject("overlong_prompt", "bad already")
    find_duplicates(rows, "sft")
    assert checks_of(rows) == [["overlong_prompt"], [], [], ["duplicate"]]
    assert rows[3].reasons[0].message == "repeats data.jsonl, row 2"


def test_prompts_repeat_whatever_their_case_and_spaces() -> None:
    rows = [make_candidate(1, prompt="How so?"), make_candidate(2, prompt=" how  SO?")]
    find_duplicates(rows, "prompts")
    assert checks_of(rows) == [[], ["duplicate"]]


def test_raters_who_agree_are_no_duplicates_but_a_rater_twice_is() -> None:
    pairs = [_pair(1, rater="a"), _pair(2, rater="b"), _pair(3, rater="a")]
    find_duplicates(pairs, "preferences")
    assert checks_of(pairs) == [[], [], ["duplicate"]]


def test_a_rater_who_labels_a_pair_both_ways_contradicts_and_two_raters_differ() -> None:
    pairs = [
        _pair(1, rater="a"),
        _pair(2, "no", "yes", rater="a"),
        _pair(3, rater="b"),
        _pair(4, "no", "yes", rater="b", prompt="other"),
    ]
    assert count_disagreements(pairs) == 1
    find_contradictions(pairs)
    assert checks_of(pairs) == [["contradictory"], ["contradictory"], [], []]
    assert pairs[0].reasons[0].message == "labelled the other way in data.jsonl, row 2"


def test_unnamed_raters_count_as_one() -> None:
    pairs = [_pair(1), _pair(2, "no", "yes")]
    find_contradictions(pairs)
    assert checks_of(pairs) == [["contradictory"], ["contradictory"]]


def test_an_id_names_one_record() -> None:
    pairs = [_pair(1, id="x"), _pair(2, id="x"), _pair(3, id="y")]
    find_repeated_ids(pairs)
    assert checks_of(pairs) == [[], ["repeated_id"], []]


def test_length_skew_is_the_accuracy_of_the_better_length_rule() -> None:
    skew = measure_length_skew([5, 5, 5, 2, 4], [3, 3, 3, 9, 4])
    assert (skew.longer_chosen, skew.n, skew.accuracy) == (0.75, 4, 0.75)
    assert measure_length_skew([1, 1, 1], [2, 2, 2]).accuracy == 1.0
    assert measure_length_skew([1], [1]).accuracy is None


def test_near_duplicates_point_to_an_earlier_row_that_stays() -> None:
    base = " ".join(f"w{n}" for n in range(40))
    texts = [base, "something else entirely here", base + " more", base.replace("w20", "x20"), base]
    near = find_near_duplicates(texts, NearDuplicateSettings(threshold=0.8, shingle_words=1))
    assert near == {2: 0, 3: 0, 4: 0}


@given(st.lists(st.text(alphabet="ab ", max_size=12), max_size=12))
def test_whoever_is_near_has_a_partner_above_the_threshold_that_stays(texts: list[str]) -> None:
    settings = NearDuplicateSettings(threshold=0.5, shingle_words=1)
    near = find_near_duplicates(texts, settings)
    for later, earlier in near.items():
        assert earlier < later
        assert earlier not in near
        assert jaccard(shingles(texts[later], 1), shingles(texts[earlier], 1)) >= 0.5
    first_of = {shingles(text, 1): number for number, text in reversed(list(enumerate(texts)))}
    for number, text in enumerate(texts):  # equal texts are never missed
        assert number in near or first_of[shingles(text, 1)] == number


def test_shingles_are_runs_of_words() -> None:
    assert shingles("A b  c", 2) == {"a b", "b c"}
    assert shingles("a", 2) == {"a"}
