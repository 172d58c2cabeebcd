"""Evidence that is missing, altered, or about something else."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_release import Evidence, edit_case, make_case, make_evidence

from components.release_gate.criteria import CRITERIA, judge_all
from components.release_gate.evidence import Case, Source, read_source
from components.release_gate.findings import Criterion, EvidenceFault, Finding

NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Of a good candidate, compared with a champion too."""
    return make_evidence(tmp_path_factory.mktemp("good"), champion_digest="c" * 64)


@pytest.fixture(scope="module")
def case(evidence: Evidence) -> Case:
    return make_case(evidence)


def _judge(case: Case, name: str, edits: dict[str, Callable[[Any], Any]] | None = None, **overrides: Any) -> Criterion:
    """One criterion on an edited case."""
    edited = replace(edit_case(case, edits or {}), **overrides)
    judge = next(judge for judge in CRITERIA if judge.__name__ == name.split(".")[0])
    return next(found for found in judge(edited) if found.name == name)


def _all(case: Case) -> dict[str, Criterion]:
    return {found.name: found for found in judge_all(case)}


def test_a_missing_artifact_holds_and_an_altered_one_is_an_error(evidence: Evidence, tmp_path: Path) -> None:
    missing = read_source("human_evidence", str(tmp_path / "nowhere"), "human_evidence")
    assert missing.fault is not None
    assert missing.fault.finding is Finding.HOLD
    copied = shutil.copytree(evidence.evidence, tmp_path / "evidence")
    with open(copied / "statistics.json", "a") as file:
        file.write(" ")
    altered = read_source("human_evidence", str(copied), "human_evidence")
    assert altered.fault is not None
    assert altered.fault.finding is Finding.ERROR
    assert "altered" in altered.fault.problem
    wrong_kind = read_source("human_evidence", evidence.evaluation, "human_evidence")
    assert wrong_kind.fault is not None
    assert wrong_kind.fault.finding is Finding.ERROR


def test_a_source_with_a_fault_lets_no_criterion_pass_that_reads_it(case: Case) -> None:
    gone = Source("human_evidence", fault=EvidenceFault(Finding.HOLD, "There is none.", source="human_evidence"))
    found = _all(replace(case, human=gone))
    for name in ("human_preference.reference", "divergence.harm", "length_style", "safety.share", "raters.kind"):
        assert found[name].verdict is Finding.HOLD
        assert found[name].reason == "There is none."


def test_evidence_about_another_model_is_an_error_everywhere(tmp_path: Path) -> None:
    found = _all(make_case(make_evidence(tmp_path, candidate_digest="0" * 64)))
    for name in ("kl.sequence", "divergence.harm", "human_preference.reference", "safety.share"):
        assert found[name].verdict is Finding.ERROR, name
    assert "another model" in found["kl.sequence"].reason


def test_another_reference_than_the_candidate_was_trained_from_is_an_error_everywhere(tmp_path: Path) -> None:
    found = _all(make_case(make_evidence(tmp_path, reference_digest="w" * 64, trained_from="s" * 64)))
    for name in ("kl.sequence", "divergence.harm", "human_preference.reference", "safety.share"):
        assert found[name].verdict is Finding.ERROR, name
    assert "reference has digest wwwwwwwwwwww, but ssssssssssss is the baseline" in found["kl.sequence"].reason


def test_an_evaluation_without_the_digest_of_its_reference_does_not_pass(tmp_path: Path) -> None:
    def forget(models: Any) -> Any:
        del models["reference"]["digest"]
        return models

    found = _all(make_case(make_evidence(tmp_path, edits={"models.json": forget})))
    assert found["human_preference.reference"].verdict is Finding.HOLD


@pytest.mark.parametrize(
    ("exchanged", "name", "words"),
    [
        ("evidence", "human_preference.reference", "other answers"),
        ("reward_model", "reward_model.accuracy", "not scored by this"),
        ("heldout_reward_model", "reward_model.heldout_model", "not scored by this"),
    ],
)
def test_evidence_of_another_run_is_an_error(
    evidence: Evidence, other: Evidence, exchanged: str, name: str, words: str
) -> None:
    found = _judge(make_case(replace(evidence, **{exchanged: getattr(other, exchanged)})), name)
    assert found.verdict is Finding.ERROR
    assert words in found.reason


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return make_evidence(tmp_path_factory.mktemp("other"), seed=5)


def test_the_optimised_reward_model_cannot_be_its_own_watchdog(evidence: Evidence) -> None:
    same = replace(evidence, heldout_reward_model=evidence.reward_model)
    found = _judge(make_case(same), "divergence.heldout_peak")
    assert found.verdict is Finding.ERROR
    assert "optimised" in found.reason
