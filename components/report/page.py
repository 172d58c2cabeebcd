"""`report.html`: one page that tells the story of a run, from the verdict down to the digests."""

from __future__ import annotations

from components.report.by_slice import slices_section
from components.report.data import data_section
from components.report.parts import Missing, Parts
from components.report.people import raters_section, samples_section
from components.report.provenance import (
    policy_section,
    provenance_section,
    settings_section,
    time_section,
)
from components.report.settings import RunInfo
from components.report.story import criteria_section, divergence_section, trajectory_section, verdict_section
from components.report.training import optimization_section, reward_model_section
from components.report.verdict import judge
from components.shared.report import Section, render_page, table

__all__ = ["build_page"]


def build_page(parts: Parts, run: RunInfo) -> str:
    """The report of a run as one HTML document; a part that is missing says why.

    Args:
        parts: What the run left.
        run: What is known of the run itself.
    """
    outcome = judge(parts, run)
    contents: list[Section | Missing] = [
        verdict_section(parts, run, outcome),
        trajectory_section(parts),
        criteria_section(parts),
        divergence_section(parts),
        slices_section(parts),
        samples_section(parts),
        raters_section(parts),
        optimization_section(parts),
        reward_model_section(parts),
        data_section(parts),
        policy_section(parts),
        settings_section(run),
        provenance_section(parts, run),
        time_section(parts, run),
    ]
    missing = [part for part in contents if isinstance(part, Missing)]
    sections = [part for part in contents if isinstance(part, Section)]
    if missing:
        rows = [[part.title, part.reason] for part in missing]
        sections.insert(1, Section("Not on this page", table(["part", "why"], rows)))
    kind = "Check of the live model" if parts.live else "RLHF run"
    return render_page(
        f"{kind} {run.run_id}", sections, subtitle=_subtitle(parts, run), badge=outcome.verdict or run.status
    )


def _subtitle(parts: Parts, run: RunInfo) -> str:
    words = []
    decision = parts.decision or {}
    if decision.get("model_name"):
        version = f" version {decision['version']}" if decision.get("version") else ""
        words.append(f"model {decision['model_name']}{version}")
    if run.champion is not None:
        words.append(f"champion now: {run.champion.name} version {run.champion.version or 'unknown'}")
    if run.seed is not None:
        words.append(f"seed {run.seed}")
    return ", ".join(words)
