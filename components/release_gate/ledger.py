"""The release ledger: an append-only, hash-chained table that says who moved which version, when, why, on what.

    append:  read anchor > begin > replay > check > insert > commit > anchor

An append replays the model's entries inside its transaction, asks the state table and the caller's guard, and inserts
at head + 1. The primary key (model, sequence) is the compare-and-set: a writer that was overtaken sees the new head and
judges again. Each entry says under which account of which machine it was written. `verify` replays everything and names
each alteration that it finds, and each release that was cleared without approvals that count.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, inspect, select
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from components.release_gate.anchor import Anchor, LedgerAlteredError, ObjectAnchor, check_anchor, open_anchor
from components.release_gate.announcements import notice_of
from components.release_gate.entries import GENESIS, Entry, LedgerView, Move, entry_hash
from components.release_gate.signatures import approval_problems
from components.release_gate.states import NEW, Event, IllegalMoveError, State, is_live, next_state
from components.shared.accounts import account
from components.shared.errors import PlumblineError
from components.shared.files import canonical_json
from components.shared.ledger_table import LEDGER, METADATA, database_url, open_engine, sqlite_file
from components.shared.notices import write_notice
from components.shared.release_tables import create_release_tables
from components.shared.review_key import key_replaced_at, registered_key

__all__ = ["Ledger", "LedgerReport", "Planner", "open_ledger"]

_logger = logging.getLogger(__name__)

_ATTEMPTS = 50

Planner = Callable[[LedgerView], list[Move]]
"""Given the present ledger, says what to append: nothing is a legal answer, an error refuses."""


@dataclass(frozen=True)
class LedgerReport:
    """What `verify` found.

    Attributes:
        model: Registered model.
        entries: How many entries it has.
        head: (sequence, hash) of the last one.
        problems: One sentence per alteration; empty if the ledger is sound.
    """

    model: str
    entries: int
    head: tuple[int, str]
    problems: list[str]

    @property
    def sound(self) -> bool:
        return not self.problems


def open_ledger() -> Ledger:
    """The ledger of PLUMBLINE_DATABASE_URL, anchored in PLUMBLINE_LEDGER_ANCHOR."""
    return Ledger(database_url(), open_anchor())


class Ledger:
    """The ledger in one database.

    Args:
        url: SQLAlchemy URL (SQLite or Postgres).
        anchor: Where heads are anchored.
    """

    def __init__(self, url: str, anchor: Anchor | ObjectAnchor) -> None:
        file = sqlite_file(url)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        self._engine = open_engine(url)
        self._anchor = anchor
        self._create_table()
        create_release_tables(self._engine)

    def view(self, model: str) -> LedgerView:
        """The model's ledger as it is now."""
        with self._engine.connect() as connection:
            return LedgerView(model, _entries(connection, model))

    def models(self) -> list[str]:
        """The models that have a ledger, by name."""
        with self._engine.connect() as connection:
            return list(connection.execute(select(LEDGER.c.model).distinct().order_by(LEDGER.c.model)).scalars())

    def approval_key(self) -> str:
        """Public key of the review service, whose signature makes an approval one; "" if none was ever started."""
        return registered_key(self._engine)

    def approval_key_replaced_at(self) -> str:
        """When that key was last replaced; "" if it never was."""
        return key_replaced_at(self._engine)

    def append(self, model: str, plan: Planner) -> tuple[LedgerView, list[Entry]]:
        """Appends what `plan` decides, all of it or nothing.

        `plan` sees the ledger that its moves will follow directly: if another writer comes between, it is asked
        again with the new ledger. Its several moves become visible together.

        Returns:
            The ledger after the append, and the entries that this call appended.

        Raises:
            IllegalMoveError: The state table refuses a move.
            LedgerAlteredError: The table does not agree with its anchor.
            PlumblineError: Too many other writers.
        """
        for attempt in range(_ATTEMPTS):
            anchored = self._anchor.head(model)
            try:
                view, added = self._append_once(model, plan, anchored)
            except IntegrityError:
                _logger.debug("Ledger of %s moved on; attempt %d judges again.", model, attempt + 1)
                time.sleep(random.uniform(0, 0.02 * (attempt + 1)))
                continue
            lags = anchored is not None and anchored[0] < view.head[0]  # whoever appended last was killed, or cut off
            if added or lags:
                self._anchor.advance(model, view.head)
            return view, added
        raise PlumblineError(
            f"{_ATTEMPTS} other writers were faster.", where=f"ledger of {model}", hint="Try again in a minute."
        )

    def verify(self, model: str, *, heads: list[tuple[int, str]] | None = None) -> LedgerReport:
        """Replays the model's ledger and names everything that was edited, removed or moved.

        Args:
            model: Registered model.
            heads: The heads in the tags of the model's versions, read before this call; None leaves them out.
        """
        anchored: list[tuple[int, str] | None] = [self._anchor.head(model), *(heads or [])]
        with self._engine.connect() as connection:
            entries = _entries(connection, model)
        problems = _chain_problems(entries) + _state_problems(entries)
        if not problems:
            problems += approval_problems(LedgerView(model, entries))
        if anchored[0] is None and entries:
            problems.append("the anchor is missing: the end of the ledger cannot be vouched for.")
        if heads == [] and any(entry.event != Event.REGISTER for entry in entries):
            problems.append("no model version's tags hold a head of the ledger: they were removed.")
        problems.extend(problem for head in anchored if (problem := check_anchor(head, entries)))
        head = (entries[-1].sequence, entries[-1].hash) if entries else (0, GENESIS)
        return LedgerReport(model, len(entries), head, list(dict.fromkeys(problems)))

    def _append_once(
        self, model: str, plan: Planner, anchored: tuple[int, str] | None
    ) -> tuple[LedgerView, list[Entry]]:
        with self._engine.connect().execution_options(write=True) as connection, connection.begin():
            view = LedgerView(model, _entries(connection, model))
            problem = check_anchor(anchored, view.entries)
            if problem:
                raise LedgerAlteredError(problem, where=f"ledger of {model}", hint="Run `plumbline verify`.")
            added = _chain(view, plan(view))
            for entry in added:
                connection.execute(LEDGER.insert().values(**asdict(entry)))
                if (notice := notice_of(entry)) is not None:
                    write_notice(connection, notice)
        return LedgerView(model, view.entries + added), added

    def _create_table(self) -> None:
        """Creates the table once; safe when two processes do it at the same time."""
        if inspect(self._engine).has_table(LEDGER.name):
            return
        try:
            with self._engine.connect().execution_options(write=True) as connection, connection.begin():
                METADATA.create_all(connection, tables=[LEDGER], checkfirst=True)
        except (IntegrityError, OperationalError, ProgrammingError):
            if not inspect(self._engine).has_table(LEDGER.name):
                raise


def _entries(connection: Connection, model: str) -> list[Entry]:
    rows = connection.execute(select(LEDGER).where(LEDGER.c.model == model).order_by(LEDGER.c.sequence))
    return [Entry(**row._mapping) for row in rows]


def _chain(view: LedgerView, moves: list[Move]) -> list[Entry]:
    """The entries of `moves`: states from the table, sequence and hashes from the head."""
    sequence, previous = view.head
    states: dict[str, State] = view.versions
    entries = []
    for move in moves:
        state = states.get(move.version, NEW)
        target = next_state(state, move.event, where=f"{view.model} version {move.version}")
        sequence += 1
        columns: dict[str, Any] = {
            "model": view.model,
            "sequence": sequence,
            "version": move.version,
            "event": str(move.event),
            "from_state": str(state),
            "to_state": str(target),
            "actor": move.actor,
            "reason": move.reason,
            "evidence": canonical_json(move.evidence),
            "details": canonical_json({**move.details, "written_by": account()}),
            "time": datetime.now(UTC).isoformat(),
            "previous_hash": previous,
        }
        entry = Entry(**columns, hash=entry_hash(columns))
        entries.append(entry)
        states[move.version], previous = target, entry.hash
    _refuse_two_champions(view.model, states)
    if view.champion is not None and not any(is_live(state) for state in states.values()):
        raise IllegalMoveError(
            f"would leave no champion after version {view.champion}.",
            where=f"model {view.model}",
            hint="Restore or promote another version in the same step.",
        )
    return entries


def _refuse_two_champions(model: str, states: dict[str, State]) -> None:
    for what, found in (
        ("live", [version for version, state in states.items() if is_live(state)]),
        ("promoting", [version for version, state in states.items() if state is State.PROMOTING]),
    ):
        if len(found) > 1:
            raise IllegalMoveError(
                f"would leave {len(found)} versions {what}: {', '.join(found)}.",
                where=f"model {model}",
                hint="Let the other promotion end first.",
            )


def _chain_problems(entries: list[Entry]) -> list[str]:
    problems, previous = [], GENESIS
    for position, entry in enumerate(entries, start=1):
        if entry.sequence != position:
            problems.append(f"entry {position} is missing (found {entry.sequence} in its place).")
            return problems
        if entry.previous_hash != previous:
            problems.append(f"entry {position} does not follow entry {position - 1}: the chain is broken there.")
        if entry_hash(asdict(entry)) != entry.hash:
            problems.append(f"entry {position} ({entry.event} of version {entry.version}) was edited.")
        previous = entry.hash
    return problems


def _state_problems(entries: list[Entry]) -> list[str]:
    """Moves that the state table forbids, and champions too many or too few, in the order of the entries."""
    problems: list[str] = []
    states: dict[str, State] = {}
    had_champion = False
    for entry in entries:
        known = states.get(entry.version, NEW)
        if entry.from_state != known:
            problems.append(f"entry {entry.sequence} leaves {entry.from_state}, but the version was {known}.")
        try:
            target = next_state(known, Event(entry.event))
        except (IllegalMoveError, ValueError):
            problems.append(f"entry {entry.sequence}: {entry.event} is not legal in state {known}.")
            target = known
        if entry.to_state != target:
            problems.append(f"entry {entry.sequence} claims state {entry.to_state}; the table says {target}.")
        states[entry.version] = target
        live = [version for version, state in states.items() if is_live(state)]
        had_champion = had_champion or bool(live)
        # A switch is two entries of one transaction: the new champion's, then the old one's.
        switching = entry.event in (Event.PROMOTED, Event.RESTORE) and entry is not entries[-1]
        if len(live) > (2 if switching else 1):
            problems.append(f"after entry {entry.sequence} there are {len(live)} champions: {', '.join(live)}.")
        if had_champion and not live:
            problems.append(f"after entry {entry.sequence} there is no champion.")
    return problems
