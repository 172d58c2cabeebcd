"""Ledger and registry together: the ledger is the truth, MLflow's aliases follow it.

office = open_office()            from the environment of a step
office.record(model, plan)        append to the ledger, anchor its head in the registry too
office.sync_aliases(model)        make the aliases what the ledger says
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from components.release_gate.entries import Entry, LedgerView
from components.release_gate.ledger import Ledger, LedgerReport, Planner, open_ledger
from components.release_gate.registry import ALIASES, CANDIDATE, CHAMPION, PREVIOUS, Registry, open_registry
from components.release_gate.states import State
from components.shared.errors import PlumblineError

__all__ = ["Office", "history", "open_office", "repair", "verify"]

_logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.05
_LOOKS = 10
"""Times that aliases are set and looked at again before somebody else is taken to set them too."""

_UNDER_WAY = frozenset(
    {
        State.REGISTERED,
        State.VALIDATING,
        State.COLLECTING,
        State.HELD,
        State.AWAITING_APPROVAL,
        State.APPROVED,
        State.PROMOTING,
    }
)
"""A version in one of these may hold the candidate alias."""


@dataclass(frozen=True)
class Office:
    """Where releases are recorded and served from."""

    ledger: Ledger
    registry: Registry

    def record(self, model: str, plan: Planner) -> tuple[LedgerView, list[Entry]]:
        """`Ledger.append`, and the new head into the tags of the versions concerned."""
        view, added = self.ledger.append(model, plan)
        for version in dict.fromkeys(entry.version for entry in added):
            self.registry.anchor(model, version, view.head)
        return view, added

    def sync_aliases(self, model: str, *, interrupt: bool = False) -> list[str]:
        """Sets each alias to what the ledger says; returns what was changed, in words.

        Args:
            model: Registered model.
            interrupt: Also move the aliases of a promotion or a rollback under way back to the present champion.

        Raises:
            PlumblineError: They are something else again each time that they were set.
        """
        changed: list[str] = []
        for look in range(_LOOKS):
            time.sleep(_PAUSE_SECONDS * look)  # behind a lagging replica of the registry a right write is seen late
            now = self._follow_ledger(model, interrupt=interrupt)
            if not now:
                break
            changed += now  # and once more: the ledger may have moved on while they were set
        else:
            raise PlumblineError(
                f"its aliases do not stay as the ledger wants them ({changed[-1]}).",
                where=f"model {model}",
                hint="Somebody else sets them: only Plumbline may. Then `plumbline repair`.",
            )
        if changed:
            _logger.info("Aliases of %s now follow the ledger (%s).", model, "; ".join(changed))
        return changed

    def _follow_ledger(self, model: str, *, interrupt: bool) -> list[str]:
        view = self.ledger.view(model)
        wanted, found = _wanted_aliases(view), self.registry.aliases(model)
        changed = []
        at_rest = view.promoting is None and view.rolling_back is None
        for alias in ALIASES if interrupt or at_rest else (CANDIDATE,):
            if found.get(alias) != wanted[alias]:
                self.registry.set_alias(model, alias, wanted[alias])
                changed.append(f"{alias}: {found.get(alias) or 'none'} > {wanted[alias] or 'none'}")
        return changed


def open_office() -> Office:
    """Ledger and registry of this environment."""
    return Office(open_ledger(), open_registry())


def repair(model: str, *, office: Office | None = None) -> list[str]:
    """Makes MLflow's aliases what the ledger says; a promotion that is under way then runs again from its aliases on.

    Returns:
        What was changed, such as `champion: 3 > 2`; empty if nothing was wrong.
    """
    return (office or open_office()).sync_aliases(model, interrupt=True)


def verify(model: str, *, office: Office | None = None) -> LedgerReport:
    """Replays a model's ledger against both of its anchors: the anchor folder and the version tags."""
    office = office or open_office()
    return office.ledger.verify(model, heads=office.registry.anchored_heads(model))


def history(model: str, *, office: Office | None = None) -> list[dict[str, object]]:
    """Every entry of a model's ledger, oldest first: who, when, from, to, why, on which evidence."""
    office = office or open_office()
    return [entry.as_dict() for entry in office.ledger.view(model).entries]


def _wanted_aliases(view: LedgerView) -> dict[str, str | None]:
    champion = view.champion
    candidates = [version for version, state in view.versions.items() if state in _UNDER_WAY]
    return {
        CHAMPION: champion,
        PREVIOUS: view.predecessor(champion) if champion else None,
        CANDIDATE: candidates[-1] if candidates else None,
    }
