"""The terms of a verdict: how many people must approve it, how, and who may not. They follow from policy and evidence.

The gate writes them into the ledger, where those who approve, promote and verify read them. Whoever adds a row to the
ledger may write other ones: `term_problems` compares them with the policy and the evidence that were kept beside the
version, whose digests the same row names.

Whoever starts a run names its policy. So a model that people have approved is not released by fewer of them because a
run names a policy that asks for fewer: `fewer_people` compares with the terms on which the champion went live.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from components.release_gate.policy import ReleaseRule
from components.shared.pseudonyms import is_pseudonym

__all__ = ["fewer_people", "importers_of", "people_of", "term_problems", "terms_of"]

_WORDS = {
    "approvals_required": "approvals needed",
    "command_line_may_approve": "approvals of the command line count",
    "raters_may_approve": "who rated may approve",
    "require_known_requester": "somebody known has to have asked for it",
    "raters": "raters who may not approve",
    "importers": "importers who may not approve",
}


def terms_of(rules: ReleaseRule, raters: Iterable[str], importers: Iterable[str]) -> dict[str, Any]:
    """What the ledger says of a verdict's approvals.

    Args:
        rules: Of the policy.
        raters: Pseudonyms of the people whose judgements it rests on.
        importers: Logins of those who imported judgements.
    """
    return {
        "approvals_required": rules.approvals_required,
        "command_line_may_approve": rules.command_line_may_approve,
        "raters_may_approve": rules.raters_may_approve,
        "require_known_requester": rules.require_known_requester,
        "raters": [] if rules.raters_may_approve else sorted(raters),
        "importers": sorted(importers),
    }


def fewer_people(rules: ReleaseRule, champions: Mapping[str, Any]) -> list[str]:
    """In what a policy asks less of people than the verdict on which the champion went live; empty if in nothing.

    Args:
        rules: Of the policy that is to judge the candidate.
        champions: What the ledger says of that verdict; a term that an earlier gate did not know is not there.
    """
    found = []
    required = champions.get("approvals_required", 0)
    if rules.approvals_required < required:
        found.append(f"{rules.approvals_required} approvals, and the champion had {required}")
    if not required:
        return found
    if rules.command_line_may_approve and champions.get("command_line_may_approve") is False:
        found.append("approvals of the command line count, and for the champion they did not")
    if rules.raters_may_approve and champions.get("raters_may_approve") is False:
        found.append("who rated may approve, and of the champion's they did not")
    if not rules.require_known_requester and champions.get("require_known_requester"):
        found.append("nobody known has to have asked for it, and for the champion somebody had")
    return found


def people_of(judgements: Iterable[Mapping[str, Any]]) -> set[str]:
    """Pseudonyms that the review service made of people's logins; other names cannot be traced to an approver."""
    found = {str(row.get("rater")) for row in judgements if row.get("rater_kind") == "human"}
    return {rater for rater in found if is_pseudonym(rater)}


def importers_of(judgements: Iterable[Mapping[str, Any]]) -> set[str]:
    """Logins of those who brought judgements in from another tool, under names that nobody else vouches for."""
    return {str(row["imported_by"]) for row in judgements if row.get("imported_by")}


def term_problems(told: Mapping[str, Any], rules: ReleaseRule, judgements: Iterable[Mapping[str, Any]]) -> list[str]:
    """Terms on the ledger that do not follow; empty if all do.

    Args:
        told: What the ledger says of the verdict; a term that an earlier gate did not know is not there.
        rules: Of the policy that it names.
        judgements: `judgements.jsonl` of the evidence that it names.
    """
    rows = list(judgements)
    due = terms_of(rules, people_of(rows), importers_of(rows))
    return [
        f"The ledger says {_WORDS[name]}: {_said(told[name])}; by its policy and evidence: {_said(value)}."
        for name, value in due.items()
        if name in told and told[name] != value
    ]


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
