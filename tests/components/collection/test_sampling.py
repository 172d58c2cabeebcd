from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.collection.sampling import Answer, Sampler, draw_pairs, pair_differing, visits
from components.shared.records import PromptRecord


def _make_prompts(n: int) -> list[PromptRecord]:
    return [PromptRecord(id=f"p{number}", prompt=f"question {number}") for number in range(n)]


def _make_answers(*texts: str) -> list[Answer]:
    return [Answer(text, True, index) for index, text in enumerate(texts)]


def _make_sampler(*rounds: Sequence[str]) -> Sampler:
    """A sampler that gives the texts of each round in turn, whatever the prompt; the last round's again and again."""

    def sample(prompts: Sequence[PromptRecord], round_number: int) -> list[Answer]:
        texts = rounds[min(round_number, len(rounds) - 1)]
        return [Answer(texts[place % len(texts)], True) for place in range(len(prompts))]

    return sample


def _draw(n_prompts: int = 4, **overrides):
    options = {
        "pairs": 4,
        "samples_per_prompt": 2,
        "resample_rounds": 2,
        "sample": _make_sampler(["yes", "no"]),
        "rng": random.Random(0),
        **overrides,
    }
    return draw_pairs(_make_prompts(n_prompts), **options)


@given(n_prompts=st.integers(1, 7), n=st.integers(0, 30), seed=st.integers(0, 99))
def test_every_prompt_is_visited_equally_often_give_or_take_one(n_prompts: int, n: int, seed: int):
    counts = Counter(record.id for record in visits(_make_prompts(n_prompts), n, random.Random(seed)))
    assert sum(counts.values()) == n
    assert max(counts.values(), default=0) - (min(counts.values(), default=0) if len(counts) == n_prompts else 0) <= 1


@given(texts=st.lists(st.sampled_from("abcd"), max_size=12), seed=st.integers(0, 99))
def test_pairs_differ_use_no_answer_twice_and_are_as_many_as_can_be(texts: list[str], seed: int):
    pairs = pair_differing(_make_answers(*texts), random.Random(seed))
    used = [answer.index for pair in pairs for answer in pair]
    most_frequent = max(Counter(texts).values(), default=0)
    assert all(first.text != second.text for first, second in pairs)
    assert len(used) == len(set(used))
    assert len(pairs) == min(len(texts) // 2, len(texts) - most_frequent)


def test_answers_that_read_the_same_make_no_pair():
    assert pair_differing(_make_answers("Yes.  ", "yes."), random.Random(0)) == []


def test_each_visit_yields_one_pair_of_two_samples():
    pairs, counts = _draw()
    assert [pair.visit for pair in pairs] == [0, 1, 2, 3]
    assert all({pair.first.text, pair.second.text} == {"yes", "no"} for pair in pairs)
    assert (counts.answers, counts.pairs_given_up, counts.resampled_visits) == (8, 0, 0)


def test_four_samples_a_visit_yield_two_disjoint_pairs():
    pairs, counts = _draw(n_prompts=2, samples_per_prompt=4, sample=_make_sampler(["a", "b", "c", "d"]))
    assert counts.visits == 2
    assert [pair.visit for pair in pairs] == [0, 0, 1, 1]
    for visit in (0, 1):
        assert {a.text for p in pairs if p.visit == visit for a in (p.first, p.second)} == {"a", "b", "c", "d"}


def test_never_more_pairs_than_wanted():
    pairs, _ = _draw(pairs=3, samples_per_prompt=4, sample=_make_sampler(["a", "b", "c", "d"]))
    assert len(pairs) == 3


def test_equal_samples_are_sampled_anew():
    pairs, counts = _draw(sample=_make_sampler(["same"], ["same", "other"]))
    assert len(pairs) == 4
    assert (counts.resampled_visits, counts.answers) == (4, 16)


def test_a_prompt_whose_answers_stay_alike_is_given_up_and_counted():
    pairs, counts = _draw(sample=_make_sampler(["same"]), resample_rounds=2)
    assert pairs == []
    assert (counts.pairs_given_up, counts.answers, counts.resampled_visits) == (4, 24, 8)


def test_no_pair_of_texts_is_asked_twice_for_a_prompt():
    pairs, counts = _draw(n_prompts=1, pairs=3, sample=_make_sampler(["yes", "no"]), resample_rounds=1)
    assert len(pairs) == 1
    assert counts.pairs_given_up == 2


def test_blank_answers_are_no_part_of_a_pair():
    pairs, counts = _draw(sample=_make_sampler(["yes", " \u200b"]), resample_rounds=0)
    assert pairs == []
    assert counts.blank_answers == 4


def test_which_answer_comes_first_is_a_coin_toss():
    pairs, _ = _draw(n_prompts=400, pairs=400)
    share = sum(pair.first.text == "yes" for pair in pairs) / 400
    assert share == pytest.approx(0.5, abs=0.1)


def test_sample_index_counts_resampled_answers_too():
    pairs, _ = _draw(n_prompts=1, pairs=1, sample=_make_sampler(["same"], ["same", "other"]))
    assert {pairs[0].first.index, pairs[0].second.index} <= {0, 1, 2, 3}
    assert max(pairs[0].first.index, pairs[0].second.index) == 3
