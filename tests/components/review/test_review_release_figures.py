"""What the service tells Prometheus of releases, and that every alert of the production overlay stands on it."""

from __future__ import annotations

import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from review_world import Client, make_service, open_batch

from components.human_eval.database import EvidenceDatabase
from components.release_gate.office import Office, open_office
from components.release_gate.releases import JudgedRelease, record_live_verdict
from components.release_gate.verdict import Verdict
from components.review.release_metrics import ReleaseMetrics
from components.shared.errors import PlumblineError

sys.path.append(str(Path(__file__).parents[1] / "release_gate"))

from tiny_office import judge_weights, release_weights
from tiny_release import MODEL, make_policy

RULES = Path(__file__).parents[3] / "k8s" / "overlays" / "prod" / "monitoring.yaml"


@pytest.fixture
def office(mlflow_store: str, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Office:
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return open_office()


def test_a_champion_that_the_registry_serves_is_told_as_served_and_a_lost_alias_is_not(
    office: Office, tmp_path: Path
) -> None:
    metrics = ReleaseMetrics(lambda: office, registry_seconds=0.0)
    release_weights(office, tmp_path, "first")
    assert _settled(metrics)["plumbline_release_champion_served"] == {(MODEL,): 1.0}
    office.registry.set_alias(MODEL, "champion", None)
    assert _settled(metrics)["plumbline_release_champion_served"] == {(MODEL,): 0.0}
    assert _settled(metrics)["plumbline_release_registry_up"] == {(): 1.0}
    office.sync_aliases(MODEL)
    assert _settled(metrics)["plumbline_release_champion_served"] == {(MODEL,): 1.0}


def test_a_registry_that_hangs_is_down_and_one_thread_waits_for_it(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_weights(office, tmp_path, "first")
    answers, asked = threading.Event(), []

    def hang(_registry: object, model: str) -> dict[str, str]:
        asked.append(model)
        answers.wait(30)
        return {"champion": "1"}

    monkeypatch.setattr("components.release_gate.registry.Registry.aliases", hang)
    metrics = ReleaseMetrics(lambda: office, registry_seconds=0.0)
    for _ in range(5):
        figures = _read(metrics)
    assert len(asked) == 1
    assert figures["plumbline_release_registry_up"] == {(): 0.0}
    answers.set()


def test_a_model_that_never_was_live_misses_no_champion(office: Office, tmp_path: Path) -> None:
    judge_weights(office, tmp_path, "candidate", verdict=Verdict.HOLD)
    figures = _settled(ReleaseMetrics(lambda: office, registry_seconds=0.0))
    assert figures["plumbline_release_champion_served"] == {}
    assert figures["plumbline_releases"][MODEL, "HELD"] == 1.0


def test_an_error_of_the_gate_shows_until_it_judges_again_and_only_on_what_somebody_waits_for(
    office: Office, tmp_path: Path
) -> None:
    metrics = ReleaseMetrics(lambda: office)
    first = judge_weights(office, tmp_path, "first", verdict=Verdict.ERROR)
    assert _read(metrics)["plumbline_release_gate_error"] == {(MODEL, first): 1.0}
    judge_weights(office, tmp_path, "first", verdict=Verdict.HOLD, again="yes")
    assert _read(metrics)["plumbline_release_gate_error"] == {(MODEL, first): 0.0}
    second = judge_weights(office, tmp_path, "second", verdict=Verdict.ERROR)
    third = judge_weights(office, tmp_path, "third", verdict=Verdict.HOLD)
    assert _read(metrics)["plumbline_release_gate_error"] == {(MODEL, third): 0.0}
    assert second != third


def test_the_win_rate_and_the_alarm_of_a_live_model_follow_the_soak(office: Office, tmp_path: Path) -> None:
    metrics = ReleaseMetrics(lambda: office)
    release_weights(office, tmp_path, "first")
    live = release_weights(office, tmp_path, "second")
    assert _read(metrics)["plumbline_release_live_win_rate"] == {}
    _soak(office, live, Verdict.KEEP, 0.61)
    assert _read(metrics)["plumbline_release_live_win_rate"] == {(MODEL, live): 0.61}
    assert _read(metrics)["plumbline_release_live_alarm"] == {(MODEL, live): 0.0}
    _soak(office, live, Verdict.ROLLBACK, 0.38)
    assert _read(metrics)["plumbline_release_live_win_rate"] == {(MODEL, live): 0.38}
    assert _read(metrics)["plumbline_release_live_alarm"] == {(MODEL, live): 1.0}
    _soak(office, live, Verdict.ERROR, None)
    assert _read(metrics)["plumbline_release_live_win_rate"] == {}
    assert _read(metrics)["plumbline_release_live_alarm"] == {(MODEL, live): 0.0}
    _soak(office, live, Verdict.HOLD, 0.37, alarm=True)
    assert _read(metrics)["plumbline_release_live_alarm"] == {(MODEL, live): 1.0}, "on votes that cannot roll it back"


def test_a_registry_that_hangs_or_fails_costs_the_other_figures_nothing(office: Office, tmp_path: Path) -> None:
    release_weights(office, tmp_path, "first")

    class Hanging:
        def aliases(self, model: str) -> dict[str, str]:
            time.sleep(1.0)
            raise PlumblineError("no answer.")

    metrics = ReleaseMetrics(lambda: Office(office.ledger, Hanging()), registry_seconds=0.0)  # type: ignore[arg-type]
    began = time.monotonic()
    assert _read(metrics)["plumbline_releases"][MODEL, "SOAKING"] == 1.0
    assert time.monotonic() - began < 0.8
    time.sleep(1.2)
    figures = _read(metrics)
    assert figures["plumbline_release_registry_up"] == {(): 0.0}
    assert "plumbline_release_champion_served" not in figures


def test_every_name_in_an_alert_is_one_that_the_service_tells(
    office: Office, tmp_path: Path, database: EvidenceDatabase, database_url: str
) -> None:
    open_batch(database, n_pairs=2)
    release_weights(office, tmp_path, "first")
    live = release_weights(office, tmp_path, "second")
    _soak(office, live, Verdict.KEEP, 0.61)
    client = Client(make_service(database_url), None)
    for _ in range(50):
        figures = client.get("/metrics").text
        if "plumbline_release_registry_up" in figures:
            break
        time.sleep(0.1)
    told = set(re.findall(r"^(plumbline_\w+)(?:{| )", figures, flags=re.MULTILINE))
    used = {name for rule in _rules() for name in re.findall(r"plumbline_\w+", rule["expr"])}
    assert used
    assert used - told == set()


def test_the_gate_writes_the_peoples_win_rate_on_the_ledger(office: Office, tmp_path: Path) -> None:
    from release_world import judge_release

    version = judge_release(tmp_path / "release")
    entry = office.ledger.view(MODEL).last(version)
    assert entry is not None
    assert 0.5 < entry.data["win_rate"] < 1.0


def _rules() -> list[dict[str, Any]]:
    (found,) = [one for one in yaml.safe_load_all(RULES.read_text()) if one["kind"] == "PrometheusRule"]
    return [rule for group in found["spec"]["groups"] for rule in group["rules"]]


def _soak(office: Office, version: str, verdict: Verdict, win_rate: float | None, *, alarm: bool = False) -> None:
    digests = {"candidate": "c", "champion": "", "policy": "p", "evidence": f"{verdict} {win_rate}"}
    judged = JudgedRelease(verdict, "because", digests, make_policy(), "pipeline", win_rate=win_rate, alarm=alarm)
    record_live_verdict(office, MODEL, version, judged)


def _read(metrics: ReleaseMetrics) -> dict[str, dict[tuple[str, ...], float]]:
    return {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples}
        for family in metrics.collect()
    }


def _settled(metrics: ReleaseMetrics) -> dict[str, dict[tuple[str, ...], float]]:
    """The figures after the registry was asked."""
    _read(metrics)
    time.sleep(0.5)
    return _read(metrics)
