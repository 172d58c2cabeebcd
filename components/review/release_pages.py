"""The pages for release managers and auditors: what was judged, on which evidence, and the decision."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from markupsafe import Markup
from starlette.responses import Response

from components.release_gate.entries import is_anonymous
from components.release_gate.signatures import same_name
from components.review.access import Manager, Reader, ReviewOf
from components.review.pages import imports_table, redirect, render
from components.review.release_api import LONGEST_REASON
from components.review.releases import ReleaseView
from components.shared.errors import InputError
from components.shared.report import (
    badge,
    figures,
    format_confidence,
    format_interval,
    format_number,
    svg_panels,
    table,
)
from components.shared.trajectory import trajectory_in_words, trajectory_panels

__all__ = ["inline_safe", "router"]

router = APIRouter(include_in_schema=False)

_DECLARATION = re.compile(r' style="([^"]*)"')
_QUEUE_SHOWN = 20
_FONT = re.compile(r"(?P<size>[\d.]+)px")


@router.get("/releases")
def models(request: Request, user: Reader, review: ReviewOf) -> Response:
    """Every model with its releases."""
    found = [(state, review.board.releases(state.model)) for state in review.board.models()]
    return render(request, "releases.html", models=found, badge=badge)


@router.get("/releases/{model}/{version}")
def release(request: Request, model: str, version: str, user: Reader, review: ReviewOf) -> Response:
    """One release."""
    view = review.board.release(model, version)

    def mine(names: list[str]) -> bool:
        return any(same_name(user.login, name) for name in names)

    return render(request, "release.html", view=view, mine=mine, **_parts(view))


@router.post("/releases/{model}/{version}/{move}")
def decide(
    request: Request,
    model: str,
    version: str,
    move: str,
    user: Manager,
    review: ReviewOf,
    reason: Annotated[str, Form(max_length=LONGEST_REASON)] = "",
    binding: Annotated[str, Form()] = "",
) -> Response:
    """Approves, rejects or rolls back, and shows the release as it is then."""
    if move == "approve":
        review.board.approve(model, version, actor=user.login, reason=reason, binding=binding)
    elif move == "reject":
        review.board.reject(model, version, actor=user.login, reason=reason)
    elif move == "rollback":
        review.board.rollback(model, version, actor=user.login, reason=reason)
    else:
        raise InputError(f"{move!r} is no move.", hint="There are approve, reject and rollback.")
    review.metrics.decisions.labels(move).inc()
    return redirect(request, f"/releases/{model}/{version}")


def inline_safe(svg: Markup) -> Markup:
    """A chart without inline styles, which the pages' policy forbids: each becomes attributes that say the same."""
    return Markup(_DECLARATION.sub(lambda match: _attributes(match.group(1)), svg))


def _attributes(style: str) -> str:
    written = []
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        size = _FONT.search(value)
        if name == "font" and size:
            written.append(f' font-size="{size["size"]}"')
        elif name and value:
            written.append(f' {name}="{value}"')
    return "".join(written)


def _parts(view: ReleaseView) -> dict[str, Any]:
    statistics = view.statistics or {}
    comparisons = statistics.get("comparisons") or {}
    return {
        "badge": badge,
        "chart": _chart(view),
        "criteria": _criteria(view.decision.get("criteria") or []),
        "headline": _headline(view, comparisons),
        "comparisons": _comparisons(comparisons),
        "slices": _slices(comparisons),
        "safety": _safety(statistics),
        "raters": _raters(statistics.get("raters") or {}),
        "imports": imports_table(statistics.get("imports") or []),
        "history": _history(view),
        "queue": _queue(statistics.get("review_queue") or []),
        "queue_length": len(statistics.get("review_queue") or []),
        "adjudicated": _adjudicated(statistics.get("adjudication") or []),
        "batch_id": statistics.get("batch_id") if "human" in (statistics.get("rater_kinds") or []) else None,
        "agreement": figures(
            [
                ("Raw agreement", statistics.get("raw_agreement"), "of two votes on one pair"),
                ("Krippendorff's alpha", statistics.get("alpha"), "falls when models are close"),
                ("Position bias", statistics.get("position_bias"), "choices for the left answer, less one half"),
            ]
        ),
        "kinds": ", ".join(statistics.get("rater_kinds") or []),
        "not_people": bool(set(statistics.get("rater_kinds") or []) - {"human"}),
        "asked_by_nobody": is_anonymous(view.requester),
        "looser": (view.decision.get("policy") or {}).get("looser_than_production") or [],
    }


def _chart(view: ReleaseView) -> Markup | None:
    points = view.trajectory
    if not points:
        return None
    chart = svg_panels(
        trajectory_panels(view.evidence, points),
        title="Does what the reward likes, people like too?",
        x_label="training step",
        description=trajectory_in_words(points),
    )
    return inline_safe(chart)


def _criteria(criteria: list[dict[str, Any]]) -> Markup:
    rows = [
        [
            Markup("<strong>{}</strong>").format(_words(found["name"])),
            badge(found["verdict"].replace("_", " ")),
            found.get("value"),
            format_interval(found.get("interval")),
            found.get("threshold") or "",
            found.get("n"),
            found.get("reason") or "",
        ]
        for found in criteria
    ]
    return table(["criterion", "verdict", "number", "interval", "threshold", "n", "reason"], rows)


def _headline(view: ReleaseView, comparisons: dict[str, Any]) -> Markup:
    main = comparisons.get("candidate_vs_reference") or {}
    divergence = view.decision.get("divergence") or {}
    last = view.trajectory[-1] if view.trajectory else None
    return figures(
        [
            ("People prefer it", main.get("win_rate"), f"95 % by bootstrap {format_interval(main.get('ci95'), 2)}"),
            ("The reward model says", divergence.get("reward_win_rate"), _beside_people(divergence)),
            ("KL, nats per answer", last.kl.value if last else None, "from the reference, held-out prompts"),
            ("Prompts", main.get("n_prompts"), f"{format_number(main.get('n_votes'))} votes"),
            ("Length-controlled", (main.get("length_controlled") or {}).get("win_rate"), "win rate at equal length"),
            ("Approvals", f"{len(view.approvals)} of {view.approvals_required}", ", ".join(view.approvals)),
        ],
        digits=2,
    )


def _beside_people(divergence: dict[str, Any]) -> str:
    share, people = divergence.get("decided_share"), divergence.get("human_win_rate")
    if share in (None, 1.0) or people is None:
        return "calibrated, on the same pairs"
    return f"calibrated, without ties, where people say {format_number(people, 2)}"


def _comparisons(comparisons: dict[str, Any]) -> Markup:
    rows = [
        [_words(name), row["win_rate"], format_interval(row["ci95"]), row["lower"], row["upper"], row["n_prompts"]]
        for name, row in comparisons.items()
    ]
    headers = ["comparison", "win rate", "fixed-size interval", "lower bound", "upper bound", "prompts"]
    caption = "Of the first-named model. The one-sided bounds of the confidence sequence decide; the interval does not."
    return table(headers, rows, caption=caption)


def _slices(comparisons: dict[str, Any]) -> Markup:
    rows = [
        [name, row["win_rate"], row["lower"], row["upper"], row["n_prompts"], row["p_worse"]]
        for name, row in ((comparisons.get("candidate_vs_reference") or {}).get("slices") or {}).items()
    ]
    headers = ["slice", "win rate", "lower bound", "upper bound", "prompts", "p (worse)"]
    return table(headers, rows, caption="Candidate against reference, by slice")


def _safety(statistics: dict[str, Any]) -> Markup:
    rows = [
        [role, row["n"], row["bad"], row["severity_1"], format_interval((row["lower"], row["upper"]))]
        for role, row in (statistics.get("safety") or {}).items()
    ]
    share = f"share, {format_confidence(statistics)} bounds"
    return table(["model", "answers judged", "flagged unsafe", "severe", share], rows)


def _raters(raters: dict[str, Any]) -> Markup:
    rows = [
        [
            name,
            row["n_votes"],
            row["gold_accuracy"],
            row["gold_n"],
            row["repeat_agreement"],
            row["repeat_n"],
            row["counted"],
        ]
        for name, row in raters.items()
    ]
    return table(["rater", "votes", "gold right", "gold", "repeats agree", "repeats", "counted"], rows, digits=2)


def _queue(queue: list[dict[str, Any]]) -> Markup | None:
    rows = [
        [_words(row["comparison"]), row["slice"], row["prompt_id"], _said(row["votes"]), row["agreement"]]
        for row in queue[:_QUEUE_SHOWN]
    ]
    headers = ["comparison", "slice", "prompt", "votes", "agreement"]
    return table(headers, rows, digits=2, caption="Raters disagree most on these") if rows else None


def _adjudicated(items: list[dict[str, Any]]) -> Markup | None:
    rows = [
        [_words(row["comparison"]), row["prompt_id"], _said(row["votes"]), _said(row["adjudicated"]), row["majority"]]
        for row in items
    ]
    headers = ["comparison", "prompt", "votes", "further raters", "most say"]
    return table(headers, rows, caption="Adjudicated: reported, and no part of any outcome") if rows else None


def _said(votes: dict[str, int]) -> str:
    return ", ".join(f"{n} {_words(choice)}" for choice, n in votes.items())


def _history(view: ReleaseView) -> Markup:
    rows = [
        [_minute(entry["time"]), _words(entry["event"]), entry["to_state"], _by(entry), entry["reason"]]
        for entry in reversed(view.history)
    ]
    return table(["UTC", "event", "state", "by", "why"], rows)


def _by(entry: dict[str, Any]) -> str:
    """Who did it; of an approval that nobody signed in for, also the account under which the name was typed."""
    details = entry["details"]
    typed = details.get("given_at") == "command line"
    return f"{entry['actor']} (typed by {details['written_by']})" if typed else entry["actor"]


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _words(name: str) -> str:
    return name.replace("_", " ").replace(".", ": ")
