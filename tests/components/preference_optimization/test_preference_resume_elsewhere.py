"""Preference optimisation whose machine is lost goes on, on another one, with the policies kept along the way."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from tiny_preferences import make_artifacts, run_arguments

from components.preference_optimization.stage import run
from components.shared import hf_training
from components.shared.artifacts import read_artifact
from components.shared.hf_checkpoints import CHECKPOINTS_VARIABLE

OUTPUTS = {
    "output_policy": "policy",
    "output_checkpoints": "policy_checkpoints",
    "output_history": "training_history",
}
LONG = {"max_steps": 11, "save_every_steps": 2, "evaluate_every_steps": 3}


def test_a_training_interrupted_on_one_machine_goes_on_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: str, bucket_client: Any
) -> None:
    inputs = make_artifacts(tmp_path / "inputs")
    whole = run_arguments(tmp_path / "whole", "dpo", inputs=inputs, **LONG)
    run(**whole)
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, f"s3://{bucket}/checkpoints")
    resumed = run_arguments(tmp_path / "resumed", "dpo", inputs=inputs, **LONG)
    steps: list[int] = []

    def crash_at_seven(label: str, done: int, total: int, **_: Any) -> None:
        steps.append(done)
        if steps.count(7) == 1 and done == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(hf_training, "report", crash_at_seven)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "here"))
    with pytest.raises(KeyboardInterrupt):
        run(**resumed)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    run(**resumed)

    assert steps[6:9] == [7, 7, 8]
    for output, kind in OUTPUTS.items():
        assert read_artifact(resumed[output], kind).digest == read_artifact(whole[output], kind).digest
    assert "Contents" not in bucket_client.list_objects_v2(Bucket=bucket)
