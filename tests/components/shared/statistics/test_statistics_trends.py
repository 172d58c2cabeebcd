from __future__ import annotations

import numpy as np
import pytest

from components.shared.errors import InputError
from components.shared.statistics import mann_kendall_p


def test_a_sequence_that_only_falls_has_a_known_p_value() -> None:
    # S = -n (n - 1) / 2 = -45 of 10 values, variance n (n - 1) (2 n + 5) / 18 = 125: z = -45 / sqrt(125) = -4.02.
    assert mann_kendall_p(range(10, 0, -1)) == pytest.approx(2.85e-5, rel=0.01)
    assert mann_kendall_p(range(10)) > 0.9999


@pytest.mark.parametrize(("share", "n"), [(0.5, 20), (0.9, 20), (0.9, 200)])
def test_right_and_wrong_in_random_order_are_called_a_fall_in_at_most_five_percent(share: float, n: int) -> None:
    rng, runs = np.random.default_rng(0), 1000
    hits = sum(mann_kendall_p((rng.random(n) < share).astype(float)) <= 0.05 for _ in range(runs))
    assert hits / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


@pytest.mark.parametrize("values", [[1.0], [1.0, 0.0], [0.5] * 30])
def test_what_cannot_fall_has_p_one(values: list[float]) -> None:
    assert mann_kendall_p(values) == 1.0


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError):
        mann_kendall_p([])
    with pytest.raises(InputError):
        mann_kendall_p([0.0, float("nan"), 1.0])
