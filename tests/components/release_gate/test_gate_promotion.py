"""Promotion and rollback over a real MLflow registry on SQLite."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tiny_release import MODEL, make_policy, make_weights

from components.release_gate import operations
from components.release_gate.approvals import ApprovalError, approve, reject
from components.release_gate.office import Office, open_office, repair, verify
from components.release_gate.promotion import PromotionError, abandon, break_glass, promote, rollback
from components.release_gate.registry import Registry, RegistryError
from components.release_gate.releases import JudgedRelease, record_verdict, register
from components.release_gate.states import IllegalMoveError, State
from components.release_gate.verdict import Verdict
from components.shared.artifacts import read_artifact
from components.shared.champion import download_policy, resolve_champion
from components.shared.errors import ArtifactError, InputError


@pytest.fixture
def office(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Office:
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", f"sqlite:///{tmp_path / 'plumbline.db'}")
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", str(tmp_path / "anchor"))
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return open_office()


def _judge(
    office: Office, root: Path, weights: str, *, verdict: Verdict = Verdict.PROMOTE, approvals: int = 0, **extra: str
) -> str:
    """Registers weights and records a verdict on them; returns the version."""
    folder = root / f"policy-{weights}"
    if not folder.exists():
        make_weights(folder, weights)
    artifact = read_artifact(folder, "policy")
    view = office.ledger.view(MODEL)
    champion = view.digest(view.champion) if view.champion else ""
    digests = {"candidate": artifact.digest, "champion": champion, "policy": "p", "evidence": "e", **extra}
    policy = make_policy(release={"approvals_required": approvals})
    judged = JudgedRelease(verdict, "because", digests, policy, "pipeline")
    version = register(office, MODEL, artifact, judged)
    record_verdict(office, MODEL, version, judged)
    return version


def _release(office: Office, root: Path, weights: str) -> str:
    version = _judge(office, root, weights)
    promote(MODEL, version, "pipeline", office=office)
    return version


def _check(office: Office, champion: str | None, previous: str | None = None) -> None:
    """Ledger, aliases and what other stages read agree."""
    live = resolve_champion(MODEL)
    assert (live.version if live else None) == champion
    aliases = office.registry.aliases(MODEL)
    assert aliases.get("champion") == champion
    assert aliases.get("previous") == previous
    report = verify(MODEL, office=office)
    assert report.problems == []


def test_the_first_champion_and_its_successor(office: Office, tmp_path: Path) -> None:
    first = _release(office, tmp_path, "one")
    _check(office, "1")
    second = _judge(office, tmp_path, "two")
    assert office.ledger.view(MODEL).state(second) is State.APPROVED
    outcome = promote(MODEL, second, "pipeline", office=office)
    assert (outcome.changed, outcome.state, outcome.champion) == (True, State.SOAKING, "2")
    assert office.ledger.view(MODEL).state(first) is State.RETIRED
    _check(office, "2", "1")


def test_promoting_twice_is_a_no_op_with_the_same_answer(office: Office, tmp_path: Path) -> None:
    version = _release(office, tmp_path, "one")
    before = office.ledger.view(MODEL).head
    outcome = promote(MODEL, version, "pipeline", office=office)
    assert (outcome.changed, outcome.state) == (False, State.SOAKING)
    assert office.ledger.view(MODEL).head == before


def test_a_version_carries_its_own_files(office: Office, tmp_path: Path) -> None:
    _release(office, tmp_path, "one")
    shutil.rmtree(tmp_path / "policy-one")
    champion = resolve_champion(MODEL)
    assert champion is not None
    fetched = download_policy(champion.uri, champion.digest, tmp_path / "fetched")
    assert fetched.file("model.safetensors").read_text() == "one"
    with pytest.raises(ArtifactError, match="expected 000000"):
        download_policy(champion.uri, "0" * 64, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_same_release_asked_for_twice_is_one_version(office: Office, tmp_path: Path) -> None:
    assert _judge(office, tmp_path, "one") == _judge(office, tmp_path, "one") == "1"
    assert len(MlflowClient().search_model_versions(f"name='{MODEL}'")) == 1


def test_registration_killed_before_the_ledger_finds_its_version_again(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Office, "record", _raise)
        with pytest.raises(_Killed):
            _judge(office, tmp_path, "one")
    assert _judge(office, tmp_path, "one") == "1"
    assert len(MlflowClient().search_model_versions(f"name='{MODEL}'")) == 1


def test_an_upload_killed_half_way_is_done_again(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Registry, "verify", _raise)
        with pytest.raises(_Killed):
            _judge(office, tmp_path, "one")
    assert _release(office, tmp_path, "one") == "1"
    _check(office, "1")


def test_blocked_weights_with_new_evidence_come_as_a_new_version(office: Office, tmp_path: Path) -> None:
    first = _judge(office, tmp_path, "one", verdict=Verdict.BLOCK)
    assert _judge(office, tmp_path, "one", verdict=Verdict.BLOCK) == first
    second = _judge(office, tmp_path, "one", verdict=Verdict.HOLD, evidence="more")
    assert second != first
    assert _judge(office, tmp_path, "one", evidence="even more") == second, "HELD goes back to COLLECTING"
    assert office.ledger.view(MODEL).state(second) is State.APPROVED


class _Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def _raise(*_: Any, **__: Any) -> None:
    raise _Killed


def _kill_at(monkeypatch: pytest.MonkeyPatch, step: str, call: int, *, after: bool) -> None:
    """The `call`-th use of a registry step kills the process, before or after it had its effect."""
    original, calls = getattr(Registry, step), []

    def killing(self: Registry, *args: Any, **kwargs: Any) -> Any:
        calls.append(step)
        if len(calls) == call and not after:
            raise _Killed
        result = original(self, *args, **kwargs)
        if len(calls) == call and after:
            raise _Killed
        return result

    monkeypatch.setattr(Registry, step, killing)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("step", "call"),
    [("verify", 1), ("set_alias", 1), ("set_alias", 2), ("aliases", 1), ("aliases", 2), ("anchor", 1), ("anchor", 2)],
)
def test_a_promotion_killed_anywhere_is_ended_by_running_it_again(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int, after: bool
) -> None:
    _release(office, tmp_path, "one")
    version = _judge(office, tmp_path, "two")
    with monkeypatch.context() as patch:
        _kill_at(patch, step, call, after=after)
        with pytest.raises(_Killed):
            promote(MODEL, version, "pipeline", office=office)
    live = resolve_champion(MODEL)
    assert live is not None, "there is a champion at every moment"
    assert verify(MODEL, office=office).sound
    promote(MODEL, version, "pipeline", office=office)
    _check(office, "2", "1")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("step", "call"), [("verify", 1), ("set_alias", 1), ("aliases", 1), ("aliases", 2), ("anchor", 1), ("anchor", 2)]
)
def test_a_rollback_killed_anywhere_is_ended_by_running_it_again(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int, after: bool
) -> None:
    _release(office, tmp_path, "one")
    second = _release(office, tmp_path, "two")
    with monkeypatch.context() as patch:
        _kill_at(patch, step, call, after=after)
        with pytest.raises(_Killed):
            rollback(MODEL, "alice", "harm", version=second, office=office)
    assert resolve_champion(MODEL) is not None
    outcome = rollback(MODEL, "alice", "harm", version=second, office=office)
    assert (outcome.state, outcome.champion) == (State.ROLLED_BACK, "1")
    _check(office, "1")


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
    _release(office, tmp_path, "one")
    version = _judge(office, tmp_path, "two")
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
    _check(office, "2", "1")


def test_of_eight_concurrent_promoters_exactly_one_wins(office: Office, tmp_path: Path) -> None:
    _release(office, tmp_path, "one")
    versions = [_judge(office, tmp_path, f"rival-{number}") for number in range(8)]
    barrier, won, lost = threading.Barrier(8), [], []

    def run(version: str) -> None:
        barrier.wait()
        try:
            outcome = promote(MODEL, version, f"promoter-{version}", office=open_office())
        except (PromotionError, IllegalMoveError) as error:
            lost.append((version, str(error)))
        else:
            won.append((version, outcome.changed))

    threads = [threading.Thread(target=run, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1, (won, lost)
    assert won[0][1]
    assert len(lost) == 7
    _check(office, won[0][0], "1")


def test_of_eight_promoters_of_one_version_one_makes_the_change_and_all_agree(office: Office, tmp_path: Path) -> None:
    version = _judge(office, tmp_path, "one")
    barrier, outcomes, errors = threading.Barrier(8), [], []

    def run() -> None:
        barrier.wait()
        try:
            outcomes.append(promote(MODEL, version, "pipeline", office=open_office()))
        except Exception as error:  # noqa: BLE001 (asserted below)
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(outcome.changed for outcome in outcomes) == 1
    assert {outcome.state for outcome in outcomes} == {State.SOAKING}
    _check(office, "1")


def test_a_promotion_judged_against_another_champion_is_superseded(office: Office, tmp_path: Path) -> None:
    _release(office, tmp_path, "one")
    late = _judge(office, tmp_path, "late")
    _release(office, tmp_path, "two")
    with pytest.raises(PromotionError, match="another one"):
        promote(MODEL, late, "pipeline", office=office)
    assert office.ledger.view(MODEL).state(late) is State.SUPERSEDED
    _check(office, "3", "1")


def test_a_promotion_overtaken_by_a_rollback_ends_superseded(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _release(office, tmp_path, "one")
    _release(office, tmp_path, "two")
    third = _judge(office, tmp_path, "three")
    with monkeypatch.context() as patch:
        _kill_at(patch, "aliases", 1, after=False)
        with pytest.raises(_Killed):
            promote(MODEL, third, "pipeline", office=office)
    rollback(MODEL, "alice", "harm", version="2", office=office)
    with pytest.raises(PromotionError, match="SUPERSEDED"):
        promote(MODEL, third, "pipeline", office=office)
    _check(office, "1")


def test_files_altered_in_the_registry_are_never_promoted(office: Office, tmp_path: Path) -> None:
    _release(office, tmp_path, "one")
    version = _judge(office, tmp_path, "two")
    for file in (tmp_path / "mlflow-models").rglob("model.safetensors"):
        if file.read_text() == "two":
            file.write_text("evil")
    with pytest.raises(ArtifactError, match="altered"):
        promote(MODEL, version, "pipeline", office=office)
    assert office.ledger.view(MODEL).state(version) is State.ERROR
    _check(office, "1")


def test_breaking_the_glass_is_loud_and_rollback_restores_the_predecessor(
    office: Office, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _release(office, tmp_path, "one")
    blocked = _judge(office, tmp_path, "two", verdict=Verdict.BLOCK)
    with pytest.raises(IllegalMoveError, match="break_glass"):
        promote(MODEL, blocked, "pipeline", office=office)
    outcome = break_glass(MODEL, blocked, "bob", "a customer waits", office=office)
    assert outcome.changed
    assert "BREAK GLASS" in caplog.text
    entries = office.ledger.view(MODEL).entries
    assert any(entry.event == "break_glass" and entry.reason == "BREAK GLASS: a customer waits" for entry in entries)
    _check(office, "2", "1")
    restored = rollback(MODEL, "alice", "people are harmed", office=office)
    assert restored.seconds > 0.0
    assert (restored.version, restored.champion, restored.state) == ("2", "1", State.ROLLED_BACK)
    assert office.ledger.view(MODEL).state("1") is State.CHAMPION
    _check(office, "1")
    taken = operations.last_rollback(MODEL)
    assert taken is not None
    assert (taken["version"], taken["taken_back"]) == ("1", "2")
    assert taken["seconds"] > 0.0
    break_glass(MODEL, blocked, "bob", "again", office=office)
    _check(office, "2", "1")


@pytest.mark.parametrize(("actor", "reason"), [("", "why"), ("bob", ""), ("  ", "why"), ("bob", " ")])
def test_breaking_the_glass_and_rolling_back_need_a_name_and_a_reason(
    office: Office, tmp_path: Path, actor: str, reason: str
) -> None:
    blocked = _judge(office, tmp_path, "one", verdict=Verdict.BLOCK)
    with pytest.raises(ApprovalError):
        break_glass(MODEL, blocked, actor, reason, office=office)
    with pytest.raises(ApprovalError):
        rollback(MODEL, actor, reason, office=office)
    _check(office, None)


def test_the_first_champion_cannot_be_rolled_back(office: Office, tmp_path: Path) -> None:
    with pytest.raises(PromotionError, match="nothing is live"):
        rollback(MODEL, "alice", "harm", office=office)
    _release(office, tmp_path, "one")
    with pytest.raises(PromotionError, match="first champion"):
        rollback(MODEL, "alice", "harm", office=office)
    _check(office, "1")


def test_rollbacks_go_back_one_champion_at_a_time(office: Office, tmp_path: Path) -> None:
    for weights in ("one", "two", "three"):
        _release(office, tmp_path, weights)
    _check(office, "3", "2")
    rollback(MODEL, "alice", "harm", office=office)
    _check(office, "2", "1")
    rollback(MODEL, "alice", "harm", version="3", office=office)
    _check(office, "2", "1")
    rollback(MODEL, "alice", "harm", office=office)
    _check(office, "1")


def test_two_people_approve_and_not_the_one_who_asked(office: Office, tmp_path: Path) -> None:
    version = _judge(office, tmp_path, "one", approvals=2)
    waiting = promote(MODEL, version, "pipeline", office=office)
    assert (waiting.changed, waiting.state) == (False, State.AWAITING_APPROVAL)
    assert "0 of 2" in waiting.message
    with pytest.raises(ApprovalError, match="asked for this release"):
        approve(MODEL, version, "Pipeline ", "mine", office=office)
    assert approve(MODEL, version, "alice", "good", office=office) is State.AWAITING_APPROVAL
    assert approve(MODEL, version, "Alice", "good again", office=office) is State.AWAITING_APPROVAL
    assert approve(MODEL, version, "bob", "good too", office=office) is State.APPROVED
    assert approve(MODEL, version, "bob", "good too", office=office) is State.APPROVED
    assert promote(MODEL, version, "pipeline", office=office).changed
    _check(office, "1")


def test_with_no_approval_needed_the_ledger_says_that_nobody_looked(office: Office, tmp_path: Path) -> None:
    version = _judge(office, tmp_path, "one")
    cleared = office.ledger.view(MODEL).last(version)
    assert cleared is not None
    assert cleared.actor == "policy production"
    assert "no person looked" in cleared.reason
    assert "APPROVED BY POLICY" in cleared.reason


def test_new_evidence_voids_the_approvals(office: Office, tmp_path: Path) -> None:
    version = _judge(office, tmp_path, "one", approvals=2)
    approve(MODEL, version, "alice", "good", office=office)
    assert _judge(office, tmp_path, "one", approvals=2, evidence="new") == version
    assert approve(MODEL, version, "bob", "good", office=office) is State.AWAITING_APPROVAL


def test_an_approval_for_another_champion_is_superseded(office: Office, tmp_path: Path) -> None:
    _release(office, tmp_path, "one")
    version = _judge(office, tmp_path, "late", approvals=1)
    _release(office, tmp_path, "two")
    with pytest.raises(ApprovalError, match="another one"):
        approve(MODEL, version, "alice", "good", office=office)
    assert office.ledger.view(MODEL).state(version) is State.SUPERSEDED


def test_an_old_verdict_expires(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = _judge(office, tmp_path, "one", approvals=1)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz or UTC) + timedelta(days=15)

    monkeypatch.setattr("components.release_gate.approvals.datetime", Later)
    with pytest.raises(ApprovalError, match="valid until"):
        approve(MODEL, version, "alice", "good", office=office)
    assert office.ledger.view(MODEL).state(version) is State.EXPIRED


def test_one_rejection_is_final(office: Office, tmp_path: Path) -> None:
    version = _judge(office, tmp_path, "one", approvals=2)
    approve(MODEL, version, "alice", "good", office=office)
    assert reject(MODEL, version, "carol", "rude", office=office) is State.REJECTED
    assert reject(MODEL, version, "carol", "rude", office=office) is State.REJECTED
    for act in (approve, break_glass):
        with pytest.raises(IllegalMoveError, match="final"):
            act(MODEL, version, "bob", "but", office=office)
    assert _judge(office, tmp_path, "one", approvals=2, evidence="new") == version
    assert office.ledger.view(MODEL).state(version) is State.REJECTED


def test_a_promotion_that_cannot_end_is_abandoned(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _release(office, tmp_path, "one")
    stuck, other = _judge(office, tmp_path, "two"), _judge(office, tmp_path, "three")
    with monkeypatch.context() as patch:
        _kill_at(patch, "verify", 1, after=False)
        with pytest.raises(_Killed):
            promote(MODEL, stuck, "pipeline", office=office)
    with pytest.raises(PromotionError, match="version 2 is being promoted"):
        promote(MODEL, other, "pipeline", office=office)
    assert abandon(MODEL, stuck, "alice", "its node is gone", office=office) is State.ERROR
    with pytest.raises(IllegalMoveError):
        abandon(MODEL, stuck, "alice", "again", office=office)
    assert promote(MODEL, other, "pipeline", office=office).changed
    _check(office, "3", "1")


def test_aliases_moved_by_hand_are_repaired_from_the_ledger(office: Office, tmp_path: Path) -> None:
    _release(office, tmp_path, "one")
    _judge(office, tmp_path, "two", verdict=Verdict.HOLD)
    client = MlflowClient()
    client.set_registered_model_alias(MODEL, "champion", "2")
    client.delete_registered_model_alias(MODEL, "candidate")
    assert set(repair(MODEL, office=office)) == {"champion: 2 > 1", "candidate: none > 2"}
    assert repair(MODEL, office=office) == []


def test_the_head_in_the_version_tags_shows_a_ledger_that_was_cut(office: Office, tmp_path: Path) -> None:
    import sqlite3

    _release(office, tmp_path, "one")
    with sqlite3.connect(tmp_path / "plumbline.db") as connection:
        connection.execute("DELETE FROM release_ledger WHERE sequence > 3")
    shutil.rmtree(tmp_path / "anchor")
    problems = " ".join(operations.verify(MODEL)["problems"])
    assert "the table does not: entries were removed" in problems


def test_an_alias_that_does_not_read_back_is_an_error(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = _judge(office, tmp_path, "one")
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_alias", lambda *_: None)
        with pytest.raises(RegistryError, match="reads None"):
            promote(MODEL, version, "pipeline", office=office)
    assert promote(MODEL, version, "pipeline", office=office).changed


def test_operations_answer_as_the_command_line_needs(office: Office, tmp_path: Path) -> None:
    _release(office, tmp_path, "one")
    version = _judge(office, tmp_path, "two", approvals=2)
    first = operations.approve(MODEL, version, actor="alice", reason="good")
    assert "1 of 2" in first["message"]
    second = operations.approve(MODEL, version, actor="bob", reason="good")
    assert second["message"] == "Version 2 is champion; version 1 is its predecessor."
    back = operations.rollback(MODEL, actor="alice", reason="harm")
    assert (back["version"], back["taken_back"]) == ("1", "2")
    assert operations.verify(MODEL)["ok"]
    assert {"sequence", "time", "version", "event", "from_state", "to_state", "actor", "reason"} <= set(
        operations.history(MODEL)[0]
    )


def test_a_name_that_the_registry_cannot_carry_is_refused(office: Office, tmp_path: Path) -> None:
    make_weights(tmp_path / "p", "w")
    with pytest.raises(InputError, match="cannot name"):
        office.registry.register("bad 'name'", read_artifact(tmp_path / "p", "policy"), request="r")


@pytest.mark.parametrize("variable", ["PLUMBLINE_DATABASE_URL", "PLUMBLINE_LEDGER_ANCHOR", "MLFLOW_TRACKING_URI"])
def test_a_service_that_is_not_set_is_named(office: Office, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(variable)
    with pytest.raises(InputError, match=variable):
        open_office()
