"""What a step used: measured on processes that really compute and hold memory, added up over attempts, priced."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.shared.tracking import pipeline_usage, stage_run
from components.shared.usage import Usage, UsageMeter, add_up, in_words, money, summarise

_BUSY = (
    "import time; held = b'x' * {bytes}; end = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"
)


@pytest.fixture(autouse=True)
def _no_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PLUMBLINE_PRICE_GPU_HOUR", "PLUMBLINE_PRICE_CPU_HOUR", "PLUMBLINE_CURRENCY"):
        monkeypatch.delenv(name, raising=False)


def _make_usage(**overrides: float) -> Usage:
    values = {"wall_hours": 1.0, "cpu_hours": 2.0, "gpu_hours": 4.0, "peak_memory_gib": 3.0, "peak_gpu_memory_gib": 9.0}
    return Usage(**{**values, **overrides})


def test_a_child_process_counts_with_its_seconds_and_its_memory() -> None:
    meter = UsageMeter()
    subprocess.run([sys.executable, "-c", _BUSY.format(bytes=2 * 2**30, seconds=0.5)], check=True)
    used = meter.read()
    assert 0.5 <= used.cpu_hours * 3600 < 10
    assert used.wall_hours * 3600 >= 0.5
    assert used.peak_memory_gib >= 2


def test_waiting_takes_wall_time_and_no_processor() -> None:
    meter = UsageMeter()
    time.sleep(0.3)
    used = meter.read()
    assert used.wall_hours * 3600 >= 0.3
    assert used.cpu_hours < used.wall_hours / 2


@pytest.mark.parametrize(
    ("visible", "count"), [("GPU-1,GPU-2", 2), ("GPU-1", 1), ("void", 0), ("none", 0), ("all", 0), ("", 0)]
)
def test_accelerators_are_counted_as_the_container_runtime_gives_them(
    visible: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", visible)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    used = UsageMeter().read()
    assert used.gpu_hours == pytest.approx(count * used.wall_hours)


def test_hours_are_summed_and_peaks_are_not() -> None:
    total = add_up([_make_usage(), _make_usage(peak_memory_gib=5.0)])
    assert total == _make_usage(wall_hours=2.0, cpu_hours=4.0, gpu_hours=8.0, peak_memory_gib=5.0)


def test_a_price_makes_a_cost_and_none_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert money(_make_usage()) is None
    monkeypatch.setenv("PLUMBLINE_PRICE_GPU_HOUR", "2.5")
    monkeypatch.setenv("PLUMBLINE_PRICE_CPU_HOUR", "0.05")
    monkeypatch.setenv("PLUMBLINE_CURRENCY", "EUR")
    assert money(_make_usage()) == (pytest.approx(10.1), "EUR")
    assert in_words(_make_usage()) == "4.00 GPU hours, 2.00 CPU hours, about 10.10 EUR"


@pytest.mark.parametrize("price", ["two", "nan", "inf", "-1"])
def test_a_malformed_price_is_told_and_fails_no_step(
    price: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PLUMBLINE_PRICE_GPU_HOUR", price)
    assert money(_make_usage()) is None
    assert "PLUMBLINE_PRICE_GPU_HOUR" in caplog.text


def test_a_pipeline_sums_its_attempts_and_says_how_many_could_not_tell(
    mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUMBLINE_RUN_ID", "run-1")
    killed = stage_run("ppo")
    killed.__enter__()
    with pytest.raises(ValueError, match="lost"), stage_run("ppo"):
        raise ValueError("lost")
    for stage in ("ppo", "evaluation"):
        with stage_run(stage):
            time.sleep(0.05)
    monkeypatch.setenv("PLUMBLINE_RUN_ID", "run-2")
    with stage_run("ppo"):
        pass
    monkeypatch.setenv("PLUMBLINE_RUN_ID", "run-1")

    attempts = pipeline_usage()

    assert [used is None for used in attempts["ppo"]] == [True, False, False]
    summary = summarise(attempts)
    assert summary is not None
    assert list(summary["steps"]) == ["ppo", "evaluation"]
    assert summary["unmeasured_attempts"] == 1
    assert summary["total"]["wall_hours"] * 3600 >= 0.1
    assert summary["cost"] is None


def test_without_a_tracking_server_nothing_is_known_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PLUMBLINE_RUN_ID", "run-1")
    assert summarise(pipeline_usage()) is None


def test_the_machine_is_sampled_where_mlflow_is_asked_to(mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with stage_run("sft") as run:
        time.sleep(1.0)
    metrics = MlflowClient().get_run(str(run.run_id)).data.metrics
    assert metrics["system/cpu_utilization_percentage"] >= 0
    assert "usage.wall_hours" in metrics
