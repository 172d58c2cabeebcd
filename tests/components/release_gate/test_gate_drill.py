"""The rollback drill over a real registry and ledger."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_office import Killed, check_agreement, kill_at, release_weights
from tiny_release import MODEL

from components.release_gate.drill import SCRATCH_SUFFIX, run_drill
from components.release_gate.office import Office, verify
from components.shared.errors import ArtifactError
from components.shared.files import write_text

SCRATCH = MODEL + SCRATCH_SUFFIX


def test_the_drill_rolls_back_to_the_champions_own_weights_and_leaves_the_real_model_alone(
    office: Office, tmp_path: Path
) -> None:
    release_weights(office, tmp_path, "one")
    release_weights(office, tmp_path, "two")
    head = office.ledger.view(MODEL).head
    found = run_drill(MODEL, actor="alice", office=office)
    assert found["ok"]
    assert found["untouched"]
    assert (found["real_champion"], found["weights"]) == ("2", "champion")
    assert office.ledger.view(MODEL).head == head
    check_agreement(office, "2", "1")
    scratch = office.ledger.view(SCRATCH)
    assert scratch.champion == found["restored"]
    assert scratch.digest(found["restored"]) == office.ledger.view(MODEL).digest("2")
    assert verify(SCRATCH, office=office).problems == []
    assert office.registry.aliases(SCRATCH)["champion"] == found["restored"]


def test_the_drill_measures_its_own_time_end_to_end(office: Office, tmp_path: Path) -> None:
    release_weights(office, tmp_path, "one")
    seconds = run_drill(MODEL, actor="alice", office=office)["seconds"]
    assert 0.0 < seconds["rollback"] < seconds["total"]
    assert seconds["prepare"] + seconds["promote"] + seconds["rollback"] <= seconds["total"] + 0.01


def test_a_second_drill_keeps_the_restored_weights_and_needs_one_version_more(office: Office, tmp_path: Path) -> None:
    release_weights(office, tmp_path, "one")
    first = run_drill(MODEL, actor="alice", office=office)
    second = run_drill(MODEL, actor="alice", office=office)
    assert (second["ok"], second["restored"]) == (True, first["restored"])
    assert len(office.ledger.view(SCRATCH).versions) == 3


def test_without_a_champion_throwaway_weights_are_drilled_and_the_result_says_so(office: Office) -> None:
    found = run_drill("new-model", actor="alice", office=office)
    assert (found["ok"], found["weights"], found["real_champion"]) == (True, "throwaway", None)
    assert "nothing is live" in found["message"]


@pytest.mark.parametrize(("step", "call"), [("set_alias", 1), ("set_alias", 3), ("verify", 2), ("verify", 4)])
def test_a_drill_after_one_that_was_killed_works(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    release_weights(office, tmp_path, "one")
    with monkeypatch.context() as patch:
        kill_at(patch, step, call, after=False)
        with pytest.raises(Killed):
            run_drill(MODEL, actor="alice", office=office)
    assert run_drill(MODEL, actor="alice", office=office)["ok"]


def test_a_champion_whose_files_were_altered_fails_the_drill(office: Office, tmp_path: Path) -> None:
    """The drill finds before the emergency that the way back is closed."""
    release_weights(office, tmp_path, "one")
    for file in (tmp_path / "mlflow-models").rglob("model.safetensors"):
        write_text(file, "evil")
    with pytest.raises(ArtifactError):
        run_drill(MODEL, actor="alice", office=office)
