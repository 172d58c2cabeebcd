from __future__ import annotations

from typing import Any

from components.report.parts import Missing, Parts
from components.report.people import raters_section

STATISTICS: dict[str, Any] = {
    "rater_kinds": ["human"],
    "raters": {"anna": {"n_votes": 80, "counted": True}, "<b>ben</b>": {"n_votes": 80, "counted": True}},
    "agreement": {
        "fleiss_kappa": 0.31,
        "slices": {"how-to": {"raw": 0.71, "fleiss_kappa": 0.42, "n_items": 40}},
        "raters": {"anna": {"raw": 0.66, "kappa": 0.29, "n_pairs": 160}},
    },
    "drift": {
        "anna": {"gold": {"p_holm": 0.012}, "agreement": {"p_holm": 0.6}, "drifts": True},
        "<b>ben</b>": {"gold": {"p_holm": None}, "agreement": {"p_holm": 1.0}, "drifts": False},
    },
    "review_queue": [
        {
            "comparison": "candidate_vs_reference",
            "prompt_id": f"p{i}",
            "slice": "how-to",
            "votes": {"first": 1, "tie": 1},
        }
        for i in range(30)
    ],
}


def _page(**overrides: Any) -> str:
    section = raters_section(Parts(statistics={**STATISTICS, **overrides}))
    assert not isinstance(section, Missing)
    return str(section.html)


def test_kappa_drift_and_the_items_to_look_at_again_are_on_the_page() -> None:
    page = _page()
    for text in ("0.31", "0.42", "gold items (p 0.012)", "not shown", "30 items with low agreement", "first 1, tie 1"):
        assert text in page, text
    assert "<b>ben" not in page
    assert page.count("candidate vs reference") == 20


def test_evidence_of_an_older_version_has_none_of_it_and_is_shown_without() -> None:
    page = _page(agreement=None, drift=None, review_queue=None)
    assert "Items to look at again" not in page
    assert "Agreement by slice" not in page
