"""Killed at any step, promotion and rollback are ended by running them again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tiny_office import Killed, check_agreement, die, judge_weights, kill_at, release_weights
from tiny_release import MODEL

from components.release_gate.entries import Move
from components.release_gate.office import Office, repair, verify
from components.release_gate.promotion import PromotionError, abandon, break_glass, promote, rollback
from components.release_gate.registry import Registry, RegistryError
from components.release_gate.states import Event, IllegalMoveError, State
from components.release_gate.verdict import Verdict
from components.shared.champion import resolve_champion


def test_registration_killed_before_the_ledger_finds_its_version_again(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Office, "record", die)
        with pytest.raises(Killed):
            judge_weights(office, tmp_path, "one")
    assert judge_weights(office, tmp_path, "one") == "1"
    assert len(MlflowClient().search_model_versions(f"name='{MODEL}'")) == 1


def test_an_upload_killed_half_way_is_done_again(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Registry, "verify", die)
        with pytest.raises(Killed):
            judge_weights(office, tmp_path, "one")
    assert release_weights(office, tmp_path, "one") == "1"
    check_agreement(office, "1")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("step", "call"),
    [("verify", 1), ("set_alias", 1), ("set_alias", 2), ("aliases", 1), ("aliases", 2), ("anchor", 1), ("anchor", 2)],
)
def test_a_promotion_killed_anywhere_is_ended_by_running_it_again(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int, after: bool
) -> None:
    release_weights(office, tmp_path, "one")
    version = judge_weights(office, tmp_path, "two")
    with monkeypatch.context() as patch:
        kill_at(patch, step, call, after=after)
        with pytest.raises(Killed):
            promote(MODEL, version, "pipeline", office=office)
    live = resolve_champion(MODEL)
    assert live is not None, "there is a champion at every moment"
    assert verify(MODEL, office=office).sound
    promote(MODEL, version, "pipeline", office=office)
    check_agreement(office, "2", "1")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("step", "call"), [("verify", 1), ("set_alias", 1), ("aliases", 1), ("aliases", 2), ("anchor", 1), ("anchor", 2)]
)
def test_a_rollback_killed_anywhere_is_ended_by_running_it_again(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int, after: bool
) -> None:
    release_weights(office, tmp_path, "one")
    second = release_weights(office, tmp_path, "two")
    with monkeypatch.context() as patch:
        kill_at(patch, step, call, after=after)
        with pytest.raises(Killed):
            rollback(MODEL, "alice", "harm", version=second, office=office)
    assert resolve_champion(MODEL) is not None
    outcome = rollback(MODEL, "alice", "harm", version=second, office=office)
    assert (outcome.state, outcome.champion) == (State.ROLLED_BACK, "1")
    check_agreement(office, "1")


SIGKILL_SCRIPT = """
import os, signal, sys
from components.release_gate.promotion import promote
from components.release_gate.registry import Registry
original = Registry.set_alias
def killing(self, model, alias, version):
    original(self, model, alias, version)
    if alias == "champion":
        os.kill(os.getpid(), signal.SIGKILL)
Registry.set_alias = killing
promote(sys.argv[1], sys.argv[2], "pipeline")
"""


def test_a_real_sigkill_between_alias_and_end_loses_no_champion(office: Office, tmp_path: Path) -> None:
    release_weights(office, tmp_path, "one")
    version = judge_weights(office, tmp_path, "two")
    root = Path(__file__).parents[3]
    killed = subprocess.run(
        [sys.executable, "-c", SIGKILL_SCRIPT, MODEL, version],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    live = resolve_champion(MODEL)
    assert live is not None
    assert live.version == "1", "the ledger has not switched yet"
    assert office.registry.aliases(MODEL)["champion"] == "2", "but the alias has"
    assert repair(MODEL, office=office) == ["champion: 2 > 1", "previous: 1 > none", "candidate: none > 2"]
    promote(MODEL, version, "pipeline", office=office)
    check_agreement(office, "2", "1")


def test_no_rollback_begins_while_a_promotion_is_under_way(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_weights(office, tmp_path, "one")
    release_weights(office, tmp_path, "two")
    third = judge_weights(office, tmp_path, "three")
    with monkeypatch.context() as patch:
        kill_at(patch, "aliases", 1, after=False)
        with pytest.raises(Killed):
            promote(MODEL, third, "pipeline", office=office)
    with pytest.raises(PromotionError, match="version 3 is being promoted"):
        rollback(MODEL, "alice", "harm", version="2", office=office)
    abandon(MODEL, third, "alice", "the live version must go first", office=office)
    assert rollback(MODEL, "alice", "harm", version="2", office=office).changed
    check_agreement(office, "1")


def test_a_promotion_whose_champion_changed_meanwhile_ends_superseded(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_weights(office, tmp_path, "one")
    release_weights(office, tmp_path, "two")
    third = judge_weights(office, tmp_path, "three")
    with monkeypatch.context() as patch:
        kill_at(patch, "aliases", 1, after=False)
        with pytest.raises(Killed):
            promote(MODEL, third, "pipeline", office=office)
    back = [Move("1", Event.RESTORE, "alice", "harm"), Move("2", Event.ROLLED_BACK, "alice", "harm")]
    office.record(MODEL, lambda view: back)
    with pytest.raises(PromotionError, match="SUPERSEDED"):
        promote(MODEL, third, "pipeline", office=office)
    check_agreement(office, "1")


def _kill_rollback(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two champions, the second one's rollback killed after its intent; returns a third version that is approved."""
    release_weights(office, tmp_path, "one")
    release_weights(office, tmp_path, "two")
    third = judge_weights(office, tmp_path, "three")
    with monkeypatch.context() as patch:
        kill_at(patch, "aliases", 1, after=False)
        with pytest.raises(Killed):
            rollback(MODEL, "alice", "harm", office=office)
    return third


def test_nothing_goes_live_until_a_rollback_that_was_begun_has_ended(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = _kill_rollback(office, tmp_path, monkeypatch)
    blocked = judge_weights(office, tmp_path, "four", verdict=Verdict.BLOCK)
    office.record(MODEL, lambda view: [Move("2", Event.ALARM, "gate", "a verdict in between changes nothing")])
    with pytest.raises(PromotionError, match="version 2 is being rolled back"):
        promote(MODEL, third, "pipeline", office=office)
    with pytest.raises(PromotionError, match="version 2 is being rolled back"):
        break_glass(MODEL, blocked, "bob", "a customer waits", office=office)
    assert rollback(MODEL, "alice", "harm", office=office).state is State.ROLLED_BACK
    begun = [entry for entry in office.ledger.view(MODEL).entries if entry.event == Event.BEGIN_ROLLBACK]
    assert len(begun) == 1, "one intent, however often it is run"
    break_glass(MODEL, blocked, "bob", "a customer waits", office=office)
    check_agreement(office, blocked, "1")


def test_a_rollback_that_cannot_end_is_abandoned(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = _kill_rollback(office, tmp_path, monkeypatch)
    assert abandon(MODEL, "2", "alice", "its predecessor is lost", office=office) is State.SOAKING
    with pytest.raises(IllegalMoveError):
        abandon(MODEL, "2", "alice", "again", office=office)
    check_agreement(office, "2", "1")
    assert promote(MODEL, third, "pipeline", office=office).changed
    check_agreement(office, "3", "2")


def test_a_rollback_that_was_overtaken_does_not_claim_to_have_ended(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_weights(office, tmp_path, "one")
    release_weights(office, tmp_path, "two")
    third = judge_weights(office, tmp_path, "three")
    overtaking = [
        Move(third, Event.PROMOTE, "bob", "faster", details={"replaces": "2"}),
        Move(third, Event.PROMOTED, "bob", "faster", details={"replaces": "2"}),
        Move("2", Event.RETIRE, "bob", "replaced"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "verify", lambda *_: office.record(MODEL, lambda view: overtaking))
        with pytest.raises(PromotionError, match="did not end: the version is RETIRED and version 3 is champion"):
            rollback(MODEL, "alice", "harm", version="2", office=office)
    check_agreement(office, "3", "2")


def test_a_promotion_that_cannot_end_is_abandoned(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_weights(office, tmp_path, "one")
    stuck, other = judge_weights(office, tmp_path, "two"), judge_weights(office, tmp_path, "three")
    with monkeypatch.context() as patch:
        kill_at(patch, "verify", 1, after=False)
        with pytest.raises(Killed):
            promote(MODEL, stuck, "pipeline", office=office)
    with pytest.raises(PromotionError, match="version 2 is being promoted"):
        promote(MODEL, other, "pipeline", office=office)
    assert abandon(MODEL, stuck, "alice", "its node is gone", office=office) is State.ERROR
    with pytest.raises(IllegalMoveError):
        abandon(MODEL, stuck, "alice", "again", office=office)
    assert promote(MODEL, other, "pipeline", office=office).changed
    check_agreement(office, "3", "1")


def test_an_alias_that_does_not_read_back_is_an_error(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = judge_weights(office, tmp_path, "one")
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_alias", lambda *_: None)
        with pytest.raises(RegistryError, match="reads None"):
            promote(MODEL, version, "pipeline", office=office)
    assert promote(MODEL, version, "pipeline", office=office).changed
