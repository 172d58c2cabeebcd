"""Where the candidate is better and where it is not: human preference, reward, KL and refusals by slice."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from components.report.parts import Missing, Parts, dig
from components.shared.report import (
    ABSENT,
    Panel,
    Section,
    Series,
    details,
    format_confidence,
    format_interval,
    join,
    note,
    paragraph,
    svg_bars,
    svg_panels,
    table,
)
from components.shared.trajectory import checkpoints, paired_gain, slices_of

__all__ = ["slices_section"]

_MOST_LINES = 6


def slices_section(parts: Parts) -> Section | Missing:
    """Table and charts by slice."""
    names = slices_of(parts)
    if not names:
        return Missing("By slice", parts.why_missing("evaluation"))
    charts: list[Markup | None] = [_win_rate_chart(parts, names), _gain_chart(parts, names)]
    over_steps = _over_steps(parts, names)
    if over_steps is not None:
        charts.append(
            details(f"Reward, KL and people by slice, over {parts.optimizer} steps", over_steps, expanded=True)
        )
    return Section("By slice", join([_worst(parts, names), *charts, _slice_table(parts, names)]))


def _human_slice(parts: Parts, name: str, comparison: str = "candidate_vs_reference") -> dict[str, Any]:
    return dig(parts.statistics, "comparisons", comparison, "slices", name) or {}


def _win_rate_chart(parts: Parts, names: list[str]) -> Markup | None:
    slices = [_human_slice(parts, name) for name in names]
    if not any(human.get("win_rate") is not None for human in slices):
        return None
    return svg_bars(
        [f"{name} ({human.get('n_prompts', 0)})" for name, human in zip(names, slices, strict=True)],
        [human.get("win_rate") for human in slices],
        lower=[human.get("lower") for human in slices],
        upper=[human.get("upper") for human in slices],
        reference=0.5,
        reference_name="as good",
        value_range=(0.0, 1.0),
        points=True,
        title=f"Human win rate by slice (prompts), with one-sided {format_confidence(parts.statistics or {})} bounds",
        value_label="win rate against the baseline",
    )


def _gain_chart(parts: Parts, names: list[str]) -> Markup | None:
    gains = [paired_gain(parts, "candidate", "reward", name) for name in names]
    if not any(gain.value is not None for gain in gains):
        return None
    return svg_bars(
        names,
        [gain.value for gain in gains],
        lower=[gain.lower for gain in gains],
        upper=[gain.upper for gain in gains],
        title="Reward gain by slice, with 95 % intervals",
        value_label="gain over the baseline (sd of the reward model)",
    )


def _over_steps(parts: Parts, names: list[str]) -> Markup | None:
    """Reward gain, KL and win rate over checkpoints, a line a slice; no more lines than can be told apart."""
    shown = names[:_MOST_LINES]
    points = {name: checkpoints(parts, name) for name in shown}
    if len(shown) < 2 or not any(len(rows) > 2 for rows in points.values()):
        return None

    def lines(key: str) -> list[Series]:
        return [
            Series(
                name,
                [point.step for point in rows],
                [getattr(point, key).value for point in rows],
                markers=True,
                colour=index,
            )
            for index, (name, rows) in enumerate(points.items())
        ]

    panels = [
        Panel("reward gain (sd)", lines("reward"), {"baseline": 0.0}),
        Panel("KL (nats per answer)", lines("kl"), legend=False),
        Panel("human win rate", lines("human"), {"as good": 0.5}, (0.0, 1.0), legend=False),
    ]
    title = "Reward, KL and human preference by slice"
    chart = svg_panels(panels, title=title, x_label=f"{parts.optimizer} step")
    left_out = len(names) - len(shown)
    return join(
        [
            chart,
            paragraph(f"The first {len(shown)} slices by name; {left_out} more are in the table.")
            if left_out
            else None,
        ]
    )


def _slice_table(parts: Parts, names: list[str]) -> Markup:
    headers = [
        "slice",
        "win rate",
        "bounds",
        "prompts",
        "reward (sd)",
        "held-out (sd)",
        "KL (nats)",
        "refusals",
        "over-refusals",
    ]
    rows = []
    for name in names:
        human = _human_slice(parts, name)
        before, after = (dig(parts.metrics, role, "slices", name) for role in ("reference", "candidate"))
        rows.append(
            [
                name,
                human.get("win_rate"),
                format_interval((human.get("lower"), human.get("upper")), 2),
                human.get("n_prompts"),
                paired_gain(parts, "candidate", "reward", name).value,
                paired_gain(parts, "candidate", "heldout_reward", name).value,
                dig(after, "kl", "mean"),
                _change(dig(before, "refusal_rate"), dig(after, "refusal_rate")),
                _change(dig(before, "over_refusal_rate"), dig(after, "over_refusal_rate")),
            ]
        )
    remark = (
        "Rewards are gains over the baseline; refusals and over-refusals are of the baseline, then of the candidate."
    )
    return table(headers, rows, caption=remark, digits=2)


def _change(before: float | None, after: float | None) -> str:
    """`21 % → 34 %`, on one line."""
    if before is None and after is None:
        return ABSENT
    sides = (ABSENT if side is None else f"{100 * side:.0f}\u00a0%" for side in (before, after))
    return "\u00a0→\u00a0".join(sides)


def _worst(parts: Parts, names: list[str]) -> Markup | None:
    """Slices on which people prefer the baseline: a mean that rises can hide them."""
    human = {name: _human_slice(parts, name) for name in names}
    worse = [name for name, row in human.items() if row.get("upper") is not None and row["upper"] < 0.5]
    doubtful = [
        name
        for name, row in human.items()
        if name not in worse and row.get("win_rate") is not None and row["win_rate"] < 0.5
    ]
    if not worse and not doubtful:
        return None
    parts_of_text = []
    if worse:
        parts_of_text.append(f"People prefer the baseline on: {', '.join(worse)}.")
    if doubtful:
        parts_of_text.append(f"Below one half, but not shown to be worse: {', '.join(doubtful)}.")
    return note(" ".join(parts_of_text), tone="bad" if worse else "warn")
