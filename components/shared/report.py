"""Self-contained HTML pages: one file, no scripts, nothing loaded, untrusted text always escaped.

A page is a title, perhaps a badge, and sections. What goes into a section is `Markup` made by the functions here
(`table`, `figures`, `note`, `paragraph`, `svg_line`, ...); a plain `str` is untrusted text and is escaped wherever it
appears. A strict content-security policy stands behind that: even a mistake could run and load nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from components.shared.charts import Panel, Series, svg_bars, svg_histogram, svg_line, svg_panels

__all__ = [
    "ABSENT",
    "Panel",
    "Section",
    "Series",
    "badge",
    "details",
    "figures",
    "format_confidence",
    "format_interval",
    "format_number",
    "join",
    "note",
    "paragraph",
    "render_page",
    "render_template",
    "svg_bars",
    "svg_histogram",
    "svg_line",
    "svg_panels",
    "table",
]

ABSENT = "–"
"""Shown where there is no value."""

_FOLDER = Path(__file__).resolve().parent
_TONES = {
    "good": {"PROMOTE", "KEEP", "PASS", "PASSED", "OK", "SUCCEEDED"},
    "warn": {"HOLD", "WARNING", "SIMULATED"},
    "bad": {"BLOCK", "BLOCKED", "ROLLBACK", "ERROR", "FAIL", "FAILED"},
}


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its heading, plain text.
        html: Its content; a plain `str` is escaped.
    """

    title: str
    html: Markup | str


def render_page(
    title: str, sections: Sequence[Section], *, subtitle: str | Markup = "", badge: str | None = None
) -> str:
    """Renders a whole page.

    Args:
        title: Heading and window title.
        sections: Shown in order; more than three get a list of links.
        subtitle: A line under the heading.
        badge: A verdict or status, shown beside the heading: see `badge`.

    Returns:
        The HTML document; equal arguments give equal text.
    """
    css = Markup((_FOLDER / "report.css").read_text(encoding="utf-8"))
    return (
        _environment(_FOLDER)
        .get_template("report_page.html")
        .render(
            title=title,
            sections=list(sections),
            subtitle=subtitle,
            badge=_badge(badge, large=True) if badge else None,
            css=css,
        )
    )


def render_template(text: str, /, **values: Any) -> Markup:
    """Renders a Jinja2 template written in our own source with autoescaping; a missing name is an error.

    Args:
        text: The template. Never text from data.
        **values: What it shows; a plain `str` is escaped.
    """
    return Markup(_template(text).render(**values))


def table(
    headers: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str | None = None, digits: int = 3
) -> Markup:
    """A table; numbers stand right in tabular figures, None is a dash, it scrolls sideways on a narrow screen.

    Args:
        headers: Column headings.
        rows: Cells: `str` (escaped), `Markup`, numbers, bool or None.
        caption: A line above.
        digits: Digits after the point of floats.
    """
    body = [list(row) for row in rows]
    numeric = [_is_numeric(row[column] for row in body) for column in range(len(headers))]
    return render_template(
        _TABLE,
        headers=list(zip(headers, numeric, strict=True)),
        rows=[[(_cell(cell, digits), number) for cell, number in zip(row, numeric, strict=True)] for row in body],
        caption=caption,
    )


def figures(items: Iterable[tuple[str, Any] | tuple[str, Any, str]], *, digits: int = 3) -> Markup:
    """Headline numbers side by side: `(name, value)` or `(name, value, remark)`."""
    cells = [(item[0], _cell(item[1], digits), item[2] if len(item) > 2 else "") for item in items]
    return render_template(_FIGURES, items=cells)


def badge(text: str) -> Markup:
    """A verdict or status word; its tone follows the word (PROMOTE green, HOLD amber, BLOCK red, others grey)."""
    return _badge(text, large=False)


def note(text: str | Markup, *, tone: str = "plain") -> Markup:
    """A highlighted remark. `tone`: `plain`, `good`, `warn` or `bad`."""
    content = text if isinstance(text, Markup) else paragraph(text)
    role = Markup(' role="alert"') if tone == "bad" else ""
    return render_template(
        '<div class="note {{ tone }}"{{ role }}>{{ content }}</div>', tone=tone, role=role, content=content
    )


def paragraph(text: str | Markup) -> Markup:
    """A paragraph."""
    return Markup("<p>{}</p>").format(text)


def details(summary: str, html: Markup | str, *, expanded: bool = False) -> Markup:
    """A part that the reader unfolds."""
    opening = Markup("<details open>") if expanded else Markup("<details>")
    return opening + Markup("<summary>{}</summary>{}</details>").format(summary, html)


def join(parts: Iterable[Markup | str | None]) -> Markup:
    """Parts under one another; None is left out, a plain `str` is escaped."""
    return Markup("\n").join(escape(part) for part in parts if part is not None)


def format_number(value: Any, digits: int = 3) -> str:
    """A number for a reader: thousands apart, a true minus sign; None, NaN and infinity are `ABSENT`."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ABSENT
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    magnitude = abs(value)
    text = f"{value:.2e}" if 0 < magnitude < 0.5 * 10**-digits else f"{value:,.{digits}f}"
    return text.replace("-", "−") if "e" not in text else text


def format_interval(interval: Sequence[float | None] | None, digits: int = 3) -> str:
    """`[0.512, 0.634]`; an open or unknown end is `ABSENT`, no interval at all is `ABSENT`."""
    if interval is None or all(end is None for end in interval):
        return ABSENT
    return "[" + ",\u00a0".join(format_number(end, digits) for end in interval) + "]"


def format_confidence(statistics: Mapping[str, Any]) -> str:
    """Of the one-sided bounds that `statistics.json` states: `95 %`, also if it does not say; `ABSENT` if unclear."""
    alpha = statistics.get("error_probability", 0.05)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0.0 < alpha < 1.0:
        return ABSENT
    return f"{100.0 * (1.0 - alpha):g} %"


def _badge(text: str, *, large: bool) -> Markup:
    tone = next((tone for tone, words in _TONES.items() if text.upper() in words), "plain")
    return Markup('<span class="badge {}{}">{}</span>').format(tone, " large" if large else "", text)


def _cell(value: Any, digits: int) -> str | Markup:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format_number(value, digits)


def _is_numeric(cells: Iterable[Any]) -> bool:
    kinds = [isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells if cell is not None]
    return bool(kinds) and all(kinds)


@cache
def _environment(folder: Path) -> Environment:
    return Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)


@cache
def _template(text: str) -> Template:
    return _environment(_FOLDER).from_string(text)


_TABLE = """<div class="table" tabindex="0"><table>
{% if caption %}<caption>{{ caption }}</caption>
{% endif %}<thead><tr>
{% for header, number in headers %}<th scope="col"{% if number %} class="number"{% endif %}>{{ header }}</th>
{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr>
{% for cell, number in row %}<td{% if number %} class="number"{% endif %}>{{ cell }}</td>
{% endfor %}</tr>
{% else %}<tr><td colspan="{{ headers | length }}" class="muted">no rows</td></tr>
{% endfor %}</tbody>
</table></div>"""

_FIGURES = """<dl class="figures">
{% for name, value, remark in items %}<div><dt>{{ name }}</dt>
<dd>{{ value }}{% if remark %}<small>{{ remark }}</small>{% endif %}</dd></div>
{% endfor %}</dl>"""
