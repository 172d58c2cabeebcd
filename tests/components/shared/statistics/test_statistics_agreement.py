"""Agreement: published examples and the cases in which it is undefined."""

from __future__ import annotations

import random

import pytest

from components.shared.errors import InputError
from components.shared.statistics import cohen_kappa, krippendorff_alpha

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
