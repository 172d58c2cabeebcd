"""What the ledger says: its entries, and the state of every version that follows from them.

A `LedgerView` is a replay of one model's entries up to a head. Everything that decides (who is champion, what a version
may do next, which predecessor a rollback restores) is computed from it and stored nowhere else.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from components.release_gate.states import NEW, Event, State, is_live
from components.shared.errors import PlumblineError
from components.shared.files import digest_of

__all__ = ["ANONYMOUS", "GENESIS", "Entry", "LedgerView", "Move", "entry_hash", "is_anonymous"]

GENESIS = "0" * 64
"""Previous hash of a model's first entry."""

ANONYMOUS = "pipeline"
"""Who acts when nobody is named: no person, so nobody who could be kept from approving."""


@dataclass(frozen=True)
class Move:
    """An event to append.

    Attributes:
        version: The model version that it happens to.
        event: What happens.
        actor: Who does it: a person, or the name of a service.
        reason: Why, in plain words.
        evidence: Digests it rests on, by name.
        details: What later steps need (JSON values); part of the hash.
    """

    version: str
    event: Event
    actor: str
    reason: str
    evidence: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One row of the ledger, as stored."""

    model: str
    sequence: int
    version: str
    event: str
    from_state: str
    to_state: str
    actor: str
    reason: str
    evidence: str
    details: str
    time: str
    previous_hash: str
    hash: str

    @property
    def evidence_digests(self) -> dict[str, str]:
        return json.loads(self.evidence)

    @property
    def data(self) -> dict[str, Any]:
        """`details`, parsed."""
        return json.loads(self.details)

    def as_dict(self) -> dict[str, Any]:
        """For people and JSON: every column, with evidence and details parsed."""
        return asdict(self) | {"evidence": self.evidence_digests, "details": self.data}


def is_anonymous(name: str) -> bool:
    """Whether this names nobody."""
    return name.strip().casefold() in ("", ANONYMOUS)


def entry_hash(columns: dict[str, Any]) -> str:
    """sha256 over every column but the hash itself; the previous hash is one of them, which makes the chain."""
    return digest_of({name: value for name, value in columns.items() if name != "hash"})


class LedgerView:
    """One model's ledger, replayed.

    Args:
        model: Registered model.
        entries: All its entries, in order.
    """

    def __init__(self, model: str, entries: list[Entry]) -> None:
        self.model = model
        self.entries = entries
        self._states: dict[str, State] = {}
        self._registered: dict[str, dict[str, Any]] = {}
        for entry in entries:
            self._states[entry.version] = State(entry.to_state)
            if entry.event == Event.REGISTER:
                self._registered[entry.version] = entry.data

    @property
    def head(self) -> tuple[int, str]:
        """(sequence, hash) of the last entry; (0, GENESIS) of an empty ledger."""
        return (self.entries[-1].sequence, self.entries[-1].hash) if self.entries else (0, GENESIS)

    @property
    def versions(self) -> dict[str, State]:
        """State of each version, in the order of registration."""
        return dict(self._states)

    @property
    def champion(self) -> str | None:
        """The live version."""
        return next((version for version, state in self._states.items() if is_live(state)), None)

    @property
    def promoting(self) -> str | None:
        """The version whose promotion has begun and not ended."""
        return next((version for version, state in self._states.items() if state is State.PROMOTING), None)

    @property
    def rolling_back(self) -> str | None:
        """The live version whose rollback has begun and was neither ended nor abandoned."""
        live = self.champion
        if live is None:
            return None
        for entry in reversed(self.entries):
            if entry.version != live:
                continue
            if entry.event == Event.BEGIN_ROLLBACK:
                return live
            if entry.event in (Event.PROMOTED, Event.RESTORE) or entry.data.get("abandons") == "rollback":
                return None
        return None

    def state(self, version: str) -> State:
        return self._states.get(version, NEW)

    def digest(self, version: str) -> str:
        """Digest of a version's policy artifact."""
        return self._release(version)["digest"]

    def uri(self, version: str) -> str:
        """Where a version's policy artifact lies."""
        return self._release(version)["uri"]

    def requester(self, version: str) -> str:
        """Who asked for the release: at its registration or, where nobody was known then, at a later verdict."""
        registered = self._release(version)["requester"]
        if not is_anonymous(registered):
            return registered
        told = (entry.data.get("requester", "") for entry in self.entries if entry.version == version)
        return next((name for name in told if not is_anonymous(name)), registered)

    def verdict_before_live(self, version: str) -> Entry | None:
        """The verdict on which a version first went live, or in spite of which; None if it never did."""
        mine = [entry for entry in self.entries if entry.version == version]
        begun = next((n for n, entry in enumerate(mine) if entry.event in (Event.PROMOTE, Event.BREAK_GLASS)), 0)
        return next((entry for entry in reversed(mine[:begun]) if entry.data.get("verdict")), None)

    def last(self, version: str, *events: Event) -> Entry | None:
        """The latest entry of a version, among `events` if given."""
        for entry in reversed(self.entries):
            if entry.version == version and (not events or entry.event in events):
                return entry
        return None

    def since(self, version: str, event: Event) -> list[Entry]:
        """A version's entries after its latest `event`."""
        start = self.last(version, event)
        floor = start.sequence if start else 0
        return [entry for entry in self.entries if entry.version == version and entry.sequence > floor]

    def predecessor(self, version: str) -> str | None:
        """The champion that `version` replaced when it was promoted; None for the first."""
        entry = self.last(version, Event.PROMOTED)
        return entry.data.get("replaces") if entry else None

    def version_of(self, digest: str) -> str | None:
        """The newest version with these weights."""
        return next((v for v in reversed(self._registered) if self._registered[v]["digest"] == digest), None)

    def _release(self, version: str) -> dict[str, Any]:
        if version not in self._registered:
            known = ", ".join(self._registered) or "none"
            raise PlumblineError(
                f"version {version} is not on the ledger.",
                where=f"model {self.model}",
                hint=f"Registered versions: {known}.",
            )
        return self._registered[version]
