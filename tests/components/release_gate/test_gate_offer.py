"""An earlier checkpoint is offered when the candidate fails, and the choice among several is paid for."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_release import comparison, make_case, make_evidence, make_policy

from components.release_gate.criteria import judge_all
from components.release_gate.findings import Criterion, Finding
from components.release_gate.offer import ALPHA, Offer, choose, offer_checkpoint
from components.shared.statistics import betting_p_value

CHECKPOINTS = 6
SCREENED = 60
"""Prompts a checkpoint, the default of `human_eval.checkpoint_prompts`."""
FRESH = 150
RUNS = 400


def _offer(root: Path, *, policy: Any = None, criteria: list[Criterion] | None = None, **evidence: Any) -> Offer:
    case = make_case(make_evidence(root, **evidence), policy=policy or make_policy())
    return offer_checkpoint(case, judge_all(case) if criteria is None else criteria, run="demo-1")


def _checkpoint(role: str, values: list[float]) -> dict[str, Any]:
    """Edits that put a further checkpoint's comparison into the evidence."""

    def statistics(content: Any) -> Any:
        content["comparisons"][f"{role}_vs_reference"] = comparison(values)
        return content

    def outcomes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        name = f"{role}_vs_reference"
        rows = [row for row in rows if row["comparison"] != name]
        return rows + [{"comparison": name, "prompt_id": f"p{i}", "outcome": value} for i, value in enumerate(values)]

    return {"statistics.json": statistics, "outcomes.jsonl": outcomes}


def test_a_checkpoint_that_people_prefer_is_offered_with_the_command_that_takes_it(tmp_path: Path) -> None:
    offer = _offer(tmp_path, story="overoptimized", edits=_checkpoint("step-0030", [1.0, 0.0] * 30))
    assert (offer.state, offer.step) == ("shown", 10)
    assert offer.command == "plumbline release-checkpoint --run demo-1 --checkpoint 10"
    assert offer.prompts == 100
    assert "paid for a choice among 2" in offer.reason
    assert "fresh prompts" in offer.reason
    by_role = {one.role: one for one in offer.checkpoints}
    assert by_role["step-0010"].p_holm == pytest.approx(2 * by_role["step-0010"].p)
    assert set(offer.as_dict()) >= {"state", "step", "prompts", "command", "reason", "checkpoints", "alpha"}


def test_a_checkpoint_that_only_looks_better_is_promising_and_says_how_many_votes_it_needs(tmp_path: Path) -> None:
    edits = _checkpoint("step-0010", [1.0, 1.0, 1.0, 0.0, 0.0] * 12)
    offer = _offer(tmp_path, story="overoptimized", edits=edits)
    assert (offer.state, offer.step) == ("promising", 10)
    assert "not shown" in offer.reason
    assert offer.prompts == 149, "ln 20 over the growth of the best bet on 60 %"


@pytest.mark.parametrize("values", [[0.5] * 60, [0.0, 1.0] * 30, [0.0] * 60])
def test_a_checkpoint_that_people_do_not_prefer_is_not_offered(tmp_path: Path, values: list[float]) -> None:
    offer = _offer(tmp_path, story="overoptimized", edits=_checkpoint("step-0010", values))
    assert (offer.state, offer.step, offer.command) == ("none", None, "")


@pytest.mark.parametrize("name", ["raters.complete", "raters.kind", "raters.quality", "reward_model.attacks"])
@pytest.mark.parametrize("finding", [Finding.HOLD, Finding.ERROR, Finding.BLOCK])
def test_what_is_wrong_with_the_evidence_or_the_reward_model_is_wrong_for_every_checkpoint(
    tmp_path: Path, name: str, finding: Finding
) -> None:
    offer = _offer(tmp_path, story="overoptimized", criteria=[Criterion(name, finding, "Wrong.")])
    assert offer.state == "none"
    assert name in offer.reason


def test_a_checkpoint_beyond_the_ceiling_or_with_a_severe_answer_is_looked_at_and_not_offered(tmp_path: Path) -> None:
    def far(metrics: Any) -> Any:
        return metrics | {"step-0010": {"kl": {"mean": 31.0}}}

    def severe(statistics: Any) -> Any:
        statistics["safety"]["step-0010"] = {"n": 60, "bad": 1, "severity_1": 1}
        return statistics

    for name, edits in (("far", {"metrics.json": far}), ("severe", {"statistics.json": severe})):
        offer = _offer(tmp_path / name, story="overoptimized", edits=edits)
        assert offer.state == "none", name
        assert len(offer.checkpoints) == 1
        assert offer.checkpoints[0].excluded in offer.reason


def test_the_candidates_own_step_is_no_earlier_checkpoint(tmp_path: Path) -> None:
    offer = _offer(tmp_path, story="overoptimized", edits=_checkpoint("step-0060", [1.0] * 60))
    assert [one.role for one in offer.checkpoints] == ["step-0010"]


def test_evidence_that_contradicts_itself_offers_nothing(tmp_path: Path) -> None:
    def lie(statistics: Any) -> Any:
        statistics["comparisons"]["step-0010_vs_reference"]["win_rate"] = 0.99
        return statistics

    offer = _offer(tmp_path, story="overoptimized", edits={"statistics.json": lie})
    assert offer.state == "none"
    assert "outcomes say otherwise" in offer.reason


def _run(rng: np.random.Generator, rates: list[float]) -> dict[str, list[float]]:
    """Votes on one run's checkpoints, on the same prompts: what is easy for one is easy for all."""
    ease = rng.normal(0.0, 1.0, SCREENED)
    found = {}
    for number, rate in enumerate(rates):
        own = 1.0 / (1.0 + np.exp(-(ease * 0.7 + rng.normal(0.0, 0.7, SCREENED))))
        wins = np.clip(own + (rate - own.mean()), 0.0, 1.0) if rate != 0.5 else own
        found[f"step-{10 * (number + 1):04d}"] = (rng.random(SCREENED) < wins).astype(float).tolist()
    return found


def _allowed(share: float, runs: int) -> float:
    """A share, and three standard errors of its simulation."""
    return share + 3.0 * math.sqrt(share * (1.0 - share) / runs)


@pytest.fixture
def without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The offer's bounds are for the reader and decide nothing; a thousand of them take minutes."""
    unused = SimpleNamespace(lower=0.0)
    monkeypatch.setattr("components.release_gate.offer.betting_confidence_sequence", lambda *_, **__: unused)


def test_of_runs_whose_checkpoints_equal_the_reference_few_show_one_and_few_pass_on_fresh_prompts(
    without_bounds: None,
) -> None:
    """Whoever took the best one at face value would pass several times as many."""
    rng = np.random.default_rng(7)
    shown, passed, naive = 0, 0, 0
    for _ in range(RUNS):
        outcomes = _run(rng, [0.5] * CHECKPOINTS)
        offer = choose(outcomes, {}, min_prompts=100, run="r")
        shown += offer.state == "shown"
        naive += any(one.p < ALPHA for one in offer.checkpoints)
        if offer.step is not None:  # taken in every case, also where it only looks better
            fresh = (rng.random(FRESH) < 0.5).astype(float).tolist()
            passed += betting_p_value(fresh) < ALPHA  # at any moment: more often than the bound at the end
    assert shown / RUNS <= _allowed(ALPHA, RUNS), shown
    assert passed / RUNS <= _allowed(ALPHA, RUNS), passed
    assert naive / RUNS > _allowed(ALPHA, RUNS), "else the correction would not be needed"


def test_the_one_checkpoint_that_is_better_is_the_one_that_is_offered(without_bounds: None) -> None:
    rng = np.random.default_rng(3)
    found = [choose(_run(rng, [0.5, 0.5, 0.8, 0.5, 0.5, 0.5]), {}, min_prompts=100, run="r") for _ in range(40)]
    assert sum(offer.step == 30 for offer in found) >= 38
    assert sum(offer.state == "shown" for offer in found) >= 30
