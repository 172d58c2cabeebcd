"""The alert rules fire when they should and are silent when they should, by Prometheus' own rule engine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.manifests import K8S

CASES = Path(__file__).with_name("alerts.yaml")


@pytest.fixture(scope="module")
def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        missing = "promtool is not installed (Debian: prometheus)"
        if os.environ.get("PLUMBLINE_REQUIRE_PROMTOOL") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return program


@pytest.fixture
def rules(tmp_path: Path) -> dict[str, Any]:
    monitoring = yaml.safe_load_all((K8S / "overlays" / "prod" / "monitoring.yaml").read_text())
    (found,) = [one for one in monitoring if one["kind"] == "PrometheusRule"]
    return found["spec"]


def test_each_alert_fires_when_it_should_and_only_then(promtool: str, rules: dict[str, Any], tmp_path: Path) -> None:
    told = _run(promtool, rules, tmp_path)
    assert told.returncode == 0, told.stdout + told.stderr


def test_an_alert_that_looks_at_another_figure_is_noticed(promtool: str, rules: dict[str, Any], tmp_path: Path) -> None:
    for group in rules["groups"]:
        for rule in group["rules"]:
            kept, rule["expr"] = rule["expr"], rule["expr"].replace("plumbline_", "plumb_line_")
            if rule["alert"] != "PlumblineReviewDown":  # it fires when its figure is absent
                told = _run(promtool, rules, tmp_path)
                assert told.returncode == 1, rule["alert"]
                assert rule["alert"] in told.stdout + told.stderr
            rule["expr"] = kept


def test_every_alert_has_a_case_that_fires_and_one_that_does_not(rules: dict[str, Any]) -> None:
    cases = [one for test in yaml.safe_load(CASES.read_text())["tests"] for one in test["alert_rule_test"]]
    for group in rules["groups"]:
        for rule in group["rules"]:
            mine = [bool(case["exp_alerts"]) for case in cases if case["alertname"] == rule["alert"]]
            assert set(mine) == {True, False}, rule["alert"]


def _run(promtool: str, rules: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    cases = yaml.safe_load(CASES.read_text()) | {"rule_files": ["rules.yaml"]}
    (folder / "cases.yaml").write_text(yaml.safe_dump(cases))
    return subprocess.run(
        [promtool, "test", "rules", "cases.yaml"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
