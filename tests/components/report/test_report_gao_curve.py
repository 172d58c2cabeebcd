from __future__ import annotations

from typing import Any

from components.report.gao_curve import gao_curve
from components.report.parts import Parts


def _make_curve(**overrides: Any) -> dict[str, Any]:
    points = [{"role": f"step-{i}", "d": 0.5 * i, "gain": 0.4 * i, "se": 0.1} for i in range(1, 6)]
    fit = {
        "alpha": 1.0,
        "beta": 0.3,
        "peak_kl": 3.7,
        "peak_kl_ci95": [2.0, None],
        "reason": "The peak has no upper end.",
    }
    return {"form": "rl", "n": 5, "points": points, **fit, **overrides}


def _page(**curves: Any) -> str:
    return "".join(gao_curve(Parts(decision={"mode": "candidate", "overoptimization": curves})))


def test_the_curve_is_drawn_with_its_peak_and_says_that_nothing_rests_on_it() -> None:
    page = _page(human=_make_curve())
    assert "<svg" in page
    assert "3.7" in page
    assert "no end" in page
    assert "report only" in page


def test_a_fit_that_could_not_be_made_says_why_and_draws_no_curve() -> None:
    why = "3 checkpoints, at least 4 are needed to fit the curve."
    page = _page(heldout=_make_curve(alpha=None, beta=None, peak_kl=None, peak_kl_ci95=None, points=[], reason=why))
    assert why in page
    assert "<svg" not in page


def test_without_a_curve_in_the_decision_there_is_nothing() -> None:
    assert gao_curve(Parts(decision={"mode": "candidate"})) == []
    assert gao_curve(Parts()) == []
