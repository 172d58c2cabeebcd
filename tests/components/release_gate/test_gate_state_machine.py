"""Random lives of a model: verdicts, approvals, rejections, expiry, broken glass, rollbacks, kills, tampering.

Hypothesis drives the real functions over a real ledger and a real MLflow registry (both SQLite, files in a folder). A
kill may strike before or after any storage call of any event. After every event: never two champions, never none after
the first, nothing live without a valid approval or a broken glass, aliases that point at versions of the ledger, a log
that verifies and agrees with the heads anchored outside it, and what other stages read is what the ledger says.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from killed_process import STORAGE_CALLS
from sqlalchemy import text
from tiny_office import KEY, SIGNED_IN, Killed
from tiny_release import MODEL, make_policy, make_weights

from components.release_gate import approvals
from components.release_gate.approvals import approve, reject
from components.release_gate.office import Office, open_office, repair, verify
from components.release_gate.promotion import abandon, break_glass, promote, rollback
from components.release_gate.releases import JudgedRelease, record_live_verdict, record_verdict, register
from components.release_gate.states import TRANSITIONS, Event, State, is_live
from components.release_gate.verdict import Verdict
from components.shared.artifacts import read_artifact
from components.shared.champion import resolve_champion
from components.shared.errors import PlumblineError
from components.shared.ledger_table import open_engine
from components.shared.review_key import register_key

WEIGHTS = ("one", "two", "three")
PEOPLE = ("alice", "bob", "carol")
REQUIRED = 2
REQUESTER = "alice"

_weights = st.sampled_from(WEIGHTS)
_people = st.sampled_from(PEOPLE)
_kills = st.one_of(st.none(), st.none(), st.tuples(st.integers(1, 14), st.booleans()))
"""No kill, or one at the n-th storage call: before it (False) or after it (True)."""


@contextmanager
def _killed_at(call: int, *, after: bool) -> Iterator[None]:
    """The process dies at its `call`-th storage call; if it makes fewer, it lives."""
    calls = Counter[str]()
    with pytest.MonkeyPatch.context() as patch:
        for module, owner, method in STORAGE_CALLS:
            target = getattr(importlib.import_module(module), owner)
            original = getattr(target, method)

            def dying(self: Any, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
                calls["storage"] += 1
                if calls["storage"] == call and not after:
                    raise Killed
                result = _original(self, *args, **kwargs)
                if calls["storage"] == call and after:
                    raise Killed
                return result

            patch.setattr(target, method, dying)
        yield


class LifeOfAModel(RuleBasedStateMachine):
    """One model; three sets of weights; three people, of whom one asks for every release."""

    seen: ClassVar[Counter[tuple[str, str]]] = Counter()
    """(state, event) pairs that some run has put on the ledger."""
    root: ClassVar[Path]
    database: ClassVar[Path]
    lives: ClassVar[Iterator[int]] = count()

    def __init__(self) -> None:
        super().__init__()
        self.folder = self.root / f"life-{next(self.lives)}"  # never twice: MLflow keeps engines by path
        self.folder.mkdir()
        shutil.copyfile(self.database, self.folder / "mlflow.db")
        self.environment = pytest.MonkeyPatch()
        self.environment.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{self.folder / 'mlflow.db'}")
        self.environment.setenv("PLUMBLINE_DATABASE_URL", f"sqlite:///{self.folder / 'plumbline.db'}")
        self.environment.setenv("PLUMBLINE_LEDGER_ANCHOR", str(self.folder / "anchor"))
        register_key(open_engine(os.environ["PLUMBLINE_DATABASE_URL"]), KEY)
        self.office: Office = open_office()
        self.had_champion = False
        self.evidence = 0
        self.rejected: set[str] = set()

    def teardown(self) -> None:
        for entry in self.office.ledger.view(MODEL).entries:
            self.seen[entry.from_state, entry.event] += 1
        open_engine(os.environ["PLUMBLINE_DATABASE_URL"]).dispose()
        self.environment.undo()
        shutil.rmtree(self.folder)

    # --- what happens ----------------------------------------------------------------------------------------------

    @initialize(weights=_weights)
    def begin(self, weights: str) -> None:
        self._judge(weights, Verdict.PROMOTE, nobody=True)
        self._do(lambda: promote(MODEL, "1", "pipeline", office=self.office))

    @rule(
        weights=_weights,
        verdict=st.sampled_from([*[Verdict.PROMOTE] * 3, Verdict.HOLD, Verdict.BLOCK, Verdict.ERROR]),
        kill=_kills,
    )
    def gate_judges(self, weights: str, verdict: Verdict, kill: Any) -> None:
        self._judge(weights, verdict, kill=kill)

    @rule(weights=_weights, person=_people, kill=_kills)
    def somebody_approves(self, weights: str, person: str, kill: Any) -> None:
        self._on(
            weights,
            lambda version: approve(MODEL, version, person, "looked at it", desk=SIGNED_IN, office=self.office),
            kill,
        )

    @rule(weights=_weights, kill=_kills)
    def it_passes_both_approve_and_it_is_promoted(self, weights: str, kill: Any) -> None:
        self._judge(weights, Verdict.PROMOTE)
        self._both_approve(weights)
        self._on(weights, lambda version: promote(MODEL, version, "pipeline", office=self.office), kill)

    @rule(weights=_weights, person=_people, kill=_kills)
    def somebody_rejects(self, weights: str, person: str, kill: Any) -> None:
        self._on(weights, lambda version: reject(MODEL, version, person, "no", office=self.office), kill)

    @rule(weights=_weights, kill=_kills)
    def it_is_promoted(self, weights: str, kill: Any) -> None:
        self._on(weights, lambda version: promote(MODEL, version, "pipeline", office=self.office), kill)

    @rule(weights=_weights, kill=_kills)
    def a_year_passes_before_it_is_promoted(self, weights: str, kill: Any) -> None:
        self._judge(weights, Verdict.PROMOTE)
        self._both_approve(weights)
        with pytest.MonkeyPatch.context() as later:
            later.setattr(approvals, "datetime", _NextYear)
            self._on(weights, lambda version: promote(MODEL, version, "pipeline", office=self.office), kill)
            self._on(
                weights, lambda version: approve(MODEL, version, "bob", "late", desk=SIGNED_IN, office=self.office)
            )

    @rule(weights=_weights, verdict=st.sampled_from([Verdict.HOLD, Verdict.BLOCK, Verdict.ERROR]), kill=_kills)
    def it_fails_and_glass_is_broken(self, weights: str, verdict: Verdict, kill: Any) -> None:
        self._judge(weights, verdict)
        self._on(weights, lambda version: break_glass(MODEL, version, "dave", "urgent", office=self.office), kill)

    @rule(weights=st.permutations(WEIGHTS), kill=_kills)
    def two_pass_and_one_overtakes_the_other(self, weights: list[str], kill: Any) -> None:
        for name in weights[:2]:
            self._judge(name, Verdict.PROMOTE)
            self._both_approve(name)
        for name in weights[:2]:
            self._on(name, lambda version: promote(MODEL, version, "pipeline", office=self.office), kill)

    @rule(kill=_kills)
    def it_is_rolled_back(self, kill: Any) -> None:
        self._do(lambda: rollback(MODEL, "dave", "harm", office=self.office), kill)

    @rule(weights=_weights, kill=_kills)
    def it_is_abandoned(self, weights: str, kill: Any) -> None:
        self._on(weights, lambda version: abandon(MODEL, version, "dave", "stuck", office=self.office), kill)

    @rule(verdict=st.sampled_from([Verdict.KEEP, Verdict.HOLD, Verdict.ROLLBACK, Verdict.ERROR]), kill=_kills)
    def soak_judges(self, verdict: Verdict, kill: Any) -> None:
        live = self.office.ledger.view(MODEL).champion
        if live is not None:
            judged = self._judged({"candidate": "x", "champion": ""}, verdict, nobody=False)
            self._do(lambda: record_live_verdict(self.office, MODEL, live, judged), kill)

    @rule(alias=st.sampled_from(["champion", "previous", "candidate"]))
    def somebody_moves_an_alias_by_hand(self, alias: str) -> None:
        versions = list(self.office.ledger.view(MODEL).versions)
        if versions:
            self.office.registry.set_alias(MODEL, alias, versions[-1])

    @rule()
    def what_was_killed_is_ended_and_the_aliases_are_repaired(self) -> None:
        """Run again by anybody, whatever was under way ends, and the shadow follows the ledger."""
        view = self.office.ledger.view(MODEL)
        if view.promoting:
            self._do(lambda: promote(MODEL, str(view.promoting), "pipeline", office=self.office))
        if view.rolling_back:
            self._do(lambda: rollback(MODEL, "dave", "harm", version=view.rolling_back, office=self.office))
        view = self.office.ledger.view(MODEL)
        assert view.promoting is None
        assert view.rolling_back is None
        repair(MODEL, office=self.office)
        assert self.office.registry.aliases(MODEL).get("champion") == view.champion
        assert repair(MODEL, office=self.office) == []

    @rule(
        column=st.sampled_from(["actor", "reason", "to_state", "details", "evidence", "version", "time", "hash"]),
        place=st.integers(0, 10**6),
    )
    def an_entry_that_somebody_edits_is_found(self, column: str, place: int) -> None:
        head = self.office.ledger.view(MODEL).head[0]
        with self._tampered(
            f"UPDATE release_ledger SET {column} = {column} || 'x' WHERE sequence = {place % head + 1}"
        ):
            self._check_found()

    @rule(place=st.integers(0, 10**6), to_the_end=st.booleans())
    def an_entry_that_somebody_removes_is_found(self, place: int, to_the_end: bool) -> None:
        head = self.office.ledger.view(MODEL).head[0]
        sign = ">=" if to_the_end else "="
        with self._tampered(f"DELETE FROM release_ledger WHERE sequence {sign} {place % head + 1}"):
            self._check_found()

    # --- what is always true ---------------------------------------------------------------------------------------

    @invariant()
    def there_is_one_champion_and_never_none_after_the_first(self) -> None:
        view = self.office.ledger.view(MODEL)
        live = [version for version, state in view.versions.items() if is_live(state)]
        self.had_champion = self.had_champion or bool(live)
        assert len(live) == int(self.had_champion)
        assert sum(state is State.PROMOTING for state in view.versions.values()) <= 1
        read = resolve_champion(MODEL)
        assert (read.version if read else None) == view.champion

    @invariant()
    def nothing_went_live_without_a_valid_approval_or_broken_glass(self) -> None:
        entries = self.office.ledger.view(MODEL).entries
        for place, entry in enumerate(entries):
            if entry.event == Event.PROMOTE:
                self._check_approved([one for one in entries[:place] if one.version == entry.version])
            if entry.event == Event.PROMOTED:
                intent = entries[entry.data["intent"] - 1]
                assert intent.event in (Event.PROMOTE, Event.BREAK_GLASS)
                assert intent.version == entry.version
        rejected = {entry.version for entry in entries if entry.event == Event.REJECT}
        assert not any(
            is_live(state) for version, state in self.office.ledger.view(MODEL).versions.items() if version in rejected
        )

    @invariant()
    def the_log_verifies_and_its_anchored_heads_match(self) -> None:
        assert verify(MODEL, office=self.office).problems == []

    @invariant()
    def aliases_point_at_versions_of_the_ledger(self) -> None:
        known = self.office.ledger.view(MODEL).versions
        assert set(self.office.registry.aliases(MODEL).values()) <= set(known)

    # --- how -------------------------------------------------------------------------------------------------------

    def _judged(self, digests: dict[str, str], verdict: Verdict, *, nobody: bool) -> JudgedRelease:
        self.evidence += 1
        policy = make_policy(release={"approvals_required": 0 if nobody else REQUIRED})
        found = {**digests, "policy": policy.digest, "evidence": str(self.evidence)}
        return JudgedRelease(verdict, "because", found, policy, REQUESTER)

    def _judge(self, weights: str, verdict: Verdict, *, nobody: bool = False, kill: Any = None) -> None:
        folder = self.folder / weights
        if not folder.exists():
            make_weights(folder, weights)
        artifact = read_artifact(folder, "policy")
        view = self.office.ledger.view(MODEL)
        champion = view.digest(view.champion) if view.champion else ""
        judged = self._judged({"candidate": artifact.digest, "champion": champion}, verdict, nobody=nobody)

        def act() -> None:
            version = register(self.office, MODEL, artifact, judged)
            record_verdict(self.office, MODEL, version, judged)

        self._do(act, kill)

    def _both_approve(self, weights: str) -> None:
        for person in ("bob", "carol"):
            self._on(
                weights,
                lambda version, who=person: approve(MODEL, version, who, "fine", desk=SIGNED_IN, office=self.office),
            )

    def _approves(self, weights: str, person: str, kill: Any = None) -> None:
        def act(version: str) -> object:
            return approve(MODEL, version, person, "looked at it", desk=SIGNED_IN, office=self.office)

        self._on(weights, act, kill)

    def _on(self, weights: str, action: Callable[[str], object], kill: Any = None) -> None:
        folder = self.folder / weights
        version = (
            self.office.ledger.view(MODEL).version_of(read_artifact(folder, "policy").digest)
            if folder.exists()
            else None
        )
        if version is not None:
            self._do(lambda: action(version), kill)

    def _do(self, action: Callable[[], object], kill: tuple[int, bool] | None = None) -> None:
        """Does it, perhaps until it is killed; refusals are legal answers."""
        with _killed_at(kill[0], after=kill[1]) if kill else nullcontext():
            try:
                action()
            except Killed:
                return
            except PlumblineError:
                return

    @staticmethod
    def _check_approved(before: list[Any]) -> None:
        """The last verdict is PROMOTE, and as many people as it asks for approved it, the requester not among them."""
        verdicts = (Event.AWAIT_APPROVAL, Event.HOLD, Event.BLOCK, Event.FAIL)
        asked = [entry for entry in before if entry.event in verdicts][-1]
        assert asked.event == Event.AWAIT_APPROVAL
        given = [entry for entry in before if entry.event == Event.APPROVE and entry.sequence > asked.sequence]
        assert len({entry.actor for entry in given}) >= asked.data["approvals_required"]
        assert REQUESTER not in {entry.actor for entry in given}
        assert {entry.data["binding"] for entry in given} <= {asked.data["binding"]}
        assert before[-1].time <= asked.data["expires_at"]

    @contextmanager
    def _tampered(self, statement: str) -> Iterator[None]:
        """The ledger with a statement run on it, then as it was."""
        engine = open_engine(os.environ["PLUMBLINE_DATABASE_URL"])
        entries = self.office.ledger.view(MODEL).entries
        with engine.begin() as connection:
            connection.execute(text(statement))
        try:
            yield
        finally:
            with engine.begin() as connection:
                connection.execute(text("DELETE FROM release_ledger"))
                for entry in entries:
                    columns = ", ".join(f":{name}" for name in dataclasses.asdict(entry))
                    connection.execute(
                        text(f"INSERT INTO release_ledger VALUES ({columns})"), dataclasses.asdict(entry)
                    )

    def _check_found(self) -> None:
        try:
            assert verify(MODEL, office=self.office).problems != []
        except ValueError:  # a state or a JSON column that cannot be read at all
            raise AssertionError("verify must name what was edited, not fail on it") from None


class _NextYear(datetime):
    """A clock that is a year ahead."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        today = datetime.now(tz)
        return today.replace(year=today.year + 1, day=min(today.day, 28))


@pytest.fixture
def machine(migrated_mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[LifeOfAModel]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    LifeOfAModel.root = tmp_path
    LifeOfAModel.database = migrated_mlflow_database
    LifeOfAModel.seen = Counter()
    return LifeOfAModel


def test_no_life_of_a_model_breaks_what_is_promised(machine: type[LifeOfAModel]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    missing = {str(event) for event in Event} - {event for _, event in machine.seen}
    assert missing <= {"hold", "keep"}, "else little happened"
    assert len(machine.seen) >= len(TRANSITIONS) // 2, sorted(machine.seen)
