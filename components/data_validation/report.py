"""The data report: what was read, what was set aside and why, how the rest was split; as JSON and as one HTML page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from components.data_validation.assignment import Assignment, human_eval_digest
from components.data_validation.judgement import Judgement
from components.data_validation.settings import DataValidationSettings
from components.data_validation.validation import Part
from components.shared.report import (
    Section,
    details,
    figures,
    format_interval,
    join,
    note,
    paragraph,
    render_page,
    svg_bars,
    svg_histogram,
    table,
)

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["build_report", "render_report"]

_TITLES = {"sft": "Demonstrations", "prompts": "Prompts", "preferences": "Preference pairs"}
_BINS = 20
_MOST_QUARANTINED_SHOWN = 25


def build_report(
    parts: Sequence[Part],
    assignment: Assignment,
    judgement: Judgement,
    settings: DataValidationSettings,
    *,
    base_model: str,
    data_digest: str,
) -> dict[str, Any]:
    """The report as JSON values: `{"passed", "problems", "warnings", "parts": {kind: ...}, "splits", ...}`.

    Of each kind of data: sources with rows and quarantined rows a file, counts by slice and split, quarantine reasons,
    redactions, lengths in tokens (quantiles and histogram), and each expectation's outcome.
    """
    human_eval = assignment.splits.get("prompts/human_eval")
    return {
        "passed": not judgement.problems,
        "problems": judgement.problems,
        "warnings": judgement.warnings,
        "base_model": base_model,
        "data_digest": data_digest,
        "settings": settings.model_dump(mode="json"),
        "splits": {name: len(records) for name, records in assignment.splits.items()},
        "human_eval_digest": human_eval_digest(human_eval) if human_eval else None,
        "held_back": {kind: dict(counts) for kind, counts in assignment.held_back.items()},
        "left_out": assignment.left_out,
        "leakage": assignment.leaks,
        "parts": {part.kind: _part_report(part, assignment) for part in parts},
    }


def render_report(summary: dict[str, Any], parts: Sequence[Part]) -> str:
    """The report as one self-contained HTML page.

    Args:
        summary: What `build_report` returned.
        parts: The judged data, for charts and for examples of the quarantine (redacted, escaped).
    """
    sections = [Section("Outcome", _outcome(summary)), Section("Splits", _splits(summary))]
    sections += [Section(_TITLES[part.kind], _part_section(part, summary["parts"][part.kind])) for part in parts]
    sections.append(Section("Quarantine", _quarantine(parts)))
    return render_page(
        "Data report",
        sections,
        subtitle=f"Tokens are those of {summary['base_model']}.",
        badge="PASSED" if summary["passed"] else "FAILED",
    )


# --- JSON ------------------------------------------------------------------------------------------------------------


def _part_report(part: Part, assignment: Assignment) -> dict[str, Any]:
    redactions = sum((candidate.redactions for candidate in part.candidates), Counter[str]())
    skew = part.length_skew
    return {
        "uri": part.uri,
        "rows": len(part.candidates),
        "accepted": len(part.records),
        "quarantined": len(part.quarantined),
        "faulty": len(part.faulty),
        "sources": _sources(part),
        "reasons": dict(part.reasons),
        "slices": _slices(part, assignment),
        "redactions": dict(redactions),
        "near_duplicates": len(part.near_duplicates),
        "disagreements": part.disagreements,
        "lengths": {name: _length_report(lengths) for name, lengths in part.lengths.items()},
        "length_skew": None
        if skew is None
        else {"longer_chosen": skew.longer_chosen, "n": skew.n, "accuracy": skew.accuracy, "ci95": skew.ci95},
        "expectations": [
            {
                "check": result.check,
                "expectation": result.expectation,
                "column": result.column,
                "passed": result.passed,
                "unexpected": len(result.unexpected),
            }
            for result in part.expectations
        ],
    }


def _sources(part: Part) -> list[dict[str, Any]]:
    rows, bad = Counter[str](), Counter[str]()
    for candidate in part.candidates:
        rows[candidate.row.file] += 1
        bad[candidate.row.file] += bool(candidate.reasons)
    return [{"file": file, "rows": count, "quarantined": bad[file]} for file, count in sorted(rows.items())]


def _slices(part: Part, assignment: Assignment) -> dict[str, dict[str, int]]:
    """Records by slice and split."""
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for name, records in assignment.splits.items():
        kind, split = name.split("/")
        if kind == part.kind:
            for slice_name, count in Counter(record.slice for record in records).items():
                counts[slice_name][split] = count
    return {name: counts[name] for name in sorted(counts)}


def _length_report(lengths: Sequence[int]) -> dict[str, Any] | None:
    """Quantiles and histogram of lengths in tokens; None without rows."""
    if not lengths:
        return None
    values = np.asarray(lengths)
    counts, edges = np.histogram(values, bins=_BINS)
    return {
        "min": int(values.min()),
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
        "max": int(values.max()),
        "mean": float(values.mean()),
        "histogram": {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]},
    }


# --- HTML ------------------------------------------------------------------------------------------------------------


def _outcome(summary: dict[str, Any]) -> Markup:
    parts = summary["parts"].values()
    rows, quarantined = sum(part["rows"] for part in parts), sum(part["quarantined"] for part in parts)
    good = note("Every row was checked; nothing stops the run.", tone="good")
    return join(
        [
            figures([("rows read", rows), ("accepted", rows - quarantined), ("quarantined", quarantined)]),
            *(note(problem, tone="bad") for problem in summary["problems"]),
            None if summary["problems"] else good,
            *(note(warning, tone="warn") for warning in summary["warnings"]),
        ]
    )


def _splits(summary: dict[str, Any]) -> Markup:
    sizes = summary["splits"]
    held_back = [(kind, split, n) for kind, counts in summary["held_back"].items() for split, n in counts.items()]
    return join(
        [
            paragraph(
                "A group (group id, else normalised prompt) goes where a hash of the salt and its key puts it, and "
                "stays there when rows are added."
            ),
            svg_bars(list(sizes), list(sizes.values()), title="Records by split", value_label="records"),
            table(
                ["kept from training", "because its prompt is in", "records"],
                held_back,
                caption="Held back: good records whose prompt is kept for evaluation; they are in the held-out split",
            )
            if held_back
            else None,
            paragraph(f"Prompts left out beside the frozen human-evaluation set: {summary['left_out']}.")
            if summary["left_out"]
            else None,
            paragraph(f"Human-evaluation set: {summary['human_eval_digest']}.")
            if summary["human_eval_digest"]
            else None,
        ]
    )


def _part_section(part: Part, summary: dict[str, Any]) -> Markup:
    splits = sorted({split for counts in summary["slices"].values() for split in counts})
    slices = [(name, *(counts.get(split, 0) for split in splits)) for name, counts in summary["slices"].items()]
    reasons = summary["reasons"]
    failed = [e for e in summary["expectations"] if not e["passed"]]
    return join(
        [
            table(
                ["file", "rows", "quarantined"],
                [(source["file"], source["rows"], source["quarantined"]) for source in summary["sources"]],
            ),
            svg_bars(list(reasons), list(reasons.values()), title="Why rows were set aside", value_label="rows")
            if reasons
            else None,
            table(["slice", *splits], slices, caption="Records by slice and split"),
            svg_histogram(part.lengths, title="Length", x_label="tokens", y_label="records"),
            _skew(summary["length_skew"]),
            table(["redacted", "found"], list(summary["redactions"].items())) if summary["redactions"] else None,
            details(
                f"Expectations: {len(summary['expectations'])} checked, {len(failed)} with rows that fail",
                table(
                    ["expectation", "column", "passed", "rows that fail"],
                    [(e["expectation"], e["column"], e["passed"], e["unexpected"]) for e in summary["expectations"]],
                ),
            ),
        ]
    )


def _skew(skew: dict[str, Any] | None) -> Markup | None:
    if skew is None or skew["accuracy"] is None:
        return None
    return paragraph(
        f"The longer answer is preferred in {skew['longer_chosen']:.1%} of {skew['n']} pairs of unequal length: length "
        f"alone predicts {skew['accuracy']:.1%} {format_interval(skew['ci95'])} of them."
    )


def _quarantine(parts: Sequence[Part]) -> Markup:
    rows = []
    for part in parts:
        for candidate in part.quarantined[:_MOST_QUARANTINED_SHOWN]:
            reasons = "; ".join(f"{reason.check}: {reason.message}" for reason in candidate.reasons)
            rows.append((_TITLES[part.kind], candidate.row.file, candidate.row.line, reasons))
    return join(
        [
            paragraph("Every quarantined row, with its text, is in quarantine.jsonl; the first of each kind are here."),
            table(["kind", "file", "line", "reasons"], rows),
        ]
    )
