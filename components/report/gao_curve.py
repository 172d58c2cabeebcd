"""Gao's curve as the gate fitted it: gain over distance, where it peaks, and how little a few checkpoints say of that.

It stands on the page for the reader's eye; no verdict rests on it.
"""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from components.report.parts import Parts, dig
from components.shared.report import Panel, Series, details, format_number, join, paragraph, svg_panels, table

__all__ = ["gao_curve"]

_READINGS = {
    "human": ("people", "log odds of the human win rate"),
    "heldout": ("held-out reward model", "held-out reward gain (sd)"),
}
_CURVE_POINTS = 60
_Z95 = 1.959964

_EXPLANATION = (
    "As a policy moves away from its start, a true gain rises, peaks and falls: R(d) = d (alpha - beta ln d), with d "
    "the root of the KL in nats (Gao et al. 2022). Fitted over the checkpoints and the candidate; report only, the "
    "gate decides nothing on it."
)


def gao_curve(parts: Parts) -> list[Markup]:
    """Chart, table and words, folded away; nothing where the decision holds no curve."""
    curves = {name: found for name in _READINGS if (found := dig(parts.decision, "overoptimization", name))}
    if not curves or parts.live:
        return []
    panels = [_panel(name, curve) for name, curve in curves.items() if curve.get("points")]
    title, x_label = "Gain over distance", "root of KL (nats)"
    chart = [svg_panels(panels, title=title, x_label=x_label, description=_EXPLANATION)] if panels else []
    rows = [_row(name, curve) for name, curve in curves.items()]
    headers = ["gain of", "checkpoints", "alpha", "beta", "peak at KL (nats)", "95 % interval", "what to know"]
    content = [*chart, paragraph(_EXPLANATION), table(headers, rows)]
    return [details("Where does the gain peak? (Gao's curve)", join(content))]


def _panel(name: str, curve: dict[str, Any]) -> Panel:
    who, label = _READINGS[name]
    points = curve["points"]
    x, y = [point["d"] for point in points], [point["gain"] for point in points]
    margins = [_Z95 * point["se"] for point in points]
    measured = Series(
        f"{who}, measured",
        x,
        y,
        [value - margin for value, margin in zip(y, margins, strict=True)],
        [value + margin for value, margin in zip(y, margins, strict=True)],
        markers=True,
        colour=2 if name == "human" else 1,
    )
    fitted = _fitted(curve, max(x))
    return Panel(label, [measured, *([fitted] if fitted else [])], {"reference": 0.0})


def _fitted(curve: dict[str, Any], largest: float) -> Series | None:
    alpha, beta = curve.get("alpha"), curve.get("beta")
    if alpha is None or beta is None:
        return None
    d = [largest * (step + 1) / _CURVE_POINTS for step in range(_CURVE_POINTS)]
    return Series("fitted curve", d, [value * (alpha - beta * math.log(value)) for value in d], colour=0, faint=True)


def _row(name: str, curve: dict[str, Any]) -> list[Any]:
    low, high = curve.get("peak_kl_ci95") or (None, None)
    interval = "" if curve.get("peak_kl") is None else f"{_end(low, '0')} to {_end(high, 'no end')}"
    figures = [curve.get("alpha"), curve.get("beta"), curve.get("peak_kl")]
    return [_READINGS[name][0], len(curve.get("points") or []), *figures, interval, curve.get("reason") or ""]


def _end(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else format_number(value)
