"""How the models were trained: the curves of PPO or of what took its place, and the reward model's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from components.report.parts import Missing, Parts, dig
from components.shared.report import (
    Panel,
    Section,
    Series,
    badge,
    details,
    figures,
    format_interval,
    format_number,
    join,
    note,
    svg_bars,
    svg_line,
    svg_panels,
    table,
)
from components.shared.trajectory import in_deviations, thin

__all__ = ["optimization_section", "reward_model_section"]

_MOST_LINES = 6


def optimization_section(parts: Parts) -> Section | Missing:
    """The policy's training curves, overall and by slice."""
    title = f"{parts.optimizer} training"
    if not parts.history:
        return Missing(title, parts.why_missing("history"))
    summary = parts.history_summary or {}
    stopped = None
    if summary.get("stopped_early"):
        stopped = note(f"Training stopped early: {summary.get('stop_reason') or 'no reason recorded'}.", tone="warn")
    rows = thin(parts.history)
    content = [
        stopped,
        _alarms(summary),
        _training_figures(parts, summary),
        _curves(parts, rows, summary),
        _slice_curves(parts, rows),
    ]
    return Section(title, join(content))


def _alarms(summary: dict[str, Any]) -> Markup | None:
    """Signs that something went wrong while training went on."""
    counted = [f"{name.replace('_', ' ')} ({steps} steps)" for name, steps in (summary.get("alarms") or {}).items()]
    return note(f"Alarms while training: {', '.join(counted)}.", tone="warn") if counted else None


def reward_model_section(parts: Parts) -> Section | Missing:
    """Held-out accuracy, checks, slices, calibration and attacks; of the second reward model in short."""
    evaluation = parts.reward_model
    if evaluation is None:
        return Missing("Reward model", parts.why_missing("reward_model"))
    passed = evaluation.get("passed")
    verdict = None
    if passed is not None:
        words = (
            "The reward model passed its checks."
            if passed
            else "The reward model failed its checks; no policy may be trained on it."
        )
        verdict = note(words, tone="good" if passed else "bad")
    return Section(
        "Reward model",
        join(
            [
                verdict,
                _accuracy_figures(parts),
                _checks(evaluation),
                _calibration_chart(evaluation),
                _attack_chart(evaluation),
                _attack_table(evaluation),
                _edit_table(evaluation),
                _slice_accuracy(evaluation),
            ]
        ),
    )


def _training_figures(parts: Parts, summary: dict[str, Any]) -> Markup:
    return figures(
        [
            (f"{parts.optimizer} steps", summary.get("steps")),
            ("KL target (nats)", summary.get("kl_target")),
            ("KL, last third", summary.get("kl_last_third"), "mean while training"),
            ("KL at the end", summary.get("kl_final")),
            ("Reward at the start (sd)", in_deviations(parts, summary.get("reward_start"))),
            ("Reward at the end (sd)", in_deviations(parts, summary.get("reward_final"))),
        ]
    )


def _curves(parts: Parts, rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> Markup | None:
    def line(name: str, key: str, colour: int = 0) -> Series:
        return Series(name, [row["step"] for row in rows], [row.get(key) for row in rows], colour=colour)

    rewards = [in_deviations(parts, row.get("reward_mean")) for row in rows]
    target = summary.get("kl_target")
    panels = [
        Panel("reward (sd)", [Series("reward", [row["step"] for row in rows], rewards)]),
        Panel("KL (nats per answer)", [line("KL (k1)", "kl", 3)], {"target": target} if target is not None else {}),
        Panel("KL coefficient", [line("KL coefficient", "kl_coef", 3)]),
        Panel("margin, chosen over rejected", [line("margin", "trainer/rewards/margins", 0)]),
        Panel("entropy (nats)", [line("entropy", "entropy", 2)]),
        Panel("answer (tokens)", [line("length", "response_tokens", 1)]),
        Panel(
            "share",
            [line("finished", "finished_share", 2), line("repetition", "repetition_share", 1)],
            y_range=(-0.03, 1.03),
        ),
    ]
    shown = [panel for panel in panels if any(value is not None for series in panel.series for value in series.y)]
    if not shown:
        return None
    name = parts.optimizer
    return svg_panels(shown, title=f"{name} over its steps, on training prompts", x_label=f"{name} step")


def _slice_curves(parts: Parts, rows: Sequence[dict[str, Any]]) -> Markup | None:
    names = sorted({name for row in rows for name in row.get("slices") or {}})
    if len(names) < 2:
        return None

    def lines(key: str) -> list[Series]:
        steps = [row["step"] for row in rows]
        values = {name: [dig(row, "slices", name, key) for row in rows] for name in names[:_MOST_LINES]}
        if key == "reward":
            values = {name: [in_deviations(parts, value) for value in column] for name, column in values.items()}
        return [Series(name, steps, column) for name, column in values.items()]

    panels = [
        Panel("reward (sd)", lines("reward"), height=2.0),
        Panel("KL (nats per answer)", lines("kl"), height=2.0, legend=False),
        Panel("answer (tokens)", lines("response_tokens"), height=2.0, legend=False),
    ]
    left_out = len(names) - _MOST_LINES
    name = parts.optimizer
    chart = svg_panels(panels, title=f"{name} by slice, on training prompts", x_label=f"{name} step")
    remark = (
        note(f"The first {_MOST_LINES} slices by name; {left_out} more are in the history.") if left_out > 0 else None
    )
    return details("By slice", join([chart, remark]))


def _accuracy_figures(parts: Parts) -> Markup:
    evaluation, second = parts.reward_model, parts.heldout_reward_model
    accuracy = dig(evaluation, "accuracy")
    interval = format_interval(dig(accuracy, "ci95_clustered") or dig(accuracy, "ci95_wilson"))
    second_accuracy = dig(second, "accuracy")
    second_interval = format_interval(dig(second_accuracy, "ci95_clustered") or dig(second_accuracy, "ci95_wilson"))
    return figures(
        [
            (
                "Held-out accuracy",
                dig(accuracy, "value"),
                f"95 % {interval}, {format_number(dig(evaluation, 'n'))} pairs",
            ),
            (
                "Second reward model",
                dig(second_accuracy, "value"),
                f"95 % {second_interval}; other pairs, never optimised",
            ),
            ("Calibration slope", dig(evaluation, "calibration", "slope"), "label on reward difference"),
            (
                "Calibration error",
                dig(evaluation, "calibration", "ece"),
                f"Brier {format_number(dig(evaluation, 'calibration', 'brier'))}",
            ),
            ("Length correlation", dig(evaluation, "length", "correlation"), "reward with answer length"),
            ("Margin", dig(evaluation, "margin", "mean"), f"sd {format_number(dig(evaluation, 'margin', 'std'))}"),
        ]
    )


def _checks(evaluation: dict[str, Any]) -> Markup | None:
    checks = evaluation.get("checks")
    if not checks:
        return None
    rows = [
        [
            str(check.get("name", "")).replace("_", " ").replace(":", ": "),
            badge("PASS" if check.get("passed") else "FAIL"),
            check.get("value"),
            check.get("threshold"),
            check.get("reason") or "",
        ]
        for check in checks
    ]
    return table(["check", "result", "value", "threshold", "reason"], rows)


def _calibration_chart(evaluation: dict[str, Any]) -> Markup | None:
    bins = sorted(
        (b for b in dig(evaluation, "calibration", "bins") or [] if b.get("n") and b.get("p_mean") is not None),
        key=lambda b: b["p_mean"],
    )
    if not bins:
        return None
    return svg_line(
        [
            Series("reward model", [b["p_mean"] for b in bins], [b["rate"] for b in bins], markers=True),
            Series("perfectly calibrated", [0.0, 1.0], [0.0, 1.0], colour=5),
        ],
        title="Calibration on held-out pairs",
        x_label="predicted probability that the first answer is preferred",
        y_label="how often it was",
        y_range=(-0.02, 1.02),
    )


def _attack_chart(evaluation: dict[str, Any]) -> Markup | None:
    attacks = evaluation.get("attacks")
    if not attacks:
        return None
    intervals = [attack.get("ci95") or (None, None) for attack in attacks.values()]
    return svg_bars(
        [str(name).replace("_", " ") for name in attacks],
        [attack.get("success_rate") for attack in attacks.values()],
        lower=[interval[0] for interval in intervals],
        upper=[interval[1] for interval in intervals],
        limits=[attack.get("limit") for attack in attacks.values()],
        value_range=(0.0, 1.0),
        title="Attacks: how often a cheap trick makes the worse answer win",
        value_label="success rate, with 95 % interval",
    )


def _attack_table(evaluation: dict[str, Any]) -> Markup | None:
    attacks = evaluation.get("attacks")
    if not attacks:
        return None
    rows = [
        [
            str(name).replace("_", " "),
            badge("PASS" if attack.get("passed") else "FAIL") if attack.get("passed") is not None else None,
            attack.get("success_rate"),
            format_interval(attack.get("ci95")),
            attack.get("limit"),
            attack.get("n"),
        ]
        for name, attack in attacks.items()
    ]
    return details(
        "Attacks in numbers", table(["attack", "result", "success rate", "95 % interval", "limit", "n"], rows)
    )


def _edit_table(evaluation: dict[str, Any]) -> Markup | None:
    edits = evaluation.get("edits")
    if not edits:
        return None
    rows = [
        [
            str(name).replace("_", " "),
            badge("PASS" if edit.get("passed") else "FAIL") if edit.get("passed") is not None else None,
            edit.get("flip_rate"),
            format_interval(edit.get("ci95")),
            edit.get("limit"),
            edit.get("n"),
        ]
        for name, edit in edits.items()
    ]
    headers = ["edit", "result", "orders changed", "95 % interval", "limit", "n"]
    return details("Edits that should change nothing", table(headers, rows))


def _slice_accuracy(evaluation: dict[str, Any]) -> Markup | None:
    slices = evaluation.get("slices")
    if not slices:
        return None
    rows = [
        [name, row.get("accuracy"), format_interval(row.get("ci95")), row.get("n")]
        for name, row in sorted(slices.items())
    ]
    return table(["slice", "accuracy", "95 % interval", "pairs"], rows, caption="Held-out accuracy by slice")
