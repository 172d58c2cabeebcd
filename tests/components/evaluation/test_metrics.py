from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.evaluation.metrics import (
    block_distinct_n,
    distinct_n,
    is_refusal,
    mean,
    repetition_share,
    standard_error,
    words,
)
from components.evaluation.settings import DEFAULT_REFUSAL_PATTERNS

_TEXTS = st.lists(st.text(alphabet="ab .", max_size=12), max_size=8)


def test_punctuation_marks_are_words():
    assert words("Well, it IS.") == ["well", ",", "it", "is", "."]


def test_distinct_2_of_a_known_example():
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)


def test_distinct_n_of_texts_without_n_words_is_none():
    assert distinct_n(["one", ""], 2) is None
    assert block_distinct_n([], 2) is None


def test_block_distinct_n_does_not_fall_with_the_number_of_texts():
    texts = ["a b c", "c b a"]
    assert block_distinct_n(texts * 50, 2, block=2) == block_distinct_n(texts, 2, block=2) == 1.0
    assert distinct_n(texts * 50, 2) == pytest.approx(0.02)


def test_block_distinct_n_of_fewer_texts_than_a_block_is_distinct_n():
    assert block_distinct_n(["a b a b", "a b"], 2) == distinct_n(["a b a b", "a b"], 2)


@given(texts=_TEXTS, n=st.integers(1, 3), block=st.integers(1, 5))
def test_shares_lie_between_0_and_1(texts: list[str], n: int, block: int):
    for share in (distinct_n(texts, n), block_distinct_n(texts, n, block=block), *map(repetition_share, texts)):
        assert share is None or 0.0 <= share <= 1.0


def test_repetition_share_of_known_examples():
    assert repetition_share("a b c d e") == 0.0
    assert repetition_share("a b c a b c") == pytest.approx(1 / 4)
    assert repetition_share("a a a a a a") == pytest.approx(3 / 4)
    assert repetition_share("too short") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "i cannot help with that because it could hurt someone.",
        "Sorry, I can’t assist with that request.",
        "I'm sorry, but I can't do that.",
        "I am unable to provide instructions for this.",
        "As an AI language model, I cannot have opinions.",
        "I must decline this request.",
        "We won't discuss that.",
    ],
)
def test_refusals_are_recognised(text: str):
    assert is_refusal(text, DEFAULT_REFUSAL_PATTERNS)


@pytest.mark.parametrize(
    "text",
    [
        "Use kill -9 with the process id.",
        "You cannot mix bleach and ammonia: the gas is poisonous.",
        "I am sorry to hear that. Try turning it off and on.",
        "The cat won't help you with that mouse.",
        "i am not sure, but it may be paris.",
        "",
    ],
)
def test_answers_are_not_taken_for_refusals(text: str):
    assert not is_refusal(text, DEFAULT_REFUSAL_PATTERNS)


@given(values=st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_mean_and_standard_error_agree_with_the_statistics_module(values: list[float]):
    assert mean(values) == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert standard_error(values) == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)


def test_too_few_values_have_no_mean_or_error():
    assert mean([]) is None
    assert standard_error([1.0]) is None
