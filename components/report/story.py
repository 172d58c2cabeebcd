"""The first screen of the report: what was decided, why, and the one chart that shows whether people agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from components.report.gao_curve import gao_curve
from components.report.parts import Missing, Parts, dig
from components.report.settings import RunInfo
from components.report.verdict import Outcome
from components.shared.report import (
    Section,
    badge,
    figures,
    format_interval,
    format_number,
    join,
    note,
    paragraph,
    render_template,
    svg_bars,
    svg_panels,
    table,
)
from components.shared.trajectory import Checkpoint, checkpoints, trajectory_in_words, trajectory_panels

__all__ = ["criteria_section", "divergence_section", "trajectory_section", "verdict_section"]


def verdict_section(parts: Parts, run: RunInfo, outcome: Outcome) -> Section:
    """Verdict, reasons, champion, headline numbers, and what a reader must not miss."""
    headline = render_template(
        "<p>{% if badge %}{{ badge }} {% endif %}<strong>{{ headline }}</strong></p>"
        "{% if reasons %}<ul>{% for reason in reasons %}<li>{{ reason }}</li>{% endfor %}</ul>{% endif %}",
        badge=badge(outcome.verdict) if outcome.verdict else None,
        headline=outcome.headline,
        reasons=outcome.reasons,
    )
    return Section(
        "Verdict", join([headline, *_loud_notes(parts, outcome), _in_words(parts), _headline_figures(parts, run)])
    )


def trajectory_section(parts: Parts) -> Section | Missing:
    """Reward of both reward models, KL and human preference over the checkpoints, on one chart."""
    points = checkpoints(parts)
    if not points:
        return Missing("Reward, KL and people", parts.why_missing("evaluation"))
    explanation = (
        "Dots are measured on held-out prompts, with 95 % intervals. Reward is the gain over the baseline "
        "(the model that training started from), in standard deviations of the reward model; the held-out reward model "
        "learned from other pairs and is never optimised. Training works when rewards and preference rise together; "
        "when the reward rises and people turn away, the policy exploits the reward model."
    )
    chart = svg_panels(
        trajectory_panels(parts, points),
        title="Does what the reward likes, people like too?",
        x_label=f"{parts.optimizer} step",
        description=trajectory_in_words(points),
    )
    content = [chart, paragraph(explanation), _checkpoint_table(points), *gao_curve(parts)]
    return Section("Reward, KL and people", join(content))


def criteria_section(parts: Parts) -> Section | Missing:
    """Every criterion of the gate with number, interval, threshold and reason."""
    criteria = dig(parts.decision, "criteria")
    if not criteria:
        return Missing("Criteria", parts.why_missing("decision"))
    rows = [
        [
            Markup("<strong>{}</strong>").format(_words(criterion.get("name"))),
            badge(str(criterion.get("verdict") or "ERROR").replace("_", " ")),
            _show(criterion.get("value")),
            format_interval(criterion.get("interval")),
            _show(criterion.get("threshold")),
            _show(criterion.get("n")),
            criterion.get("reason") or "",
        ]
        for criterion in criteria
    ]
    headers = ["criterion", "verdict", "value", "interval", "threshold", "n", "reason"]
    return Section("Criteria", join([paragraph("The worst criterion decides."), table(headers, rows)]))


def divergence_section(parts: Parts) -> Section | Missing:
    """What the reward model says beside what people say, on the same pairs."""
    divergence = dig(parts.decision, "divergence")
    title = "The reward says, people say"
    if not divergence or divergence.get("human_win_rate") is None or divergence.get("reward_win_rate") is None:
        return Missing(title, _NO_DIVERGENCE if divergence else parts.why_missing("decision"))
    human = divergence.get("human_ci95") or [None, None]
    gap, interval = divergence.get("gap"), divergence.get("ci95")
    chart = svg_bars(
        ["reward model says", "people say"],
        [divergence["reward_win_rate"], divergence["human_win_rate"]],
        lower=[None, human[0]],
        upper=[None, human[1]],
        reference=0.5,
        reference_name="as good as the baseline",
        value_range=(0.0, 1.0),
        points=True,
        title="Win rate of the judged model over its baseline, by the reward model and by people",
        value_label="win rate",
    )
    text = (
        f"The gap is {format_number(gap)} (95 % interval {format_interval(interval)}). The reward model's "
        f"differences are first calibrated on held-out pairs (slope {format_number(divergence.get('slope'))}), so that "
        "a perfect reward model would show no gap."
    )
    if _left_out(divergence):
        text += f" {_left_out(divergence)}: a held-out pair is a choice, and only choices are compared with it."
    return Section(title, join([chart, paragraph(text)]))


def _left_out(divergence: dict[str, Any] | None) -> str:
    """What a reader must know who sees people's win rate here and elsewhere; "" where nobody called a tie."""
    share = dig(divergence, "decided_share")
    return "" if share in (None, 1.0) else f"Both rates are of decided votes; {100 * (1.0 - share):.0f} % were ties"


_NO_DIVERGENCE = "Divergence could not be measured: the reward model's or people's win rate is missing."


def _checkpoint_table(points: Sequence[Checkpoint]) -> Markup:
    headers = [
        "policy",
        "step",
        "reward gain (sd)",
        "held-out (sd)",
        "KL (nats)",
        "human win rate",
        "95 % by bootstrap",
    ]
    rows = [
        [
            {"reference": "baseline", "candidate": "candidate"}.get(point.role, "checkpoint"),
            point.step,
            point.reward.value,
            point.heldout.value,
            point.kl.value,
            point.human.value,
            format_interval((point.human.lower, point.human.upper)),
        ]
        for point in points
    ]
    return table(headers, rows)


def _loud_notes(parts: Parts, outcome: Outcome) -> list[Markup]:
    """What would mislead if it went unseen: a failure, votes that no person cast, a policy looser than production's."""
    notes = []
    if outcome.stopped_at is not None:
        after = f"The last stage that finished is {outcome.reached}." if outcome.reached else "No stage finished."
        notes.append(note(f"This run stopped at {outcome.stopped_at}. {after}", tone="bad"))
    kinds = set(dig(parts.statistics, "rater_kinds") or [])
    if kinds - {"human"}:
        who = "Not all votes are people's" if "human" in kinds else "No person voted in this run"
        text = Markup("<p><strong>{}.</strong> Votes are marked: {}.</p>")
        notes.append(note(text.format(who, ", ".join(sorted(kinds))), tone="warn"))
    if dig(parts.statistics, "complete") is False:
        notes.append(note("The human evaluation is not complete: judgements are still missing.", tone="warn"))
    looser = dig(parts.decision, "policy", "looser_than_production")
    if looser:
        notes.append(note(_looser(parts, looser), tone="warn"))
    notes += [note(f"The {role} artifact could not be read: {why}", tone="bad") for role, why in parts.problems.items()]
    return notes


def _looser(parts: Parts, looser: Sequence[Any]) -> Markup:
    lines = [
        item if isinstance(item, str) else ", ".join(f"{k} {_show(v)}" for k, v in item.items()) for item in looser
    ]
    return render_template(
        "<p><strong>The release policy “{{ name }}” is looser than production’s:</strong></p>"
        "<ul>{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>",
        name=str(dig(parts.decision, "policy", "name") or "unnamed"),
        lines=lines,
    )


def _headline_figures(parts: Parts, run: RunInfo) -> Markup:
    human = dig(parts.statistics, "comparisons", "candidate_vs_reference")
    accuracy = dig(parts.reward_model, "accuracy")
    history = parts.history_summary or {}
    kl = dig(parts.metrics, "candidate", "kl", "mean")
    divergence = dig(parts.decision, "divergence")
    reward_win_rate = dig(divergence, "reward_win_rate")
    people = f"without ties, where people say {dig(divergence, 'human_win_rate'):.2f}" if _left_out(divergence) else ""
    champion, n = run.champion, dig(parts.reward_model, "n")
    key = "ci95_clustered" if dig(accuracy, "ci95_clustered") else "ci95_wilson"
    return figures(
        [
            ("Human win rate", dig(human, "win_rate"), _interval_of(human, "ci95", "n_prompts", "prompts")),
            (
                "Reward model's win rate",
                reward_win_rate,
                f"calibrated, {people or 'same pairs'}" if reward_win_rate is not None else "",
            ),
            ("KL, nats per answer", kl, _target(history)),
            (
                "Reward model accuracy",
                dig(accuracy, "value"),
                _interval_of({**(accuracy or {}), "n": n}, key, "n", "pairs"),
            ),
            ("Champion now", _champion(run), "" if champion else "no model is live"),
            ("Time", _duration(run.seconds_total), f"seed {run.seed}" if run.seed is not None else ""),
        ],
        digits=2,
    )


def _interval_of(values: Any, interval: str, count: str, unit: str) -> str:
    """`95 % [0.62, 0.71], 300 prompts`; nothing without data."""
    if dig(values, interval) is None:
        return ""
    drawn = "95 % by bootstrap" if interval == "ci95" else "95 %"
    return f"{drawn} {format_interval(values[interval], 2)}, {format_number(values.get(count))} {unit}"


def _target(history: dict[str, Any]) -> str:
    if not history:
        return ""
    target = history.get("kl_target")
    return "no KL target" if target is None else f"target {format_number(target, 2)}"


def _champion(run: RunInfo) -> str:
    if run.champion is None:
        return "none"
    return f"{run.champion.name} v{run.champion.version}" if run.champion.version else run.champion.name


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _in_words(parts: Parts) -> Markup | None:
    """Two sentences for a reader who knows none of the terms."""
    human = dig(parts.statistics, "comparisons", "candidate_vs_reference")
    if dig(human, "win_rate") is None:
        return None
    judged, baseline = (
        ("live model", "predecessor")
        if parts.live
        else ("candidate", "baseline (the model that training started from)")
    )
    voters = _VOTERS.get(tuple(dig(parts.statistics, "rater_kinds") or []), "People and machines")
    text = (
        f"{voters} compared answers blind, two at a time. The {judged} won {100 * human['win_rate']:.0f} % of "
        f"comparisons with the {baseline}: {format_number(human.get('n_prompts'))} prompts, "
        f"{format_number(human.get('n_votes'))} votes."
    )
    divergence = dig(parts.decision, "divergence")
    reward = dig(divergence, "reward_win_rate")
    if reward is not None and _left_out(divergence):
        text += f" Ties left out, that is {100 * divergence['human_win_rate']:.0f} %; the reward model alone would have"
        text += f" said {100 * reward:.0f} %."
    elif reward is not None:
        text += f" The reward model alone would have said {100 * reward:.0f} %."
    return paragraph(text)


_VOTERS = {("human",): "People", ("simulated",): "Simulated raters", ("ai",): "AI judges"}


def _words(name: Any) -> str:
    return str(name or "").replace("_", " ").replace(".", ": ")


def _show(value: Any) -> str:
    """A value of the gate's table, which may be a number, a text, a range or several named numbers."""
    if isinstance(value, dict):
        return ", ".join(f"{_words(key)} {_show(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_show(item) for item in value)
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format_number(value)
