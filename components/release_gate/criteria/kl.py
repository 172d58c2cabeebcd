"""KL: how far the candidate moved from its reference, measured by the evaluation and not read from the trainer."""

from __future__ import annotations

from components.release_gate.evidence import Case
from components.release_gate.findings import Criterion, Finding, criterion

__all__ = ["kl"]

_METRICS = "metrics.json"
_Z_ONE_SIDED_95 = 1.6449
_NEGATIVE_ERRORS = 3.0
"""k1 of a correct measurement is negative beyond this many standard errors once in 740 times."""
_LARGEST_KL = 1e6
"""Nats per sequence; more is no measurement."""


def kl(case: Case) -> list[Criterion]:
    """Overall (nats per sequence and per token) and by slice."""
    if case.live:
        why = "KL limits what training may do; a live model is judged by its answers."
        return [Criterion("kl", Finding.NOT_APPLICABLE, why)]
    return [_overall(case), _per_token(case), _by_slice(case)]


@criterion("kl.sequence", threshold="KL in nats per sequence")
def _overall(case: Case) -> Criterion:
    rule = case.policy.kl
    ceiling = rule.max_nats_per_sequence
    mean, error, n = _measured(case, "candidate")
    if n < rule.min_sequences:
        raise case.evaluation.refuse(
            f"KL was measured on {n} sequences, {rule.min_sequences} are needed.", _METRICS, finding=Finding.HOLD
        )
    half = _Z_ONE_SIDED_95 * error
    figures = f"The candidate is {mean:.2f} nats per sequence from the reference (95 % upper bound {mean + half:.2f})"
    if mean > ceiling:
        verdict, tail = Finding.BLOCK, f"above the ceiling of {ceiling:g}"
    elif mean + half > ceiling:
        verdict, tail = Finding.HOLD, f"not shown to be below the ceiling of {ceiling:g}: measure more sequences"
    else:
        verdict, tail = Finding.PASS, f"below the ceiling of {ceiling:g}"
    return Criterion(
        "kl.sequence",
        verdict,
        f"{figures}: {tail}.{_trainer_says(case)}",
        value=mean,
        interval=(mean - half, mean + half),
        threshold=f"upper bound <= {ceiling:g} nats",
        n=n,
        source=case.evaluation.cite(_METRICS, "candidate", "kl"),
    )


@criterion("kl.token", threshold="KL in nats per token")
def _per_token(case: Case) -> Criterion:
    ceiling = case.policy.kl.max_nats_per_token
    mean, _, _ = _measured(case, "candidate")
    # A sequence has a token or more: the mean per token lies between 0 and the mean per sequence.
    limits = {"low": min(0.0, mean), "high": max(0.0, mean)}
    value = case.evaluation.number(_METRICS, "candidate", "kl", "per_token", **limits)
    source = case.evaluation.cite(_METRICS, "candidate", "kl", "per_token")
    if ceiling is None:
        reason = f"{value:.3f} nats per token; the policy sets no limit per token."
        return Criterion("kl.token", Finding.NOT_APPLICABLE, reason, value=value, source=source)
    verdict = Finding.BLOCK if value > ceiling else Finding.PASS
    side = "above" if value > ceiling else "not above"
    reason = f"The candidate is {value:.3f} nats per token from the reference: {side} the ceiling of {ceiling:g}."
    return Criterion("kl.token", verdict, reason, value=value, threshold=f"<= {ceiling:g} nats", source=source)


@criterion("kl.slices", threshold="KL in nats per sequence in each slice")
def _by_slice(case: Case) -> Criterion:
    ceiling = case.policy.kl.max_slice_nats_per_sequence
    slices = sorted(case.evaluation.mapping(_METRICS, "candidate", "slices"))
    names = [name for name in slices if case.evaluation.count(_METRICS, "candidate", "slices", name, "n") > 1]
    if not names:
        raise case.evaluation.refuse(
            "KL was measured in no slice with two answers or more.", _METRICS, finding=Finding.HOLD
        )
    measured = {name: _measured(case, "candidate", "slices", name) for name in names}
    worst = max(names, key=lambda name: measured[name][0])
    mean, error, n = measured[worst]
    above = [f"{name} ({measured[name][0]:.1f})" for name in names if measured[name][0] > ceiling]
    half = _Z_ONE_SIDED_95 * error
    unsure = [name for name in names if measured[name][0] + _Z_ONE_SIDED_95 * measured[name][1] > ceiling]
    if above:
        verdict, reason = Finding.BLOCK, f"KL is above the ceiling of {ceiling:g} nats in {', '.join(above)}."
    elif unsure:
        verdict = Finding.HOLD
        reason = f"KL is not shown to be below the ceiling of {ceiling:g} nats in {', '.join(unsure)}: measure more."
    else:
        verdict = Finding.PASS
        reason = f"KL is highest in {worst} ({mean:.2f} nats per sequence), below the ceiling of {ceiling:g} there."
    return Criterion(
        "kl.slices",
        verdict,
        reason,
        value=mean,
        interval=(mean - half, mean + half),
        threshold=f"upper bound <= {ceiling:g} nats in each slice",
        n=n,
        source=case.evaluation.cite(_METRICS, "candidate", "slices", worst, "kl"),
    )


def _measured(case: Case, *path: str) -> tuple[float, float, int]:
    """(mean, standard error, n) of a KL measurement.

    Raises:
        EvidenceFault: Absent, or impossible: negative beyond what sampling explains.
    """
    n = case.evaluation.count(_METRICS, *path, "n")
    mean = case.evaluation.number(_METRICS, *path, "kl", "mean", low=-_LARGEST_KL, high=_LARGEST_KL)
    if n < 2:
        raise case.evaluation.refuse(
            f"KL of {path[-1]} rests on {n} sequence(s): it has no interval.", _METRICS, *path, finding=Finding.HOLD
        )
    error = case.evaluation.number(_METRICS, *path, "kl", "se", low=0.0, high=_LARGEST_KL)
    if mean < -_NEGATIVE_ERRORS * error:
        raise case.evaluation.refuse(
            f"KL of {path[-1]} is {mean:.3f} nats, negative beyond {_NEGATIVE_ERRORS:g} standard errors ({error:.3f}): "
            "sampling and scoring disagree, the measurement is wrong.",
            _METRICS,
            *path,
        )
    return mean, error, n


def _trainer_says(case: Case) -> str:
    """The trainer's own figure, for the reader; it decides nothing."""
    if case.history.fault or not case.history.has("summary.json", "kl_final"):
        return ""
    return f" The trainer's own figure was {case.history.number('summary.json', 'kl_final'):.2f}."
