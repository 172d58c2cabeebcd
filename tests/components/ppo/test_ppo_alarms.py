"""Alarms: what lasts is told once, counted, and stops the run where the settings say so."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_ppo import make_trainer

from components.ppo.alarms import raise_alarms
from components.ppo.settings import AlarmSettings

HEALTHY: dict[str, Any] = {
    "entropy": 2.0,
    "explained_variance": 0.5,
    "finished_share": 0.9,
    "repetition_share": 0.1,
}
SIGNS = {
    "entropy": {"entropy": 0.1},
    "explained_variance": {"explained_variance": -0.2},
    "truncation": {"finished_share": 0.3},
    "repetition": {"repetition_share": 0.8},
}


@pytest.mark.parametrize("name", SIGNS)
def test_a_sign_that_lasts_raises_its_alarm_once(name: str) -> None:
    settings = AlarmSettings(patience=3)
    history = [HEALTHY, *[HEALTHY | SIGNS[name]] * 4]

    raised = [raise_alarms(history[:length], settings) for length in range(1, 6)]

    assert [[alarm.name for alarm in alarms] for alarms in raised] == [[], [], [], [name], [name]]
    assert raised[3][0].new
    assert not raised[4][0].new
    assert "for 3 steps" in raised[3][0].reason


def test_a_sign_that_comes_and_goes_raises_none() -> None:
    history = [HEALTHY, *[HEALTHY | SIGNS["truncation"], HEALTHY | SIGNS["truncation"], HEALTHY] * 3]

    assert not any(raise_alarms(history[:length], AlarmSettings(patience=3)) for length in range(1, 11))


def test_without_a_limit_nothing_is_looked_for() -> None:
    off = AlarmSettings(
        min_entropy_share=None,
        min_explained_variance=None,
        max_truncated_share=None,
        max_repetition_share=None,
        patience=1,
    )

    assert raise_alarms([HEALTHY, dict.fromkeys(HEALTHY, -9.0)], off) == []


def test_a_row_without_an_update_has_no_explained_variance_to_alarm_about() -> None:
    assert raise_alarms([HEALTHY | {"explained_variance": None}], AlarmSettings(patience=1)) == []


@pytest.mark.parametrize("stop_on", [[], ["truncation"]])
def test_training_stops_only_on_the_alarms_that_shall_stop_it(stop_on: list[str]) -> None:
    alarms = {"max_truncated_share": 0.0, "patience": 2, "stop_on": stop_on}
    trainer = make_trainer(steps=5, max_response_tokens=1, alarms=alarms)

    trainer.train()

    assert [row["alarms"] for row in trainer.history][:2] == [[], ["truncation"]]
    assert len(trainer.history) == (2 if stop_on else 5)
    assert ("length limit" in str(trainer.stop_reason)) is bool(stop_on)
