from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tied_votes import TIES, People, make_gap
from tiny_release import PROMPTS, comparison, edit_case, make_case, make_evidence, make_policy

from components.release_gate.criteria import judge_all
from components.release_gate.divergence import heldout_fall, measure_gain, measure_gap, refit_slopes
from components.release_gate.evidence import Case
from components.release_gate.findings import Finding
from components.release_gate.verdict import Verdict, decide
from components.shared.statistics import logistic_slope


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def test_a_perfect_reward_with_noisy_people_shows_no_gap(tmp_path: Path) -> None:
    """The raw share of pairs that the reward ranks first is far above people's; calibrated, there is no gap."""
    case = make_case(make_evidence(tmp_path))
    found = measure_gap(case)
    rows = [row for row in case.evaluation.rows("generations.jsonl") if row["role"] == "candidate"]
    raw = np.mean([row["reward"] > 0 for row in rows])
    assert raw - found.human_win_rate > 0.1
    assert found.ci95[0] < 0.0 < found.ci95[1]
    assert found.gap == pytest.approx(found.reward_win_rate - found.human_win_rate)


def test_the_slope_is_that_of_the_shared_fit(tmp_path: Path) -> None:
    case = make_case(make_evidence(tmp_path))
    differences = [row["chosen_reward"] for row in case.reward_model.rows("predictions.jsonl")]
    assert measure_gap(case).slope == pytest.approx(logistic_slope(differences))
    assert measure_gap(case).slope == pytest.approx(1.0, abs=0.35)


def test_refitted_slopes_agree_with_the_shared_fit_on_the_same_sample() -> None:
    rng = np.random.default_rng(3)
    differences = rng.normal(0.5, 1.0, 60)
    clusters = [f"c{i // 3}" for i in range(60)]
    slopes = refit_slopes(differences, clusters, draws=5, rng=np.random.default_rng(7))
    weights = np.random.default_rng(7).multinomial(20, np.full(20, 1 / 20), size=5)
    order = {name: place for place, name in enumerate(sorted(set(clusters)))}
    for draw, slope in enumerate(slopes):
        sample = [d for d, c in zip(differences, clusters, strict=True) for _ in range(weights[draw][order[c]])]
        assert slope == pytest.approx(logistic_slope(sample), rel=2e-2)


def test_refitted_slopes_spread_like_the_standard_error() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0.0, 1.5, 800)
    differences = np.where(rng.random(800) < _sigmoid(x), x, -x)
    slopes = refit_slopes(differences, [str(i) for i in range(800)], draws=400, rng=rng)
    p = _sigmoid(differences * logistic_slope(differences))
    expected = 1.0 / np.sqrt(np.sum(differences**2 * p * (1 - p)))
    assert slopes.std() == pytest.approx(expected, rel=0.25)


def test_separable_pairs_have_finite_slopes() -> None:
    slopes = refit_slopes(
        np.linspace(0.1, 2.0, 50), [str(i) for i in range(50)], draws=20, rng=np.random.default_rng(0)
    )
    assert np.isfinite(slopes).all()
    assert (slopes > 0).all()


def test_clusters_are_drawn_whole() -> None:
    """Two clusters of opposite sign: a draw holds whole clusters, so that three slopes are possible and no others."""
    differences = np.array([1.0, 1.1, -1.0, -1.1])
    slopes = refit_slopes(differences, ["a", "a", "b", "b"], draws=200, rng=np.random.default_rng(0))
    assert len(np.unique(slopes.round(3))) == 3


def test_reward_up_and_people_down_is_harm(tmp_path: Path) -> None:
    case = make_case(make_evidence(tmp_path, story="overoptimized"))
    found = measure_gain(case)
    assert found.gain_lower > 0.0
    assert found.human.upper < 0.5
    assert measure_gap(case).ci95[0] > 0.1


@pytest.mark.parametrize("ties", TIES)
def test_ties_make_no_gap_where_people_follow_the_reward(ties: str) -> None:
    """However often people tie, and on which pairs: the gap has mean 0 and its lower bound fails at its 2.5 %."""
    runs = 50
    made = [make_gap(People(ties=TIES[ties]), seed, draws=100) for seed in range(runs)]
    gaps, lows = np.array([found.gap for found, _ in made]), np.array([found.ci95[0] for found, _ in made])
    assert abs(gaps.mean()) < 3 * gaps.std() / runs**0.5 + 0.002
    assert (lows > 0.0).mean() <= 0.025 + 3 * (0.025 * 0.975 / runs) ** 0.5
    assert not (lows > 0.1).any()
    if ties != "no ties":
        assert np.mean([raw for _, raw in made]) > 0.05, "a tie as half a win would look like a gap"


@pytest.mark.parametrize("ties", TIES)
def test_a_real_parting_is_found_however_often_people_tie(ties: str) -> None:
    found = [make_gap(People(lead=1.2, follow=-0.5, ties=TIES[ties]), seed, draws=100)[0] for seed in range(6)]
    assert all(one.ci95[0] > 0.1 for one in found)


def _tied(case: Case, share: float, *, votes: int = 2) -> Case:
    """The case with so many prompts on which everybody called a tie."""

    def tie(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        mine = [row for row in rows if row["comparison"] == "candidate_vs_reference"]
        for row in mine[: round(share * PROMPTS)]:
            row |= {"outcome": 0.5, "n_votes": votes, "n_decided": 0}
        return rows

    def recount(statistics: dict[str, Any]) -> dict[str, Any]:
        mine = tie(copy.deepcopy(case.human.rows("outcomes.jsonl")))
        values = [row["outcome"] for row in mine if row["comparison"] == "candidate_vs_reference"]
        statistics["comparisons"]["candidate_vs_reference"] = comparison(values)
        return statistics

    return edit_case(case, {"outcomes.jsonl": tie, "statistics.json": recount})


def test_the_gap_is_of_decided_votes_and_says_so(tmp_path: Path) -> None:
    case = _tied(make_case(make_evidence(tmp_path)), 0.4)
    found = measure_gap(case)
    assert (found.n_prompts, found.decided_share) == (180, pytest.approx(0.6))
    assert found.human_win_rate > measure_gain(case).human.win_rate + 0.03
    said = next(one for one in judge_all(case) if one.name == "divergence.gap")
    assert said.verdict is Finding.PASS
    assert "40.0 % are ties" in said.reason
    assert said.n == 180


def test_too_few_decided_prompts_hold_and_harm_is_judged_all_the_same(tmp_path: Path) -> None:
    """Ties leave the gap without evidence; that the reward is up and people are down needs none of it."""
    case = _tied(make_case(make_evidence(tmp_path, story="overoptimized")), 0.7)
    found = {one.name: one for one in judge_all(case)}
    assert found["divergence.gap"].verdict is Finding.HOLD
    assert "people decided 90, 100 are needed" in found["divergence.gap"].reason
    assert found["divergence.harm"].verdict is Finding.BLOCK


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ({"n_decided": None}, Finding.HOLD),
        ({"n_decided": 2}, Finding.ERROR),
        ({"n_decided": -1}, Finding.ERROR),
        ({"n_votes": 2, "n_decided": 1}, Finding.ERROR),
        ({"n_votes": 0, "n_decided": 0}, Finding.ERROR),
        ({"n_decided": 0}, Finding.ERROR),
        ({"n_votes": None}, Finding.ERROR),
    ],
)
def test_votes_that_do_not_add_up_are_no_evidence(tmp_path: Path, row: dict[str, Any], verdict: Finding) -> None:
    def spoil(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[0] |= row
        return rows

    case = edit_case(make_case(make_evidence(tmp_path)), {"outcomes.jsonl": spoil})
    found = {one.name: one.verdict for one in judge_all(case)}
    assert found["divergence.gap"] is found["reward_model.current_pairs"] is verdict


def test_ties_do_not_make_the_reward_look_as_if_it_had_lost_its_footing(tmp_path: Path) -> None:
    """Three votes a prompt, one of them a tie: as half a win it would pull the accuracy towards 1/2."""
    case = make_case(make_evidence(tmp_path))

    def one_ties(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            if row["comparison"] == "candidate_vs_reference":
                row |= {"outcome": (2.0 * row["outcome"] + 0.5) / 3.0, "n_votes": 3, "n_decided": 2}
        return rows

    def recount(statistics: dict[str, Any]) -> dict[str, Any]:
        rows = one_ties(copy.deepcopy(case.human.rows("outcomes.jsonl")))
        values = [row["outcome"] for row in rows if row["comparison"] == "candidate_vs_reference"]
        statistics["comparisons"]["candidate_vs_reference"] = comparison(values)
        return statistics

    tied = edit_case(case, {"outcomes.jsonl": one_ties, "statistics.json": recount})
    before, after = (
        next(one for one in judge_all(judged) if one.name == "reward_model.current_pairs") for judged in (case, tied)
    )
    assert after.value == before.value
    assert after.interval == pytest.approx(before.interval)


def test_people_down_with_the_reward_is_not_divergence(tmp_path: Path) -> None:
    def lower(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            if row["role"] == "candidate":
                row["reward"] = -row["reward"] - 1.0
        return rows

    case = make_case(make_evidence(tmp_path, story="overoptimized", edits={"generations.jsonl": lower}))
    found = {one.name: one for one in judge_all(case)}
    assert found["divergence.harm"].verdict is Finding.PASS
    assert found["human_preference.reference"].verdict is Finding.BLOCK


def test_the_verdict_follows_the_votes_alone(tmp_path: Path) -> None:
    """One candidate, one evaluation; only what people said differs."""

    def liked(statistics: dict[str, Any]) -> dict[str, Any]:
        statistics["comparisons"]["candidate_vs_reference"] = comparison([1.0, 1.0, 0.0] * (PROMPTS // 3))
        return statistics

    def likes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        mine = [row for row in rows if row["comparison"] == "candidate_vs_reference"]
        for place, row in enumerate(mine):
            row["outcome"] = [1.0, 1.0, 0.0][place % 3]
        return rows

    edits = {"statistics.json": liked, "outcomes.jsonl": likes}
    good_heldout = {"generations.jsonl": _flat_heldout}
    disliked = make_evidence(tmp_path / "a", story="overoptimized", edits=good_heldout)
    praised = make_evidence(tmp_path / "b", story="overoptimized", edits={**good_heldout, **edits})
    case = make_case(praised)
    assert case.evaluation.digest == make_case(disliked).evaluation.digest
    found = {one.name: one for one in judge_all(case)}
    assert found["divergence.harm"].verdict is Finding.PASS
    assert found["divergence.gap"].verdict is Finding.PASS
    assert decide(judge_all(make_case(disliked)), live=False).verdict is Verdict.BLOCK
    assert decide(judge_all(case), live=False).verdict is Verdict.PROMOTE


def _flat_heldout(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        row["heldout_reward"] = 0.5 if row["role"] == "candidate" else 0.0
    return rows


def test_the_fall_is_measured_from_the_peak_on_common_prompts(tmp_path: Path) -> None:
    def fewer(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if not row["role"].startswith("step-") or int(row["prompt_id"][1:]) < 60]

    case = make_case(make_evidence(tmp_path, story="overoptimized", edits={"generations.jsonl": fewer}))
    fall = heldout_fall(case)
    assert fall is not None
    assert (fall.peak, fall.n, fall.checkpoints) == ("step-0030", 60, 2)
    assert fall.value == pytest.approx(1.5, abs=0.15)
    assert fall.lower < fall.value < fall.upper


def _with_heldout(values: np.ndarray, case: Case) -> Case:
    """The case with held-out rewards of its own: a row a prompt, a column a role in the order of training."""
    roles = ["step-0010", "step-0030", "candidate"]

    def replace(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            if row["role"] in roles:
                row["heldout_reward"] = float(values[int(row["prompt_id"][1:]), roles.index(row["role"])])
        return rows

    return edit_case(case, {"generations.jsonl": replace})


def test_equal_checkpoints_raise_no_alarm(tmp_path: Path) -> None:
    """The highest of several equal checkpoints looks like a peak: the detector pays for having chosen it."""
    case, alarms = make_case(make_evidence(tmp_path)), 0
    for seed in range(20):
        fall = heldout_fall(_with_heldout(np.random.default_rng(100 + seed).normal(size=(PROMPTS, 3)), case))
        assert fall is not None
        alarms += fall.alarm is not None
    assert alarms <= 3


def test_a_dip_that_training_made_good_is_told_and_does_not_block(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(PROMPTS, 3)) * 0.3 + np.array([1.0, 0.5, 1.1])
    case = _with_heldout(values, make_case(make_evidence(tmp_path)))
    found = next(one for one in judge_all(case) if one.name == "divergence.heldout_peak")
    assert found.verdict is Finding.PASS
    assert "a fall was shown at step-0030, before it rose again" in found.reason


def test_checkpoints_are_taken_in_the_order_of_training(tmp_path: Path) -> None:
    """`step-10000` comes after `step-9000`, and a rise between them is not a fall."""

    def rename(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        names = {"step-0010": "step-9000", "step-0030": "step-10000"}
        return [{**row, "role": names.get(row["role"], row["role"])} for row in rows]

    def rename_models(models: dict[str, Any]) -> dict[str, Any]:
        models["step-9000"], models["step-10000"] = models.pop("step-0010"), models.pop("step-0030")
        return models

    edits = {"generations.jsonl": rename, "models.json": rename_models}
    fall = heldout_fall(edit_case(make_case(make_evidence(tmp_path)), edits))
    assert fall is not None
    assert (fall.alarm, fall.peak) == (None, "step-10000")


def test_a_fall_within_the_margin_of_the_policy_does_not_block(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path, story="overoptimized")
    lenient = make_case(evidence, policy=make_policy(divergence={"heldout_fall_margin": 2.0}))
    verdicts = [
        next(one.verdict for one in judge_all(case) if one.name == "divergence.heldout_peak")
        for case in (make_case(evidence), lenient)
    ]
    assert verdicts == [Finding.BLOCK, Finding.PASS]
