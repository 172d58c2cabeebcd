"""What soak compares: the model that is live, and the one that it replaced.

The first champion replaced nobody: it is compared with the reference that it was trained from.
"""

from __future__ import annotations

from dataclasses import dataclass

from components.release_gate.office import Office, open_office
from components.shared.errors import PlumblineError
from components.shared.tracking import stage_run

__all__ = ["LiveModels", "resolve_live_models"]


@dataclass(frozen=True)
class LiveModels:
    """The live version and its predecessor, pinned to digests; the predecessor's are "" for the first champion."""

    live_version: str
    live_digest: str
    live_uri: str
    predecessor_version: str
    predecessor_digest: str
    predecessor_uri: str


def resolve_live_models(model: str, *, office: Office | None = None) -> LiveModels:
    """Reads the ledger for the live version and the champion that it replaced.

    Raises:
        PlumblineError: Nothing is live.
    """
    with stage_run("live_models", settings={"model_name": model}):
        view = (office or open_office()).ledger.view(model)
        live = view.champion
        if live is None:
            raise PlumblineError("nothing is live.", where=f"model {model}", hint="Promote a version first.")
        predecessor = view.predecessor(live)
        if predecessor is None:
            return LiveModels(live, view.digest(live), view.uri(live), "", "", "")
        return LiveModels(
            live, view.digest(live), view.uri(live), predecessor, view.digest(predecessor), view.uri(predecessor)
        )
