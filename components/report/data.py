"""The data reports in short: what was read, what was set aside and why, how the rest was split."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from components.report.parts import Missing, Parts, dig
from components.shared.report import Section, details, format_interval, format_number, join, note, table

__all__ = ["data_section"]

_TITLES = {"sft": "Demonstrations", "prompts": "Prompts", "preferences": "Preference pairs"}


def data_section(parts: Parts) -> Section | Missing:
    """Rows, quarantine, splits and warnings of the demonstrations, prompts and pairs."""
    reports = [report for report in (parts.data_report, parts.pairs_report) if report is not None]
    if not reports:
        return Missing("Data", parts.why_missing("dataset"))
    kinds = {kind: part for report in reports for kind, part in (report.get("parts") or {}).items()}
    content = [
        *(note(str(text), tone="bad") for report in reports for text in report.get("problems") or []),
        *(note(str(text), tone="warn") for report in reports for text in report.get("warnings") or []),
        _rows_table(kinds),
        _reasons_table(kinds),
        _splits_table(reports),
        _slices_table(kinds),
        _length_skew(kinds),
    ]
    return Section("Data", join(content))


def _rows_table(kinds: dict[str, Any]) -> Markup | None:
    if not kinds:
        return None
    headers = ["data", "rows", "accepted", "quarantined", "redactions", "raters disagree"]
    rows = [
        [
            _title(kind),
            part.get("rows"),
            part.get("accepted"),
            part.get("quarantined"),
            sum((part.get("redactions") or {}).values()),
            part.get("disagreements"),
        ]
        for kind, part in kinds.items()
    ]
    return table(headers, rows)


def _reasons_table(kinds: dict[str, Any]) -> Markup | None:
    rows = [
        [_title(kind), reason.replace("_", " "), count]
        for kind, part in kinds.items()
        for reason, count in (part.get("reasons") or {}).items()
    ]
    return details("Why rows were quarantined", table(["data", "reason", "rows"], rows)) if rows else None


def _splits_table(reports: list[dict[str, Any]]) -> Markup | None:
    rows = [[name, count] for report in reports for name, count in (report.get("splits") or {}).items()]
    return table(["split", "records"], rows, caption="Splits; a group of related records never parts") if rows else None


def _slices_table(kinds: dict[str, Any]) -> Markup | None:
    """Counts by slice; a slice's entry is a count or counts by split."""
    rows = []
    for kind, part in kinds.items():
        slices = part.get("slices")
        if not isinstance(slices, dict):
            continue
        for name, counts in slices.items():
            text = (
                ", ".join(f"{key} {_count(value)}" for key, value in counts.items())
                if isinstance(counts, dict)
                else _count(counts)
            )
            rows.append([_title(kind), name, text])
    return details("Slices", table(["data", "slice", "records"], rows)) if rows else None


def _length_skew(kinds: dict[str, Any]) -> Markup | None:
    skew = dig(kinds, "preferences", "length_skew")
    if skew is None:
        return None
    return note(
        f"Of {format_number(skew.get('n'))} pairs of unequal length, the longer answer was preferred in a share of "
        f"{format_number(skew.get('longer_chosen'))}; length alone would be right on a share of "
        f"{format_number(skew.get('accuracy'))} (95 % {format_interval(skew.get('ci95'))})."
    )


def _title(kind: str) -> str:
    return _TITLES.get(kind, kind)


def _count(value: Any) -> str:
    return format_number(value) if isinstance(value, int | float) else str(value)
