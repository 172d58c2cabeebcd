"""Promotion and rollback over a real MLflow registry on SQLite."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tiny_office import check_agreement, judge_weights, release_weights
from tiny_release import MODEL, make_weights

from components.release_gate import operations, promotion
from components.release_gate.approvals import reject
from components.release_gate.office import Office, open_office, repair, verify
from components.release_gate.promotion import PromotionError, break_glass, promote, rollback
from components.release_gate.registry import Registry
from components.release_gate.states import IllegalMoveError, State
from components.release_gate.verdict import Verdict
from components.shared.artifacts import read_artifact
from components.shared.champion import download_policy, resolve_champion
from components.shared.errors import ArtifactError, InputError, PlumblineError


def test_the_first_champion_and_its_successor(office: Office, tmp_path: Path) -> None:
    first = release_weights(office, tmp_path, "one")
    check_agreement(office, "1")
    second = judge_weights(office, tmp_path, "two")
    assert office.ledger.view(MODEL).state(second) is State.APPROVED
    outcome = promote(MODEL, second, "pipeline", office=office)
    assert (outcome.changed, outcome.state, outcome.champion) == (True, State.SOAKING, "2")
    assert office.ledger.view(MODEL).state(first) is State.RETIRED
    check_agreement(office, "2", "1")


def test_promoting_twice_is_a_no_op_with_the_same_answer(office: Office, tmp_path: Path) -> None:
    version = release_weights(office, tmp_path, "one")
    before = office.ledger.view(MODEL).head
    outcome = promote(MODEL, version, "pipeline", office=office)
    assert (outcome.changed, outcome.state) == (False, State.SOAKING)
    assert office.ledger.view(MODEL).head == before


def test_a_version_carries_its_own_files(office: Office, tmp_path: Path) -> None:
    release_weights(office, tmp_path, "one")
    shutil.rmtree(tmp_path / "policy-one")
    champion = resolve_champion(MODEL)
    assert champion is not None
    fetched = download_policy(champion.uri, champion.digest, tmp_path / "fetched")
    assert fetched.file("model.safetensors").read_text() == "one"
    with pytest.raises(ArtifactError, match="expected 000000"):
        download_policy(champion.uri, "0" * 64, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_same_release_asked_for_twice_is_one_version(office: Office, tmp_path: Path) -> None:
    assert judge_weights(office, tmp_path, "one") == judge_weights(office, tmp_path, "one") == "1"
    assert len(MlflowClient().search_model_versions(f"name='{MODEL}'")) == 1


def test_blocked_weights_with_new_evidence_come_as_a_new_version(office: Office, tmp_path: Path) -> None:
    first = judge_weights(office, tmp_path, "one", verdict=Verdict.BLOCK)
    assert judge_weights(office, tmp_path, "one", verdict=Verdict.BLOCK) == first
    second = judge_weights(office, tmp_path, "one", verdict=Verdict.HOLD, evidence="more")
    assert second != first
    assert judge_weights(office, tmp_path, "one", evidence="even more") == second, "HELD goes back to COLLECTING"
    assert office.ledger.view(MODEL).state(second) is State.APPROVED


def test_of_eight_concurrent_promoters_exactly_one_wins(office: Office, tmp_path: Path) -> None:
    release_weights(office, tmp_path, "one")
    versions = [judge_weights(office, tmp_path, f"rival-{number}") for number in range(8)]
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
    check_agreement(office, won[0][0], "1")


def test_of_eight_promoters_of_one_version_one_makes_the_change_and_all_agree(office: Office, tmp_path: Path) -> None:
    version = judge_weights(office, tmp_path, "one")
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
    check_agreement(office, "1")


def test_a_promotion_judged_against_another_champion_is_superseded(office: Office, tmp_path: Path) -> None:
    release_weights(office, tmp_path, "one")
    late = judge_weights(office, tmp_path, "late")
    release_weights(office, tmp_path, "two")
    with pytest.raises(PromotionError, match="another one"):
        promote(MODEL, late, "pipeline", office=office)
    assert office.ledger.view(MODEL).state(late) is State.SUPERSEDED
    check_agreement(office, "3", "1")


def test_files_altered_in_the_registry_are_never_promoted(office: Office, tmp_path: Path) -> None:
    release_weights(office, tmp_path, "one")
    version = judge_weights(office, tmp_path, "two")
    for file in (tmp_path / "mlflow-models").rglob("model.safetensors"):
        if file.read_text() == "two":
            file.write_text("evil")
    with pytest.raises(ArtifactError, match="altered"):
        promote(MODEL, version, "pipeline", office=office)
    assert office.ledger.view(MODEL).state(version) is State.ERROR
    check_agreement(office, "1")


def test_breaking_the_glass_is_loud_and_rollback_restores_the_predecessor(
    office: Office, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release_weights(office, tmp_path, "one")
    blocked = judge_weights(office, tmp_path, "two", verdict=Verdict.BLOCK)
    with pytest.raises(IllegalMoveError, match="break_glass"):
        promote(MODEL, blocked, "pipeline", office=office)
    outcome = break_glass(MODEL, blocked, "bob", "a customer waits", office=office)
    assert outcome.changed
    assert "BREAK GLASS" in caplog.text
    entries = office.ledger.view(MODEL).entries
    assert any(entry.event == "break_glass" and entry.reason == "BREAK GLASS: a customer waits" for entry in entries)
    check_agreement(office, "2", "1")
    restored = rollback(MODEL, "alice", "people are harmed", office=office)
    assert restored.seconds > 0.0
    assert (restored.version, restored.champion, restored.state) == ("2", "1", State.ROLLED_BACK)
    assert office.ledger.view(MODEL).state("1") is State.CHAMPION
    check_agreement(office, "1")
    taken = operations.last_rollback(MODEL)
    assert taken is not None
    assert (taken["version"], taken["taken_back"]) == ("1", "2")
    assert taken["seconds"] > 0.0
    break_glass(MODEL, blocked, "bob", "again", office=office)
    check_agreement(office, "2", "1")


def test_the_first_champion_cannot_be_rolled_back(office: Office, tmp_path: Path) -> None:
    with pytest.raises(PromotionError, match="nothing is live"):
        rollback(MODEL, "alice", "harm", office=office)
    release_weights(office, tmp_path, "one")
    with pytest.raises(PromotionError, match="first champion"):
        rollback(MODEL, "alice", "harm", office=office)
    check_agreement(office, "1")


def test_rollbacks_go_back_one_champion_at_a_time(office: Office, tmp_path: Path) -> None:
    for weights in ("one", "two", "three"):
        release_weights(office, tmp_path, weights)
    check_agreement(office, "3", "2")
    rollback(MODEL, "alice", "harm", office=office)
    check_agreement(office, "2", "1")
    rollback(MODEL, "alice", "harm", version="3", office=office)
    check_agreement(office, "2", "1")
    rollback(MODEL, "alice", "harm", office=office)
    check_agreement(office, "1")


def test_aliases_moved_by_hand_are_repaired_from_the_ledger(office: Office, tmp_path: Path) -> None:
    release_weights(office, tmp_path, "one")
    judge_weights(office, tmp_path, "two", verdict=Verdict.HOLD)
    client = MlflowClient()
    client.set_registered_model_alias(MODEL, "champion", "2")
    client.delete_registered_model_alias(MODEL, "candidate")
    assert set(repair(MODEL, office=office)) == {"champion: 2 > 1", "candidate: none > 2"}
    assert repair(MODEL, office=office) == []


@pytest.mark.parametrize("meanwhile", ["rollback", "promotion"])
def test_aliases_that_an_older_look_at_the_ledger_set_are_set_again(
    meanwhile: str, office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look at the ledger and its writing another process changed the champion."""
    release_weights(office, tmp_path, "one")
    release_weights(office, tmp_path, "two")
    third = judge_weights(office, tmp_path, "three", verdict=Verdict.HOLD)
    fourth = judge_weights(office, tmp_path, "four")
    look = Registry.aliases
    happened: list[str] = []

    def slowly(registry: Registry, model: str) -> dict[str, str]:
        if not happened:
            happened.append(meanwhile)
            if meanwhile == "rollback":
                rollback(MODEL, "alice", "harm", office=open_office())
            else:
                promote(MODEL, fourth, "pipeline", office=open_office())
        return look(registry, model)

    monkeypatch.setattr(Registry, "aliases", slowly)
    reject(MODEL, third, "bob", "no", office=office)

    check_agreement(office, *(("1",) if meanwhile == "rollback" else ("4", "2")))


def test_a_look_at_a_rollback_that_has_begun_does_not_undo_it(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_weights(office, tmp_path, "one")
    release_weights(office, tmp_path, "two")
    read_back = promotion._read_back

    def looked_at(office: Office, model: str, version: str) -> None:
        open_office().sync_aliases(model)
        read_back(office, model, version)

    monkeypatch.setattr(promotion, "_read_back", looked_at)
    rollback(MODEL, "alice", "harm", office=office)

    check_agreement(office, "1")


def test_aliases_that_somebody_else_keeps_setting_are_told(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_weights(office, tmp_path, "one")
    monkeypatch.setattr(Registry, "aliases", lambda *_: {"champion": "7"})

    with pytest.raises(PlumblineError, match="do not stay as the ledger wants them"):
        repair(MODEL, office=office)


def test_who_verifies_a_misspelt_model_makes_none(office: Office) -> None:
    verify("no-such-model", office=office)

    assert not MlflowClient().search_registered_models("name='no-such-model'")


def test_the_head_in_the_version_tags_shows_a_ledger_that_was_cut(office: Office, tmp_path: Path) -> None:

    release_weights(office, tmp_path, "one")
    with sqlite3.connect(tmp_path / "plumbline.db") as connection:
        connection.execute("DELETE FROM release_ledger WHERE sequence > 3")
    shutil.rmtree(tmp_path / "anchor")
    problems = " ".join(operations.verify(MODEL)["problems"])
    assert "the table does not: entries were removed" in problems


def test_a_name_that_the_registry_cannot_carry_is_refused(office: Office, tmp_path: Path) -> None:
    make_weights(tmp_path / "p", "w")
    with pytest.raises(InputError, match="cannot name"):
        office.registry.register("bad 'name'", read_artifact(tmp_path / "p", "policy"), request="r")


@pytest.mark.parametrize("variable", ["PLUMBLINE_DATABASE_URL", "PLUMBLINE_LEDGER_ANCHOR", "MLFLOW_TRACKING_URI"])
def test_a_service_that_is_not_set_is_named(office: Office, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(variable)
    with pytest.raises(InputError, match=variable):
        open_office()
