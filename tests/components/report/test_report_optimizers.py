"""A run without PPO: the report names what trained the policy, and does without the columns that it does not have."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_run import make_run

from components.report.stage import run
from components.shared.artifacts import write_artifact
from components.shared.files import read_json, write_json, write_jsonl

_ROWS = [
    {
        "step": step,
        "episodes": 64,
        "reward_mean": 0.2 + 0.01 * step,
        "kl": 0.03 * step,
        "response_tokens": 14.0,
        "finished_share": 1.0,
        "slices": {name: {"n": 32, "reward": 0.2, "kl": 0.03 * step, "response_tokens": 14.0} for name in ("a", "b")},
        **({"policy_loss": 0.6, "trainer/rewards/margins": 0.01 * step} if step else {}),
    }
    for step in (0, 20, 40, 60)
]


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, str]:
    """A run's artifacts with the history that DPO leaves."""
    paths = make_run(tmp_path / "run", without=("history",))
    summary = {"optimizer": "online DPO", "method": "online_dpo", "beta": 0.1, "steps": 60, "kl_final": 1.8}
    with write_artifact(tmp_path / "history", "training_history", stage="preference_optimization") as draft:
        write_jsonl(draft.path / "history.jsonl", _ROWS)
        write_json(draft.path / "summary.json", summary)
    return paths | {"history": str(tmp_path / "history")}


def test_the_page_names_the_optimizer_and_shows_what_there_is(tmp_path: Path, artifacts: dict[str, str]) -> None:
    run(output=str(tmp_path / "report"), artifacts=artifacts, run={"run_id": "r", "status": "SUCCEEDED"})
    page = (tmp_path / "report" / "report.html").read_text()
    assert "online DPO training" in page
    assert "PPO training" not in page
    assert "margin, chosen over rejected" in page
    assert "KL coefficient" not in page


def test_the_summary_does_not_pass_another_training_off_as_ppo(tmp_path: Path, artifacts: dict[str, str]) -> None:
    run(output=str(tmp_path / "report"), artifacts=artifacts, run={"run_id": "r", "status": "SUCCEEDED"})
    summary = read_json(tmp_path / "report" / "summary.json")
    assert summary["optimization"]["optimizer"] == "online DPO"
    assert summary["optimization"]["kl_final"] == 1.8
    assert set(summary["ppo"].values()) == {None}
