"""Who is asked what: a function of evaluation, settings and seed, fair to sides and raters."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_panels import make_batch, make_gold_item, make_item

from components.human_eval.batch import assign, is_swapped, list_comparisons
from components.human_eval.settings import HumanEvalSettings
from components.shared.errors import InputError


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(0, 8), st.integers(0, 40), st.text("ab", max_size=3))
def test_every_pair_gets_its_votes_from_distinct_raters_who_take_turns(
    votes: int, spare: int, n_items: int, batch_id: str
) -> None:
    raters = [f"rater-{number}" for number in range(votes + spare)]
    batch = make_batch([make_item(n) for n in range(n_items)], votes_per_prompt=votes, repeat_share=0.0)
    asked = assign(batch, raters)
    by_item = Counter(assignment.item.item_id for assignment in asked)
    assert set(by_item.values()) <= {votes}
    assert len({(one.item.item_id, one.rater) for one in asked}) == n_items * votes
    loads = Counter(dict.fromkeys(raters, 0))
    loads.update(assignment.rater for assignment in asked)
    assert max(loads.values()) - min(loads.values()) <= 1


def test_every_rater_gets_every_gold_item_and_nobody_the_identical_ones() -> None:
    items = [make_item(0, kind="identical"), make_gold_item(1), make_gold_item(2)]
    asked = assign(make_batch(items), ["x", "y", "z"])
    assert Counter((one.rater, one.kind) for one in asked) == {(rater, "gold"): 2 for rater in "xyz"}


def test_assignments_do_not_depend_on_the_order_in_which_raters_are_named() -> None:
    batch = make_batch([make_item(n) for n in range(10)], votes_per_prompt=2)
    assert assign(batch, ["x", "y", "z"]) == assign(batch, ["z", "x", "y"])


def test_repeats_show_the_other_side_first() -> None:
    batch = make_batch([make_item(n) for n in range(30)], repeat_share=1.0)
    asked = assign(batch, ["x", "y"])
    assert len(asked) == 60
    for vote, repeat in list(pairwise(asked))[::2]:
        assert (vote.kind, repeat.kind) == ("vote", "repeat")
        assert (vote.item, vote.rater) == (repeat.item, repeat.rater)
        assert vote.swapped is not repeat.swapped


def test_the_drawn_side_is_a_fair_coin_that_differs_between_raters_and_items() -> None:
    draws = [[is_swapped(f"item-{item}", f"rater-{rater}") for item in range(200)] for rater in range(10)]
    assert 0.45 < sum(map(sum, draws)) / 2000 < 0.55
    assert len({tuple(row) for row in draws}) == 10


def test_too_few_raters_are_refused() -> None:
    with pytest.raises(InputError, match="cannot give 2 votes"):
        assign(make_batch([make_item(0)], votes_per_prompt=2), ["alone"])


def test_comparisons_follow_the_roles_of_the_evaluation() -> None:
    models = {role: {} for role in ("step-0020", "candidate", "reference", "step-0010")}
    chosen = HumanEvalSettings(n_prompts=300, checkpoint_prompts=60)
    assert list_comparisons(models, chosen, where="") == {
        ("candidate", "reference"): 300,
        ("step-0010", "reference"): 60,
        ("step-0020", "reference"): 60,
    }
    none = HumanEvalSettings(checkpoint_prompts=0)
    assert list(list_comparisons({**models, "champion": {}}, none, where="")) == [
        ("candidate", "reference"),
        ("candidate", "champion"),
    ]
