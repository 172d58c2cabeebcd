"""First step of a run: says in plain words what is missing before a GPU hour is spent, and pins the champion.

Every later step uses the champion's digest and not the alias, so that a promotion in the middle of the run cannot
change what it is compared with.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial

from components.prerequisites.checks import (
    check_base_model,
    check_data,
    check_database,
    check_disk,
    check_gpu,
    check_plug_in,
    check_tracking,
)
from components.prerequisites.settings import PrerequisitesSettings
from components.shared.champion import Champion, resolve_champion
from components.shared.errors import PlumblineError
from components.shared.settings import parse_settings
from components.shared.tracking import stage_run

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(*, base_model: str, data: Mapping[str, str], model_name: str, settings: dict) -> Champion | None:
    """Checks everything, then resolves the champion.

    Args:
        base_model: Model folder or hub id.
        data: URI of each data source by name; empty ones are not used by this run.
        model_name: The registered model.
        settings: `PrerequisitesSettings`.

    Returns:
        The champion, or None when there is none yet.

    Raises:
        PlumblineError: All that is missing, one fault a line.
    """
    with stage_run("prerequisites", settings=settings):
        parsed = parse_settings(settings, PrerequisitesSettings, where="prerequisites settings")
        sources = [partial(check_data, name, uri) for name, uri in data.items() if uri]
        _run_all(
            *sources,
            partial(check_base_model, base_model),
            partial(check_disk, os.environ.get("PLUMBLINE_CHECKPOINTS", "."), parsed.min_free_disk_gib),
            partial(check_gpu, parsed.require_gpu),
            *(partial(check_plug_in, reference) for reference in parsed.plug_ins),
            check_tracking,
            check_database,
        )
        champion = resolve_champion(model_name)
        logger.info("champion of %s: %s", model_name, f"version {champion.version}" if champion else "none yet")
        return champion


def _run_all(*checks: Callable[[], str]) -> None:
    """Runs every check before it fails, so that a person mends everything at once."""
    faults = []
    for check in checks:
        try:
            logger.info("ok    %s", check())
        except PlumblineError as error:
            logger.error("FAIL  %s", error)
            faults.append(str(error))
    if faults:
        raise PlumblineError("; ".join(faults), where=f"{len(faults)} prerequisite{'s' * (len(faults) > 1)} missing")
