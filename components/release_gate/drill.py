"""The rollback drill: is the way back open, and how long does it take?

    the live champion's own weights go live on a scratch model > throwaway weights replace them > roll back > time it

The scratch model (`<model>.drill`) has a ledger and aliases of its own in the same services, so that the drill walks
the very path of a real rollback: intent, the restored weights fetched and verified, alias, read back, end. It never
names the real model in a write. Its history is the record of all drills.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

from components.release_gate.entries import LedgerView
from components.release_gate.office import Office, open_office, verify
from components.release_gate.policy import PRODUCTION, GatePolicy, load_policy_file
from components.release_gate.promotion import Outcome, PromotionError, abandon, promote, rollback
from components.release_gate.releases import JudgedRelease, record_verdict, register
from components.release_gate.verdict import Verdict
from components.shared.artifacts import Artifact, read_artifact, write_artifact
from components.shared.champion import download_policy
from components.shared.files import write_json, write_text
from components.shared.model_names import SCRATCH_SUFFIX

__all__ = ["SCRATCH_SUFFIX", "run_drill"]


def run_drill(model: str, *, actor: str, office: Office | None = None) -> dict[str, Any]:
    """Promotes, rolls back and measures on a scratch model.

    Args:
        model: The registered model whose way back is drilled; it is only read.
        actor: Who drills.
        office: Ledger and registry; by default those of the environment.

    Returns:
        `model` (the scratch one), `real_model`, `real_champion`, `untouched` (the real model's ledger and aliases are
        what they were), `weights` (`champion` or, where nothing is live, `throwaway`), `bytes` that the rollback
        verified, `taken_back`, `restored`, `sound` (the scratch ledger replays), `seconds` (`prepare`, `promote`,
        `rollback`, `total`), `ok` and `message`.

    Raises:
        PromotionError: The way back is not open; the error says where it ended.
    """
    started = time.monotonic()
    office = office or open_office()
    before = _fingerprint(office, model)
    scratch = model + SCRATCH_SUFFIX
    with tempfile.TemporaryDirectory(prefix="plumbline-drill-") as aside:
        _end_what_was_left(office, scratch, actor)
        kept, kind = _weights(office, model, Path(aside) / "kept")
        restored = _put_live(office, scratch, kept, actor).version
        thrown = _throwaway(Path(aside) / "throwaway")
        prepared = time.monotonic()
        promoted = _put_live(office, scratch, thrown, actor)
        back = rollback(scratch, actor, "Rollback drill.", version=promoted.version, office=office)
        size = sum(file.stat().st_size for file in kept.path.rglob("*") if file.is_file())
    if back.champion != restored:
        raise PromotionError(f"the drill restored version {back.champion}, not {restored}.", where=f"model {scratch}")
    untouched, sound = _fingerprint(office, model) == before, verify(scratch, office=office).sound
    seconds = {
        "prepare": round(prepared - started, 3),
        "promote": promoted.seconds,
        "rollback": back.seconds,
        "total": round(time.monotonic() - started, 3),
    }
    return {
        "model": scratch,
        "real_model": model,
        "real_champion": before[1],
        "untouched": untouched,
        "weights": kind,
        "bytes": size,
        "taken_back": back.version,
        "restored": back.champion,
        "sound": sound,
        "seconds": seconds,
        "ok": untouched and sound,
        "message": _in_words(model, scratch, kind, size, untouched, sound, seconds),
    }


def _in_words(
    model: str, scratch: str, kind: str, size: int, untouched: bool, sound: bool, seconds: dict[str, float]
) -> str:
    whose = f"{model}'s champion" if kind == "champion" else "throwaway weights (nothing is live)"
    real = f"{model} was left alone" if untouched else f"{model} CHANGED meanwhile (not by the drill; see its history)"
    ledger = "its ledger replays" if sound else "its ledger is NOT INTACT"
    return (
        f"Drill on {scratch}: rolled back in {seconds['rollback']:.2f} s to {whose} ({size / 1e6:.1f} MB fetched and "
        f"verified), promotion {seconds['promote']:.2f} s, all of it {seconds['total']:.2f} s; {ledger}. {real}."
    )


def _fingerprint(office: Office, model: str) -> tuple[tuple[int, str], str | None, dict[str, str]]:
    """Ledger head, champion and aliases of a model."""
    view = office.ledger.view(model)
    return view.head, view.champion, office.registry.aliases(model)


def _end_what_was_left(office: Office, scratch: str, actor: str) -> None:
    """Ends what a drill that was killed had begun."""
    view = office.ledger.view(scratch)
    if view.promoting is not None:
        abandon(scratch, view.promoting, actor, "A drill was killed here.", office=office)
    elif view.rolling_back is not None:
        rollback(scratch, actor, "A drill was killed here.", version=view.rolling_back, office=office)


def _weights(office: Office, model: str, folder: Path) -> tuple[Artifact, str]:
    """The live champion's own files, so that the drill verifies as many bytes as the real rollback would."""
    view = office.ledger.view(model)
    if view.champion is None:
        return _throwaway(folder), "throwaway"
    return download_policy(view.uri(view.champion), view.digest(view.champion), folder), "champion"


def _throwaway(folder: Path) -> Artifact:
    """A policy artifact that no other has the digest of."""
    with write_artifact(folder, "policy", stage="drill") as draft:
        write_text(draft.path / "drill.txt", secrets.token_hex(16))
        write_json(
            draft.path / "policy.json", {"format": "full", "base_model": "drill", "base_digest": "", "step": None}
        )
    return read_artifact(folder, "policy")


def _put_live(office: Office, scratch: str, artifact: Artifact, actor: str) -> Outcome:
    """Releases weights on the scratch model, unless they are live there already."""
    view = office.ledger.view(scratch)
    judged = JudgedRelease(Verdict.PROMOTE, "Rollback drill.", _digests(view, artifact), _drill_policy(), actor)
    live = view.champion
    if live is not None and view.digest(live) == artifact.digest:
        version = live
    else:
        version = register(office, scratch, artifact, judged)
        record_verdict(office, scratch, version, judged)
    return promote(scratch, version, actor, office=office)


def _digests(view: LedgerView, artifact: Artifact) -> dict[str, str]:
    champion = view.digest(view.champion) if view.champion else ""
    return {"candidate": artifact.digest, "champion": champion, "policy": _drill_policy().digest}


def _drill_policy() -> GatePolicy:
    """Production's, but nobody approves what never serves."""
    rules = load_policy_file(PRODUCTION)
    release = rules.release.model_copy(update={"approvals_required": 0})
    return rules.model_copy(update={"name": "drill", "description": "Rollback drill only.", "release": release})
