"""Retraining on this machine, for real: trains when something is new, ends in seconds when nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_run import latest_summary, make_small_world, plumbline, small_settings, write_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.xdist_group("local_run")]


def _retrain(folder: Path, settings: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    write_settings(folder / "run.yaml", settings)
    result = plumbline("retrain", "--settings", "run.yaml", "--workspace", "elsewhere", "--json", cwd=folder)
    assert result.stdout, result.stderr
    return result.returncode, json.loads(result.stdout)


def test_a_failed_run_does_not_count_the_next_trains_a_third_ends_in_seconds_and_new_data_trains_again(
    tmp_path: Path,
) -> None:
    world = make_small_world(tmp_path / "world")
    settings = small_settings(world, tmp_path / "runs", ppo={"steps": 1})
    strict = small_settings(world, tmp_path / "runs", ppo={"steps": 1})
    strict["reward_model"]["checks"]["min_accuracy_lower_bound"] = 0.999

    status, failed = _retrain(tmp_path, strict)
    assert (status, failed["failure"]["stage"]) == (1, "reward_model_check")

    status, trained = _retrain(tmp_path, settings)
    assert status == 0
    assert trained["verdict"] in {"PROMOTE", "HOLD", "BLOCK"}

    status, nothing_new = _retrain(tmp_path, settings)
    assert (status, nothing_new["status"], nothing_new["verdict"]) == (0, "SUCCEEDED", None)
    assert set(nothing_new["seconds"]) <= {"new_data", "finish", "total"}
    assert nothing_new["seconds"]["total"] < trained["seconds"]["total"] / 2

    preferences = world / "preferences.jsonl"
    preferences.write_text("".join(preferences.read_text().splitlines(keepends=True)[:-5]))
    status, again = _retrain(tmp_path, strict)
    assert (status, again["failure"]["stage"]) == (1, "reward_model_check"), "it went on to train"
    assert latest_summary(tmp_path / "elsewhere")["status"] == "FAILED", "--workspace is heeded"
    assert not (tmp_path / "runs").exists()
