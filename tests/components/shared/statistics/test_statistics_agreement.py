"""Agreement: published examples and the cases in which it is undefined."""

from __future__ import annotations

import random

import pytest

from components.shared.errors import InputError
from components.shared.statistics import cohen_kappa, fleiss_kappa, krippendorff_alpha, pairwise_agreement

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def test_alpha_reproduces_the_published_example() -> None:
    assert krippendorff_alpha(zip(*OBSERVERS, strict=True)) == pytest.approx(0.743, abs=5e-4)


def test_alpha_is_one_for_perfect_agreement_and_near_zero_for_chance() -> None:
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1.0
    chance = random.Random(0)
    assert krippendorff_alpha([[chance.choice("ab"), chance.choice("ab")] for _ in range(5000)]) == pytest.approx(
        0.0, abs=0.05
    )


@pytest.mark.parametrize("ratings", [[], [["a"], ["b"]], [["a", None]], [["a", "a"], ["a", "a"]]])
def test_alpha_without_pairs_or_without_variety_is_refused(ratings: list) -> None:
    with pytest.raises(InputError):
        krippendorff_alpha(ratings)


def test_kappa_known_answer() -> None:
    # 20 both yes, 15 both no, 5 and 10 apart: observed 0.7, expected 0.5.
    ratings_a = ["y"] * 20 + ["y"] * 5 + ["n"] * 10 + ["n"] * 15
    ratings_b = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(ratings_a, ratings_b) == pytest.approx(0.4)


@pytest.mark.parametrize(("a", "b"), [([], []), (["y"], ["y", "n"]), (["y", "y"], ["y", "y"])])
def test_kappa_that_is_undefined_is_refused(a: list, b: list) -> None:
    with pytest.raises(InputError):
        cohen_kappa(a, b)


# Fleiss 1971, table 1 as reproduced in most textbooks: ten subjects, fourteen raters, five categories.
FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def test_fleiss_kappa_reproduces_the_published_example() -> None:
    units = [[category for category, count in enumerate(row) for _ in range(count)] for row in FLEISS]
    assert fleiss_kappa(units) == pytest.approx(0.210, abs=5e-4)


def test_fleiss_kappa_leaves_out_units_with_one_rating() -> None:
    assert fleiss_kappa([["a", "a"], ["b", "b", "b"], ["a"]]) == 1.0


@pytest.mark.parametrize("ratings", [[], [["a"], ["b"]], [["a", "a"], ["a", "a"]]])
def test_fleiss_kappa_that_is_undefined_is_refused(ratings: list) -> None:
    with pytest.raises(InputError):
        fleiss_kappa(ratings)


@pytest.mark.parametrize(("unit", "share"), [("aa", 1.0), ("aab", 1 / 3), ("abc", 0.0), ("aabb", 1 / 3), ("aaab", 0.5)])
def test_pairwise_agreement_is_the_share_of_pairs(unit: str, share: float) -> None:
    assert pairwise_agreement(list(unit)) == pytest.approx(share)


def test_one_rating_has_no_pair() -> None:
    with pytest.raises(InputError):
        pairwise_agreement(["a"])
