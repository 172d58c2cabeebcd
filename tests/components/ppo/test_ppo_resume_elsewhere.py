"""A stage whose machine dies goes on, on another one, from what it published to object storage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_ppo import run_arguments

from components.ppo.stage import run
from components.shared.artifacts import read_artifact
from components.shared.files import read_jsonl

LONG = {"steps": 16, "episodes_per_step": 4, "ppo_epochs": 1, "save_every_steps": 2, "evaluate_every_steps": 3}
OUTPUTS = {"output_policy": "policy", "output_checkpoints": "policy_checkpoints"}
LEASE_SECONDS = 6

SCRIPT = f"""
import json, sys
from components.shared import lease
lease.LEASE_SECONDS = {LEASE_SECONDS}
from components.ppo.stage import run
run(**json.loads(sys.argv[1]))
"""


def test_a_stage_killed_on_one_machine_resumes_on_another_to_the_same_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: str, bucket_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run_arguments(tmp_path / "whole", **LONG)
    run(**whole)
    monkeypatch.setenv("PLUMBLINE_CHECKPOINTS", f"s3://{bucket}/checkpoints")
    arguments = run_arguments(tmp_path, **LONG)
    (here := tmp_path / "here").mkdir()
    (elsewhere := tmp_path / "elsewhere").mkdir()

    _run_until_killed(arguments, here, bucket, bucket_client)

    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    with caplog.at_level("INFO"):
        run(**arguments)
    assert "resuming after step" in caplog.text
    assert "no sign of life for" in caplog.text
    for output, kind in OUTPUTS.items():
        assert read_artifact(arguments[output], kind).digest == read_artifact(whole[output], kind).digest
    assert _history(arguments) == _history(whole)
    assert "Contents" not in bucket_client.list_objects_v2(Bucket=bucket), "nothing is left when training has ended"
    assert not list(elsewhere.glob("plumbline-*/*"))


def test_several_processes_save_together_and_resume_on_another_machine(
    tmp_path: Path, bucket: str, bucket_client: Any
) -> None:
    arguments = run_arguments(tmp_path, **LONG, processes=2)
    command = [sys.executable, "-c", SCRIPT, json.dumps(arguments)]
    environment = os.environ | {"PLUMBLINE_CHECKPOINTS": f"s3://{bucket}/checkpoints", "OMP_NUM_THREADS": "1"}
    for machine in ("here", "elsewhere"):
        (tmp_path / machine).mkdir()
    process = subprocess.Popen(command, env=environment | {"TMPDIR": str(tmp_path / "here")})
    while not any("/published/000003" in key for key in _keys(bucket_client, bucket)):
        assert process.poll() is None, "the stage ended before it could be stopped"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    assert not any("/lease/" in key for key in _keys(bucket_client, bucket))

    finished = subprocess.run(
        command,
        env=environment | {"TMPDIR": str(tmp_path / "elsewhere")},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )

    assert "resuming after step" in finished.stderr
    assert [row["step"] for row in _history(arguments)] == list(range(1, LONG["steps"] + 1))
    assert not _keys(bucket_client, bucket)


def _run_until_killed(arguments: dict[str, Any], machine: Path, bucket: str, client: Any) -> None:
    """Starts the stage in a process of its own and kills it once a few checkpoints are published."""
    environment = os.environ | {"TMPDIR": str(machine)}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, json.dumps(arguments)], env=environment)
    while not any("/published/000003" in key for key in _keys(client, bucket)):
        assert process.poll() is None, "the stage ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert any("/lease/" in key for key in _keys(client, bucket)), "the dead do not give their lease back"


def _keys(client: Any, bucket: str) -> list[str]:
    return [item["Key"] for item in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def _history(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    rows = read_jsonl(Path(arguments["output_history"]) / "history.jsonl")
    return [{key: row[key] for key in row if key not in ("seconds", "tokens_per_second")} for row in rows]
