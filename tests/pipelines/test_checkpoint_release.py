"""Taking the offer of a checkpoint: only what was offered, and on prompts that the choice has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from components.shared.artifacts import write_artifact
from components.shared.errors import InputError
from components.shared.files import write_json
from pipelines.checkpoint import build_checkpoint_release, checkpoint_arguments
from pipelines.cli import cli
from pipelines.runs import run_checkpoint_release
from pipelines.settings import load_run_settings

ROLES = ("dataset", "reward_model", "heldout_reward_model", "sft", "checkpoints", "history")


def _make_run(root: Path, **decision: Any) -> str:
    run = root / "demo-1"
    run.mkdir()
    (run / "settings.yaml").write_text("name: demo\n")
    with write_artifact(run / "decision", "decision", stage="release_gate") as draft:
        write_json(draft.path / "decision.json", {"verdict": "BLOCK", "checkpoint_offer": None, **decision})
    write_json(run / "artifacts.json", {"decision": str(run / "decision")})
    return str(root)


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ({"checkpoint_offer": {"step": 10}}, "the gate offered checkpoint 10, not 20"),
        ({"checkpoint_offer": {"step": None, "reason": "People prefer none."}}, "People prefer none"),
        ({"verdict": "PROMOTE"}, "Its verdict is PROMOTE"),
    ],
)
def test_what_the_gate_did_not_offer_is_not_tried(tmp_path: Path, decision: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run_checkpoint_release(
            _make_run(tmp_path, **decision), "demo-1", 20, requested_by="mia", console=Console(quiet=True)
        )


def test_a_run_that_decided_nothing_or_is_not_there_is_named(tmp_path: Path) -> None:
    workspace = _make_run(tmp_path)
    (tmp_path / "demo-1" / "artifacts.json").unlink()
    with pytest.raises(InputError, match="made no decision"):
        run_checkpoint_release(workspace, "demo-1", 20, requested_by="mia", console=Console(quiet=True))
    with pytest.raises(InputError, match="no run 'demo-2'"):
        run_checkpoint_release(workspace, "demo-2", 20, requested_by="mia", console=Console(quiet=True))


def test_nothing_of_what_the_checkpoint_was_chosen_by_is_used_again() -> None:
    settings = load_run_settings("demo")
    artifacts = {role: f"/runs/{role}" for role in ROLES}
    arguments = checkpoint_arguments(settings, step=10, artifacts=artifacts, champion=("runs:/x", "d" * 64))
    assert "human_eval" not in arguments["evaluation_settings"]["prompts"]
    assert arguments["evaluation_settings"]["prompts"]["fresh"] == settings.human_eval.n_prompts
    assert arguments["evaluation_settings"]["checkpoint_set"] == "fresh"
    assert arguments["human_eval_settings"]["prompt_set"] == "fresh"
    assert arguments["human_eval_settings"]["checkpoint_prompts"] == 0, "it is offered no checkpoint in its turn"
    assert (arguments["reference_uri"], arguments["champion_digest"]) == ("/runs/sft", "d" * 64)
    parameters = build_checkpoint_release(settings).pipeline_spec.root.input_definitions.parameters
    assert set(arguments) == set(parameters)


def test_the_command_needs_a_step(tmp_path: Path) -> None:
    told = CliRunner().invoke(cli, ["release-checkpoint", "--run", "demo-1", "--checkpoint", "0"])
    assert told.exit_code == 2
    assert "--checkpoint" in told.output
