"""kill -9 before and after every storage call of promotion and rollback, and races of processes, on both databases."""

from __future__ import annotations

from pathlib import Path

from killed_process import count_storage_calls, kill_at_call, run_all_at_once
from tiny_office import check_agreement, judge_weights, release_weights
from tiny_release import MODEL

from components.release_gate.office import Office, verify
from components.release_gate.promotion import promote, rollback
from components.release_gate.states import State, is_live
from components.shared.champion import resolve_champion

PROMOTERS = 6


def _check_one_champion(office: Office) -> None:
    """Whatever was killed: the ledger replays, one version is live, and the alias points at a version."""
    view = office.ledger.view(MODEL)
    assert [state for state in view.versions.values() if is_live(state)] != []
    assert sum(is_live(state) for state in view.versions.values()) == 1
    assert resolve_champion(MODEL) is not None
    assert verify(MODEL, office=office).problems == []
    assert office.registry.aliases(MODEL).get("champion") in view.versions


def _moments(calls: int) -> list[tuple[int, bool]]:
    """Before each call, and after the last: nothing is stored between the end of one call and the start of the next."""
    return [*((call, False) for call in range(1, calls + 1)), (calls, True)]


def test_a_promotion_killed_before_or_after_any_storage_call_is_ended_by_running_it_again(
    any_office: Office, tmp_path: Path
) -> None:
    office, names = any_office, ["one", "two"]
    champion = release_weights(office, tmp_path, names[0])
    previous, champion = champion, judge_weights(office, tmp_path, names[1])
    calls = count_storage_calls("promote", MODEL, champion)
    assert calls >= 12
    for call, after in _moments(calls):
        names.reverse()  # the weights that are not live; they come as a new version each time
        version = judge_weights(office, tmp_path, names[1])
        kill_at_call("promote", MODEL, version, call, after=after)
        _check_one_champion(office)
        promote(MODEL, version, "pipeline", office=office)
        previous, champion = champion, version
        check_agreement(office, champion, previous)


def test_a_rollback_killed_before_or_after_any_storage_call_is_ended_by_running_it_again(
    any_office: Office, tmp_path: Path
) -> None:
    office = any_office
    kept = release_weights(office, tmp_path, "one")
    calls = count_storage_calls("rollback", MODEL, release_weights(office, tmp_path, "two"))
    assert calls >= 12
    for call, after in _moments(calls):
        version = release_weights(office, tmp_path, "two")
        kill_at_call("rollback", MODEL, version, call, after=after)
        _check_one_champion(office)
        outcome = rollback(MODEL, "alice", "harm", version=version, office=office)
        assert (outcome.state, outcome.champion) == (State.ROLLED_BACK, kept)
        check_agreement(office, kept)


def test_of_many_promoting_processes_exactly_one_wins(any_office: Office, tmp_path: Path) -> None:
    office = any_office
    first = release_weights(office, tmp_path, "one")
    versions = [judge_weights(office, tmp_path, f"rival-{number}") for number in range(PROMOTERS)]
    found = run_all_at_once("promote", MODEL, versions)
    won = [version for version, changed, _ in found if changed]
    assert len(won) == 1, found
    assert not any("UNEXPECTED" in said for _, _, said in found), found
    assert sum(changed is None for _, changed, _ in found) == PROMOTERS - 1
    check_agreement(office, won[0], first)


def test_of_many_processes_that_promote_one_version_one_makes_the_change_and_all_agree(
    any_office: Office, tmp_path: Path
) -> None:
    office = any_office
    first = release_weights(office, tmp_path, "one")
    version = judge_weights(office, tmp_path, "two")
    found = run_all_at_once("promote", MODEL, [version] * PROMOTERS)
    assert [changed for _, changed, _ in found].count(True) == 1, found
    assert [changed for _, changed, _ in found].count(False) == PROMOTERS - 1, found
    check_agreement(office, version, first)


def test_of_many_rollbacks_at_once_one_makes_the_change_and_goes_back_one_champion(
    any_office: Office, tmp_path: Path
) -> None:
    office = any_office
    for weights in ("one", "two", "three"):
        release_weights(office, tmp_path, weights)
    found = run_all_at_once("rollback", MODEL, ["3"] * PROMOTERS)
    assert [changed for _, changed, _ in found].count(True) == 1, found
    assert not any("UNEXPECTED" in said for _, _, said in found), found
    check_agreement(office, "2", "1")
