"""The report of a run: `report.html` for people, `summary.json` for scripts.

It runs last, whatever happened before: a run that failed or was blocked half-way gets a page that says where and why.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.report.notice import Notice
from components.report.page import build_page
from components.report.parts import Parts, read_parts
from components.report.settings import RunInfo
from components.report.summary import build_summary
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.champion import resolve_champion
from components.shared.files import write_json, write_text
from components.shared.ledger_table import DATABASE_VARIABLE
from components.shared.progress import PROGRESS_VARIABLE
from components.shared.settings import parse_settings
from components.shared.tracking import attach_to_pipeline_run, pipeline_usage
from components.shared.usage import summarise

__all__ = ["publish", "publish_end", "run"]

_logger = logging.getLogger(__name__)


def run(*, output: str, artifacts: dict[str, str], run: dict[str, Any]) -> dict[str, Any]:
    """Writes a `report` artifact: `report.html` and `summary.json`.

    Args:
        output: Where the artifact shall be.
        artifacts: Folder of each artifact by role (`parts.ROLES`); any may be missing.
        run: A `RunInfo` as a dict.

    Returns:
        The artifact's digest, the verdict and the champion.

    Raises:
        InputError: `run` is not a `RunInfo`.
        PlumblineError: An unknown role.
    """
    parts, info = _read(artifacts, run)
    summary = build_summary(parts, info)
    digests = {role: manifest["digest"] for role, manifest in parts.manifests.items()}
    with write_artifact(output, "report", inputs=digests, stage="report") as draft:
        write_text(draft.path / "report.html", build_page(parts, info))
        write_json(draft.path / "summary.json", summary)
    _logger.info("Report: %s", Path(output) / "report.html")
    return {"digest": read_artifact(output, "report").digest, **_headline(summary)}


def publish(
    *, page: str, summary: str, artifacts: Mapping[str, Any], model_name: str, seed: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """The same as `run` from inside the pipeline, as two single files, which is how its UI shows them.

    The run's name and its champion come from the environment of the step.

    Args:
        page: Where the HTML document shall be.
        summary: Where the JSON summary shall be.
        artifacts: KFP's artifact (anything with a `path`) by role, or None where the run has none.
        model_name: Registered model whose champion the report names.
        seed: Seed of the run.
        settings: The run's settings.

    Returns:
        The verdict and the champion.
    """
    champion = resolve_champion(model_name) if os.environ.get(DATABASE_VARIABLE) else None
    about = {
        "run_id": os.environ.get("PLUMBLINE_RUN_ID") or model_name,
        "seed": seed,
        "settings": settings,
        "champion": {"name": champion.name, "version": champion.version} if champion else None,
        "usage": summarise(pipeline_usage()),
    }
    paths = {role: artifact.path for role, artifact in artifacts.items() if artifact is not None}
    parts, info = _read(paths, about)
    values = build_summary(parts, info)
    write_text(page, build_page(parts, info))
    write_json(summary, values)
    return _headline(values)


def publish_end(*, page: str, notice: Notice) -> None:
    """What the exit handler leaves of a run that failed: a page that says where and why, also in the run's MLflow run.

    It has no artifacts: an exit handler is given none. On one machine the runner writes a page with all of them.

    Args:
        page: Where the HTML document shall be.
        notice: How the run ended.
    """
    if notice.status == "SUCCEEDED" or os.environ.get(PROGRESS_VARIABLE):
        return
    cause = notice.cause or "no cause is known; look at the log of the last step."
    about = {
        "run_id": notice.run_id,
        "status": notice.status,
        "failure": {"stage": notice.stage, "message": cause},
    }
    parts, info = _read({}, about)
    Path(page).parent.mkdir(parents=True, exist_ok=True)
    write_text(page, build_page(parts, info))
    attach_to_pipeline_run(page, "report.html")


def _read(artifacts: Mapping[str, str], run: dict[str, Any]) -> tuple[Parts, RunInfo]:
    return read_parts(artifacts), parse_settings(run, RunInfo, where="report, run")


def _headline(summary: dict[str, Any]) -> dict[str, Any]:
    champion = summary["champion"]
    return {"verdict": summary["verdict"], "champion": champion["name"], "champion_version": champion["version"]}
