"""A matplotlib figure as inline SVG: deterministic, readable on light and dark pages, safe with untrusted labels.

A figure is drawn in placeholder colours, which are then replaced by CSS variables of the page (`report.css`), so that
one SVG serves both colour schemes; away from the page each variable falls back to its light colour. Text stays text
(selectable, read aloud, XML-escaped) and is never read as mathematics. Every id carries a digest of the chart, so that
many charts can share a page.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BAD", "GRID", "INK", "MUTED", "SERIES", "drawing", "to_svg"]

# Placeholder drawn by matplotlib -> (CSS variable, its light colour). Series colours: Okabe and Ito's, safe for
# colour-blind readers.
_COLOURS = {
    "#010101": ("--ink", "#1c2733"),
    "#020202": ("--muted", "#5b6b7b"),
    "#030303": ("--grid", "#dde3ea"),
    "#0a0101": ("--series-1", "#0072b2"),
    "#0a0202": ("--series-2", "#c45500"),
    "#0a0303": ("--series-3", "#00795a"),
    "#0a0404": ("--series-4", "#a8437f"),
    "#0a0505": ("--series-5", "#7a6a00"),
    "#0a0606": ("--series-6", "#4b5a6a"),
    "#0b0202": ("--bad", "#b3261e"),
}
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = [name for name in _COLOURS if name.startswith("#0a")]
BAD = "#0b0202"

_SETTINGS: dict[Any, Any] = {
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "plumbline",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.labelsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """matplotlib's settings while a chart is drawn and written."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's fonts draw the text
        yield


def to_svg(figure: Figure, title: str, description: str | None) -> Markup:
    """The figure as an inline `<svg>`: no prolog, no metadata, no style sheet of its own, ids of its own."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style [^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    prefix = "c" + hashlib.sha256(svg.encode()).hexdigest()[:10]
    svg = re.sub(r"<[a-z][^>]*>", lambda tag: _adapt_tag(tag.group(), prefix), svg)
    label = escape(f"{title}. {description}" if description else title)
    opening = Markup('<figure class="chart" tabindex="0"><svg role="img" aria-label="{}"').format(label)
    return opening + Markup(svg.strip().removeprefix("<svg")) + Markup("</figure>")


def _adapt_tag(tag: str, prefix: str) -> str:
    """Own ids and the page's colours, in one tag; text between tags is left as it is."""
    tag = re.sub(r'(?<= )id="([^"]+)"', rf'id="{prefix}-\1"', tag)
    tag = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", tag)
    tag = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', tag)
    for placeholder, (variable, light) in _COLOURS.items():
        tag = tag.replace(placeholder, f"var({variable}, {light})")
    return tag
