"""The length-controlled win rate recovers what was put in, and its bounds hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import norm
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM

from components.human_eval import length_control
from components.human_eval.length_control import length_controlled_win_rate


def _make_votes(
    rng: np.random.Generator, *, win_rate: float, effect: float, prompts: int, votes: int, ratio: float
) -> tuple[NDArray, NDArray, NDArray]:
    """Outcomes of answers `ratio` times as long, for raters whose log odds rise by `effect` a log length."""
    second = rng.integers(20, 80, prompts)
    first = np.maximum(1, (second * ratio * rng.lognormal(0.0, 0.4, prompts)).astype(int))
    log_odds = np.log(win_rate / (1.0 - win_rate)) + effect * np.log((first + 1) / (second + 1))
    return rng.binomial(votes, 1.0 / (1.0 + np.exp(-log_odds))) / votes, first, second


@pytest.mark.parametrize("votes", [1, 3])
@pytest.mark.parametrize(
    ("win_rate", "effect", "ratio"), [(0.5, 1.5, 1.6), (0.6, 1.0, 1.4), (0.45, 0.8, 2.0), (0.6, 0.0, 1.5)]
)
def test_a_known_length_effect_is_recovered_and_taken_out(
    win_rate: float, effect: float, ratio: float, votes: int
) -> None:
    """Mean over 60 evaluations: neither the win rate at equal length nor the effect is biased."""
    rng, found, raw = np.random.default_rng(0), [], []
    for _ in range(60):
        y, first, second = _make_votes(rng, win_rate=win_rate, effect=effect, prompts=400, votes=votes, ratio=ratio)
        found.append(length_controlled_win_rate(list(y), list(first), list(second), alpha=0.05))
        raw.append(y.mean())
    assert np.mean([one["win_rate"] for one in found]) == pytest.approx(win_rate, abs=0.015)
    assert np.mean([one["length_effect"] for one in found]) == pytest.approx(effect, abs=0.08)
    if effect:
        assert np.mean(raw) > win_rate + 0.03, "the plain win rate takes length for merit"


@pytest.mark.parametrize("votes", [1, 3])
def test_each_bound_fails_in_at_most_five_percent(votes: int) -> None:
    rng, runs, below, above = np.random.default_rng(1), 300, 0, 0
    for _ in range(runs):
        y, first, second = _make_votes(rng, win_rate=0.55, effect=1.0, prompts=200, votes=votes, ratio=1.4)
        found = length_controlled_win_rate(list(y), list(first), list(second), alpha=0.05)
        below += found["lower"] > 0.55
        above += found["upper"] < 0.55
    limit = 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
    assert below / runs <= limit
    assert above / runs <= limit


def test_a_win_that_only_length_explains_does_not_pass() -> None:
    """Equal models, one of them 1.6 times as long: the plain win rate is above 0.6."""
    rng, runs, passed = np.random.default_rng(2), 200, 0
    for _ in range(runs):
        y, first, second = _make_votes(rng, win_rate=0.5, effect=1.2, prompts=400, votes=3, ratio=1.6)
        passed += length_controlled_win_rate(list(y), list(first), list(second), alpha=0.05)["lower"] > 0.5
    assert passed / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


@dataclass(frozen=True)
class Panel:
    """Raters who differ, on slices that differ.

    Attributes:
        log_odds: Of the first-named role at equal length, for the average rater on the average slice.
        prompts: How many.
        raters: How many; three of them vote on each prompt.
        raters_differ: Standard deviation of their leaning to the first-named role, in log odds.
        slices_differ: Log odds by which each of the four slices lies above or below their average.
        confounded: How much longer (log) the first-named role's answers are where slices favour it; below 0: shorter.
    """

    log_odds: float = 0.0
    prompts: int = 200
    raters: int = 8
    raters_differ: float = 0.0
    slices_differ: float = 0.0
    confounded: float = 0.0

    def vote(self, rng: np.random.Generator) -> dict[str, Any]:
        """Arguments of `length_controlled_win_rate`; raters like an answer e times as long by one log odd."""
        side = np.array([1.0, -1.0, 1.0, -1.0])
        slices = rng.integers(0, 4, self.prompts)
        second = rng.integers(20, 80, self.prompts)
        ratio = 1.4 * np.exp(self.confounded * side[slices]) * rng.lognormal(0.0, 0.4, self.prompts)
        first = np.maximum(1, (second * ratio).astype(int))
        leaning = np.linspace(-1.0, 1.0, self.raters) * self.raters_differ * 3**0.5
        log_odds = self.log_odds + self.slices_differ * side[slices] + np.log((first + 1) / (second + 1))
        votes = []
        for of_prompt in log_odds:
            chosen = rng.choice(self.raters, 3, replace=False)
            won = rng.random(3) < 1.0 / (1.0 + np.exp(-of_prompt - leaning[chosen]))
            votes.append([(f"rater-{rater:02}", float(value)) for rater, value in zip(chosen, won, strict=True)])
        return {
            "outcomes": [float(np.mean([value for _, value in given])) for given in votes],
            "first_tokens": first.tolist(),
            "second_tokens": second.tolist(),
            "slices": [f"slice-{number}" for number in slices],
            "votes": votes,
            "alpha": 0.05,
        }


def _without_terms(given: dict[str, Any]) -> dict[str, Any]:
    return length_controlled_win_rate(**{**given, "slices": None, "votes": None})


@pytest.mark.parametrize("confounded", [-0.5, 0.0, 0.5])
def test_differing_raters_and_slices_do_not_make_equal_models_pass_or_fail(confounded: float) -> None:
    """Equal models; where one slice favours a model and its answers are longer there too, length alone misleads."""
    runs, passed, failed, plain = 120, 0, 0, []
    for seed in range(runs):
        panel = Panel(raters_differ=0.6, slices_differ=0.6, confounded=confounded)
        given = panel.vote(np.random.default_rng(seed))
        found = length_controlled_win_rate(**given)
        passed, failed = passed + (found["lower"] > 0.5), failed + (found["upper"] < 0.5)
        plain.append(_without_terms(given))
    limit = 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
    assert passed / runs <= limit
    assert failed / runs <= limit
    if confounded < 0.0:
        assert np.mean([one["lower"] > 0.5 for one in plain]) > 0.5, "without slice terms an equal model passes"
    if confounded > 0.0:
        assert np.mean([one["upper"] < 0.5 for one in plain]) > 0.5, "without slice terms an equal model fails"


def test_terms_cost_next_to_no_power_where_raters_and_slices_do_not_differ() -> None:
    runs, with_terms, without = 120, [], []
    for seed in range(runs):
        given = Panel(log_odds=0.3, prompts=150).vote(np.random.default_rng(seed))
        with_terms.append(length_controlled_win_rate(**given))
        without.append(_without_terms(given))
    assert np.mean([one["lower"] > 0.5 for one in without]) > 0.6
    power = [np.mean([one["lower"] > 0.5 for one in found]) for found in (with_terms, without)]
    assert power[0] >= power[1] - 0.05
    spread = [np.std([one["win_rate"] for one in found]) for found in (with_terms, without)]
    assert spread[0] <= 1.05 * spread[1]


def test_terms_find_who_leans_where_and_sum_to_zero() -> None:
    panel = Panel(prompts=3000, raters=4, raters_differ=0.6, slices_differ=0.5)
    found = length_controlled_win_rate(**panel.vote(np.random.default_rng(0)))
    slices, raters = (found["terms"][kind]["effects"] for kind in ("slice", "rater"))
    assert list(slices.values()) == pytest.approx([0.5, -0.5, 0.5, -0.5], abs=0.12)
    leaning = np.linspace(-1.0, 1.0, 4) * 0.6 * 3**0.5
    assert list(raters.values()) == pytest.approx(leaning.tolist(), abs=0.15)
    assert sum(slices.values()) == pytest.approx(0.0, abs=1e-9)
    assert sum(raters.values()) == pytest.approx(0.0, abs=1e-9)
    assert found["win_rate"] == pytest.approx(0.5, abs=0.03)
    assert found["length_effect"] == pytest.approx(1.0, abs=0.15)


def test_without_a_penalty_the_fit_is_that_of_statsmodels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coefficients of its GLM on the same votes; and, where there is one vote a prompt, its robust standard error."""
    monkeypatch.setattr(length_control, "_RIDGE", 0.0)
    given = Panel(raters=4, raters_differ=0.6, slices_differ=0.5).vote(np.random.default_rng(0))
    rows = [(n, rater, value) for n, of_prompt in enumerate(given["votes"]) for rater, value in of_prompt]
    lengths = np.log((np.array(given["first_tokens"]) + 1.0) / (np.array(given["second_tokens"]) + 1.0))
    columns = [np.ones(len(rows)), lengths[[n for n, _, _ in rows]]]
    columns += [np.array([given["slices"][n] == name for n, _, _ in rows], float) for name in ("slice-1", "slice-2")]
    columns += [np.array([given["slices"][n] == "slice-3" for n, _, _ in rows], float)]
    columns += [np.array([rater == f"rater-0{k}" for _, rater, _ in rows], float) for k in (1, 2, 3)]
    design, y = np.column_stack(columns), np.array([value for _, _, value in rows])
    fit = GLM(y, design, family=Binomial()).fit()
    design[:, 1] = 0.0
    found = length_controlled_win_rate(**given)
    assert found["length_effect"] == pytest.approx(fit.params[1], abs=1e-6)
    assert found["win_rate"] == pytest.approx(fit.predict(design).mean(), abs=1e-6)

    plain = _without_terms(given)
    design = np.column_stack([np.ones(len(lengths)), lengths])
    fit = GLM(np.array(given["outcomes"]), design, family=Binomial()).fit(cov_type="HC1")
    assert logit(plain["win_rate"]) == pytest.approx(fit.params[0], abs=1e-6)
    half = logit(plain["upper"]) - logit(plain["win_rate"])
    assert half == pytest.approx(norm.ppf(0.95) * fit.bse[0], rel=0.02)


def test_few_votes_are_pooled_and_named() -> None:
    """Raters with one vote each, a rare slice, and identical answers that nobody was asked about."""
    given = Panel(prompts=100, raters=4).vote(np.random.default_rng(1))
    for number in range(12):
        given["votes"][number][0] = (f"guest-{number:02}", given["votes"][number][0][1])
    given["slices"][:3] = ["rare"] * 3
    given["votes"][99], given["outcomes"][99] = [], 0.5
    found = length_controlled_win_rate(**given)
    assert found["reason"] is None
    assert found["terms"]["rater"]["pooled"] == [f"guest-{number:02}" for number in range(12)]
    assert list(found["terms"]["rater"]["effects"]) == [*(f"rater-0{number}" for number in range(4)), "(pooled)"]
    assert found["terms"]["slice"]["pooled"] == ["rare"]
    assert list(found["terms"]["slice"]["effects"]) == [f"slice-{number}" for number in range(4)]
    assert sum(found["terms"]["slice"]["effects"].values()) == pytest.approx(0.0, abs=1e-9)


def test_one_rater_and_one_slice_leave_the_plain_fit() -> None:
    given = Panel(prompts=100).vote(np.random.default_rng(1))
    given["slices"] = ["all"] * 100
    given["votes"] = [[("only", outcome)] for outcome in given["outcomes"]]
    found = length_controlled_win_rate(**given)
    assert found["terms"] == {kind: {"effects": {}, "pooled": []} for kind in ("slice", "rater")}
    assert found["lower"] == pytest.approx(_without_terms(given)["lower"])


def test_a_slice_won_throughout_and_a_rater_who_always_says_the_same_do_not_break_it() -> None:
    given = Panel(prompts=150, raters=5).vote(np.random.default_rng(2))
    for number, name in enumerate(given["slices"]):
        given["votes"][number] = [
            (rater, 1.0 if name == "slice-0" or rater == "rater-00" else value)
            for rater, value in given["votes"][number]
        ]
        given["outcomes"][number] = float(np.mean([value for _, value in given["votes"][number]]))
    found = length_controlled_win_rate(**given)
    assert found["reason"] is None
    assert 0.0 < found["lower"] < found["win_rate"] < found["upper"] < 1.0
    assert max(found["terms"]["slice"]["effects"], key=found["terms"]["slice"]["effects"].get) == "slice-0"
    assert found["upper"] - found["lower"] < 0.2


def test_the_order_of_votes_and_names_of_raters_change_nothing() -> None:
    given = Panel(prompts=120, raters_differ=0.5).vote(np.random.default_rng(3))
    renamed = {**given, "votes": [[(f"x{rater[::-1]}", value) for rater, value in one[::-1]] for one in given["votes"]]}
    first, second = length_controlled_win_rate(**given), length_controlled_win_rate(**renamed)
    assert second["lower"] == pytest.approx(first["lower"], abs=1e-7)
    assert length_controlled_win_rate(**given) == first
