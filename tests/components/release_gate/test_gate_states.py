from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.release_gate.states import (
    NEW,
    TRANSITIONS,
    Event,
    IllegalMoveError,
    State,
    is_live,
    legal_events,
    next_state,
)
from components.shared.ledger_table import LIVE_STATES

PATH_TO_CHAMPION = [
    (Event.REGISTER, State.REGISTERED),
    (Event.VALIDATE, State.VALIDATING),
    (Event.COLLECT, State.COLLECTING),
    (Event.AWAIT_APPROVAL, State.AWAITING_APPROVAL),
    (Event.CLEAR, State.APPROVED),
    (Event.PROMOTE, State.PROMOTING),
    (Event.PROMOTED, State.SOAKING),
    (Event.KEEP, State.CHAMPION),
    (Event.RETIRE, State.RETIRED),
]


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_every_pair_moves_as_the_table_says_or_is_refused_with_the_legal_events(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) is TRANSITIONS[state, event]
        return
    with pytest.raises(IllegalMoveError) as refused:
        next_state(state, event, where="model x version 1")
    for legal in legal_events(state):
        assert legal in str(refused.value)


def test_a_release_goes_the_whole_way_to_champion_and_retires() -> None:
    state = NEW
    for event, expected in PATH_TO_CHAMPION:
        state = next_state(state, event)
        assert state is expected


def test_every_state_but_the_first_can_be_reached() -> None:
    reached = {NEW}
    while True:
        more = {target for (source, _), target in TRANSITIONS.items() if source in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(State)


def test_a_version_goes_live_only_through_promotion_or_as_restored_predecessor() -> None:
    entering = {event for (source, event), target in TRANSITIONS.items() if is_live(target) and not is_live(source)}
    assert entering == {Event.PROMOTED, Event.RESTORE}


def test_promoting_is_entered_by_approval_or_broken_glass_only() -> None:
    entering = {(source, event) for (source, event), target in TRANSITIONS.items() if target is State.PROMOTING}
    assert {event for _, event in entering} == {Event.PROMOTE, Event.BREAK_GLASS}
    assert [source for source, event in entering if event is Event.PROMOTE] == [State.APPROVED]


@pytest.mark.parametrize("state", [State.REJECTED, State.EXPIRED, State.SUPERSEDED])
def test_final_states_allow_nothing(state: State) -> None:
    assert legal_events(state) == []


def test_live_states_are_those_that_other_stages_read() -> None:
    assert {state for state in State if is_live(state)} == LIVE_STATES == {"SOAKING", "CHAMPION"}


@given(st.lists(st.sampled_from(list(Event)), max_size=30))
def test_a_rejected_release_never_goes_live(events: list[Event]) -> None:
    state, rejected = NEW, False
    for event in events:
        if (state, event) in TRANSITIONS:
            state = TRANSITIONS[state, event]
            rejected = rejected or state is State.REJECTED
    assert not (rejected and is_live(state))
