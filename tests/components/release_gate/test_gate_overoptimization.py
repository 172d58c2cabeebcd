"""Gao's curve over a run's checkpoints: report only, and never in the way of a verdict."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_release import comparison, edit_case, make_case, make_evidence

from components.release_gate.evidence import Case
from components.release_gate.overoptimization import measure_overoptimization

KL = {"step-0010": 0.5, "step-0020": 2.0, "step-0030": 6.0, "step-0040": 15.0, "candidate": 30.0}
ALPHA, BETA = 0.9, 0.4


def _gain(kl: float) -> float:
    return math.sqrt(kl) * (ALPHA - BETA * math.log(math.sqrt(kl)))


def _make_case(root: Path, **more_edits: Any) -> Case:
    """Four checkpoints and a candidate that follow a curve with its peak at sqrt(KL) = exp(0.9 / 0.4 - 1)."""
    rng = np.random.default_rng(0)

    def models(found: dict[str, Any]) -> dict[str, Any]:
        return {**found, **{role: {"digest": role * 4, "step": 1, "name": role} for role in KL if role != "candidate"}}

    def metrics(found: dict[str, Any]) -> dict[str, Any]:
        return {
            role: {**found["candidate"], "kl": {"mean": kl, "se": 0.1, "per_token": 0.1}} for role, kl in KL.items()
        }

    def statistics(found: dict[str, Any]) -> dict[str, Any]:
        for role, kl in KL.items():
            wins = round(200 / (1.0 + math.exp(-_gain(kl))))
            found["comparisons"][f"{role}_vs_reference"] = comparison([1.0] * wins + [0.0] * (200 - wins))
        return found

    def generations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        base = [row for row in rows if row["role"] == "reference"]
        made = [
            {**row, "role": role, "heldout_reward": row["heldout_reward"] + 1.2 * _gain(kl) + rng.normal(0.0, 0.1)}
            for role, kl in KL.items()
            for row in base
        ]
        return base + made

    edits = {"models.json": models, "metrics.json": metrics, "statistics.json": statistics}
    return edit_case(make_case(make_evidence(root)), {**edits, "generations.jsonl": generations, **more_edits})


def test_the_curve_of_people_and_of_the_heldout_reward_is_found(tmp_path: Path) -> None:
    found = measure_overoptimization(_make_case(tmp_path))
    for name in ("human", "heldout"):
        assert [point["role"] for point in found[name]["points"]] == list(KL)
        low, high = found[name]["peak_kl_ci95"]
        assert low < math.exp(ALPHA / BETA - 1.0) ** 2 < (high or math.inf), name
    assert found["heldout"]["peak_kl"] == pytest.approx(math.exp(ALPHA / BETA - 1.0) ** 2, rel=0.05)
    assert found["heldout"]["alpha"] == pytest.approx(ALPHA, abs=0.03)


def test_too_few_checkpoints_are_said_and_invent_no_peak(tmp_path: Path) -> None:
    found = measure_overoptimization(make_case(make_evidence(tmp_path)))
    assert "at least 4" in found["human"]["reason"]
    assert found["human"]["peak_kl"] is None


@pytest.mark.parametrize("broken", [[0.1], None, "wide", [float("nan"), 0.5]])
def test_evidence_that_is_wrong_gives_a_reason_and_no_exception(tmp_path: Path, broken: Any) -> None:
    def spoil(found: dict[str, Any]) -> dict[str, Any]:
        found["comparisons"]["candidate_vs_reference"]["ci95"] = broken
        return found

    case = edit_case(_make_case(tmp_path), {"statistics.json": spoil})
    found = measure_overoptimization(case)["human"]
    assert found["reason"] or len(found["points"]) == 4


def test_a_policy_that_has_not_moved_is_no_point_of_the_curve(tmp_path: Path) -> None:
    def still(found: dict[str, Any]) -> dict[str, Any]:
        found["step-0010"]["kl"]["mean"] = -0.01
        return found

    case = edit_case(_make_case(tmp_path), {"metrics.json": still})
    assert [point["role"] for point in measure_overoptimization(case)["heldout"]["points"]] == list(KL)[1:]
