"""Ledger and registry of a test, and what is done to them again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_release import MODEL, make_policy, make_weights

from components.release_gate.approvals import Desk
from components.release_gate.office import Office, verify
from components.release_gate.promotion import promote
from components.release_gate.registry import Registry
from components.release_gate.releases import JudgedRelease, record_verdict, register
from components.release_gate.verdict import Verdict
from components.shared.artifacts import read_artifact
from components.shared.champion import resolve_champion
from components.shared.review_key import ReviewKey

__all__ = ["KEY", "SIGNED_IN", "Killed", "check_agreement", "die", "judge_weights", "kill_at", "release_weights"]


KEY = ReviewKey("the secret of this test's review service")
SIGNED_IN = Desk(KEY, signed_in=True)


def judge_weights(
    office: Office,
    root: Path,
    weights: str,
    *,
    verdict: Verdict = Verdict.PROMOTE,
    approvals: int = 0,
    command_line: bool = False,
    raters: tuple[str, ...] = (),
    importers: tuple[str, ...] = (),
    evidence_at: str = "",
    **extra: str,
) -> str:
    """Registers weights and records a verdict on them; returns the version."""
    folder = root / f"policy-{weights}"
    if not folder.exists():
        make_weights(folder, weights)
    artifact = read_artifact(folder, "policy")
    view = office.ledger.view(MODEL)
    champion = view.digest(view.champion) if view.champion else ""
    digests = {"candidate": artifact.digest, "champion": champion, "policy": "p", "evidence": "e", **extra}
    policy = make_policy(release={"approvals_required": approvals, "command_line_may_approve": command_line})
    who = {"raters": raters, "importers": importers}
    judged = JudgedRelease(verdict, "because", digests, policy, "pipeline", **who, evidence_at=evidence_at)
    version = register(office, MODEL, artifact, judged)
    record_verdict(office, MODEL, version, judged)
    return version


def release_weights(office: Office, root: Path, weights: str) -> str:
    version = judge_weights(office, root, weights)
    promote(MODEL, version, "pipeline", office=office)
    return version


def check_agreement(office: Office, champion: str | None, previous: str | None = None) -> None:
    """Ledger, aliases and what other stages read agree."""
    live = resolve_champion(MODEL)
    assert (live.version if live else None) == champion
    aliases = office.registry.aliases(MODEL)
    assert aliases.get("champion") == champion
    assert aliases.get("previous") == previous
    report = verify(MODEL, office=office)
    assert report.problems == []


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def die(*_: Any, **__: Any) -> None:
    raise Killed


def kill_at(monkeypatch: pytest.MonkeyPatch, step: str, call: int, *, after: bool) -> None:
    """The `call`-th use of a registry step kills the process, before or after it had its effect."""
    original, calls = getattr(Registry, step), []

    def killing(self: Registry, *args: Any, **kwargs: Any) -> Any:
        calls.append(step)
        if len(calls) == call and not after:
            raise Killed
        result = original(self, *args, **kwargs)
        if len(calls) == call and after:
            raise Killed
        return result

    monkeypatch.setattr(Registry, step, killing)
