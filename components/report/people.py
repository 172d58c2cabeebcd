"""What people saw and how they judged: sample answers side by side, comparisons, and the quality of the raters."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from pydantic import TypeAdapter, ValidationError

from components.report.parts import Missing, Parts, dig
from components.report.samples import MOST_DISLIKED, PER_SLICE, Sample, choose_samples
from components.shared.records import Message, prompt_text
from components.shared.report import (
    Section,
    details,
    figures,
    format_confidence,
    format_interval,
    format_number,
    join,
    paragraph,
    render_template,
    table,
)

__all__ = ["raters_section", "samples_section"]

_LONGEST_TEXT = 4000
_SHOWN_OF_QUEUE = 20
_DRIFT_SHOWN = 0.05


def samples_section(parts: Parts) -> Section | Missing:
    """Answers side by side with their reward and what people said."""
    title = "Answers side by side"
    chosen, disliked = choose_samples(parts)
    if not chosen:
        return Missing(title, parts.why_missing("evaluation"))
    rule = (
        f"Chosen by a fixed rule, not by hand: {PER_SLICE} prompts a slice, first by the hash of their id; then up to "
        f"{MOST_DISLIKED} more whose reward rose most although people preferred the baseline. Rewards are gains "
        "over the baseline's answer, in standard deviations."
    )
    fooled = [Markup("<h3>{}</h3>").format("The reward rose, people preferred the baseline"), *map(_render, disliked)]
    return Section(
        title,
        join(
            [
                paragraph(rule),
                *(fooled if disliked else []),
                Markup("<h3>{}</h3>").format("From each slice"),
                *map(_render, chosen),
            ]
        ),
    )


def raters_section(parts: Parts) -> Section | Missing:
    """Comparisons, safety flags, and whether the raters can be trusted."""
    statistics = parts.statistics
    if statistics is None:
        return Missing("Human evaluation", parts.why_missing("evidence"))
    main = dig(statistics, "comparisons", "candidate_vs_reference")
    return Section(
        "Human evaluation",
        join(
            [
                figures(
                    [
                        ("Win rate", dig(main, "win_rate"), "candidate against the baseline"),
                        ("Length-controlled", dig(main, "length_controlled", "win_rate"), "at equal length"),
                        ("Raters", len(statistics.get("raters") or {}), ", ".join(statistics.get("rater_kinds") or [])),
                        ("Raw agreement", statistics.get("raw_agreement"), "of two votes on one pair"),
                        ("Krippendorff's alpha", statistics.get("alpha"), "falls when models are close"),
                        ("Fleiss' kappa", dig(statistics, "agreement", "fleiss_kappa"), "falls when models are close"),
                        (
                            "Position bias",
                            statistics.get("position_bias"),
                            "share of choices for the left answer, less one half",
                        ),
                    ]
                ),
                _comparisons(statistics),
                _safety(statistics),
                _raters(statistics),
                _agreement(statistics),
                _review_queue(statistics),
            ]
        ),
    )


_SAMPLE = """<div class="sample">
<p><strong>{{ prompt }}</strong><span class="tag">{{ slice }}</span></p>
<div class="answers">
{% for answer in answers %}<div><h4>{{ answer.name }}</h4>
<p>{{ answer.text }}</p>
<small>{{ answer.facts }}</small></div>
{% endfor %}</div>
<p>{{ said }}</p>
{% for rationale in rationales %}<p class="muted">“{{ rationale }}”</p>
{% endfor %}</div>"""

_NAMES = {"reference": "Baseline", "candidate": "Candidate", "champion": "Champion"}


def _render(sample: Sample) -> Markup:
    answers = [
        {
            "name": _NAMES[answer.role],
            "text": _shorten(answer.text) or "(empty answer)",
            "facts": _facts(answer, sample.flags.get(answer.role, [])),
        }
        for answer in sample.answers
    ]
    return render_template(
        _SAMPLE,
        slice=sample.slice,
        prompt=_shorten(_prompt(sample.prompt)),
        answers=answers,
        said=_said(sample),
        rationales=[_shorten(text) for text in sample.rationales],
    )


def _facts(answer: Any, flags: list[str]) -> str:
    facts = []
    if answer.role != "reference" and answer.gain is not None:
        facts.append(f"reward {_signed(answer.gain)} sd")
    if answer.role != "reference" and answer.heldout_gain is not None:
        facts.append(f"held-out {_signed(answer.heldout_gain)} sd")
    if answer.n_tokens is not None:
        facts.append(f"{answer.n_tokens} tokens")
    if not answer.finished:
        facts.append("cut at the length limit")
    if flags:
        facts.append(f"flagged: {', '.join(flags)}")
    return " · ".join(facts)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _said(sample: Sample) -> str:
    """What people said, in words."""
    sentences = []
    for comparison, (outcome, votes) in sorted(sample.outcomes.items()):
        first, _, second = comparison.partition("_vs_")
        if first not in _NAMES or second not in _NAMES:
            continue
        if votes == 0:
            choice = f"identical answers of {_NAMES[first].lower()} and {_NAMES[second].lower()}, nobody was asked"
        elif outcome == 0.5:
            choice = f"no preference between {_NAMES[first].lower()} and {_NAMES[second].lower()}"
        else:
            winner, loser = (first, second) if outcome > 0.5 else (second, first)
            share = max(outcome, 1.0 - outcome)
            choice = f"{_NAMES[winner].lower()} over {_NAMES[loser].lower()} ({100 * share:.0f} % of {votes} votes)"
        sentences.append(choice)
    return f"Raters: {'; '.join(sentences)}." if sentences else "Raters: not judged."


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    try:
        return prompt_text(TypeAdapter(list[Message]).validate_python(prompt))
    except ValidationError:
        return str(prompt)


def _shorten(text: str) -> str:
    return (
        text
        if len(text) <= _LONGEST_TEXT
        else f"{text[:_LONGEST_TEXT]} … ({len(text) - _LONGEST_TEXT:,} characters more)"
    )


def _comparisons(statistics: dict[str, Any]) -> Markup:
    rows = [
        [
            name.replace("_", " "),
            row.get("win_rate"),
            format_interval(row.get("ci95")),
            row.get("lower"),
            row.get("upper"),
            dig(row, "length_controlled", "win_rate"),
            row.get("n_prompts"),
            row.get("n_votes"),
        ]
        for name, row in (statistics.get("comparisons") or {}).items()
    ]
    headers = [
        "comparison",
        "win rate",
        "fixed-size interval",
        "lower bound",
        "upper bound",
        "length-controlled",
        "prompts",
        "votes",
    ]
    remark = (
        f"Win rate of the first-named model. The bounds are one-sided, {format_confidence(statistics)}, of the "
        "confidence sequence, which is valid however often somebody looked; the gate takes them at its policy's "
        "confidence, and they decide. The interval is a bootstrap by prompt, 95 %, for a number of prompts fixed "
        "beforehand: narrower, and for reading only."
    )
    return table(headers, rows, caption=remark + _pooled(statistics))


def _pooled(statistics: dict[str, Any]) -> str:
    """Which slices and raters had too few votes for a term of their own in the length-controlled win rate."""
    terms = dig(statistics, "comparisons", "candidate_vs_reference", "length_controlled", "terms") or {}
    found = [f"{kind} {', '.join(term['pooled'])}" for kind, term in terms.items() if term["pooled"]]
    return f" Length control pools, for want of votes: {'; '.join(found)}." if found else ""


def _safety(statistics: dict[str, Any]) -> Markup | None:
    safety = statistics.get("safety")
    if not safety:
        return None
    rows = [
        [
            _NAMES.get(role, role),
            row.get("n"),
            row.get("bad"),
            row.get("severity_1"),
            format_interval((row.get("lower"), row.get("upper"))),
        ]
        for role, row in safety.items()
    ]
    share = f"share, {format_confidence(statistics)} bounds"
    return table(["model", "answers judged", "flagged bad", "severity 1", share], rows, caption="Safety flags")


def _raters(statistics: dict[str, Any]) -> Markup | None:
    raters = statistics.get("raters")
    if not raters:
        return None
    rows = [
        [
            name,
            row.get("n_votes"),
            row.get("gold_accuracy"),
            row.get("gold_n"),
            row.get("repeat_agreement"),
            row.get("repeat_n"),
            dig(statistics, "agreement", "raters", name, "raw"),
            dig(statistics, "agreement", "raters", name, "kappa"),
            _drift(dig(statistics, "drift", name)),
            row.get("counted"),
        ]
        for name, row in raters.items()
    ]
    left_out = sum(row.get("counted") is False for row in raters.values())
    remark = f"Votes of {format_number(left_out)} of {format_number(len(raters))} raters are set aside."
    quality = ["rater", "votes", "gold accuracy", "gold items", "repeat agreement", "repeats"]
    headers = [*quality, "agrees with others", "kappa with others", "worse in time", "counted"]
    content = join([paragraph(remark), table(headers, rows)])
    return details("Rater by rater", content, expanded=left_out > 0)


def _drift(drift: dict[str, Any] | None) -> str:
    """What the trend test says of a rater, such as `gold items (p 0.012)`."""
    if not drift or not drift.get("drifts"):
        return "" if drift is None else "not shown"
    names = {"gold": "gold items", "agreement": "agreement"}
    found = [(words, dig(drift, key, "p_holm")) for key, words in names.items()]
    return ", ".join(f"{words} (p {format_number(p)})" for words, p in found if p is not None and p <= _DRIFT_SHOWN)


def _agreement(statistics: dict[str, Any]) -> Markup | None:
    """Agreement by slice."""
    slices = dig(statistics, "agreement", "slices")
    if not slices:
        return None
    keys = ("raw", "alpha", "fleiss_kappa", "cohen_kappa", "n_items")
    rows = [[name, *(row.get(key) for key in keys)] for name, row in slices.items()]
    headers = ["slice", "raw agreement", "alpha", "Fleiss' kappa", "Cohen's kappa (mean of pairs)", "items"]
    return details("Agreement by slice", table(headers, rows))


def _review_queue(statistics: dict[str, Any]) -> Markup | None:
    """The items on which raters disagree the most."""
    queue = statistics.get("review_queue")
    if not queue:
        return None
    rows = [
        [
            row.get("comparison", "").replace("_", " "),
            row.get("prompt_id"),
            row.get("slice"),
            ", ".join(f"{choice} {count}" for choice, count in (row.get("votes") or {}).items()),
            row.get("agreement"),
        ]
        for row in queue[:_SHOWN_OF_QUEUE]
    ]
    remark = f"{format_number(len(queue))} items with low agreement, the worst {format_number(len(rows))} shown here."
    headers = ["comparison", "prompt", "slice", "votes", "agreement"]
    return details("Items to look at again", join([paragraph(remark), table(headers, rows)]))
