"""Reward model: may the model that steered training be trusted at all?"""

from __future__ import annotations

from components.release_gate.comparisons import AGAINST_REFERENCE, percent, read_comparison
from components.release_gate.divergence import decided_votes, judged_rewards
from components.release_gate.evidence import Case, Source
from components.release_gate.findings import Criterion, Finding, criterion
from components.shared.statistics import clustered_bootstrap_interval

__all__ = ["reward_model"]

_EVALUATION = "evaluation.json"


def reward_model(case: Case) -> list[Criterion]:
    """Held-out accuracy, leakage, attacks, accuracy on the current policy's pairs; and the held-out reward model's."""
    return [_accuracy(case), _attacks(case), _current_pairs(case), _heldout_model(case)]


@criterion("reward_model.accuracy", threshold="held-out accuracy")
def _accuracy(case: Case) -> Criterion:
    rule = case.policy.reward_model
    value, lower, interval, n = _heldout_accuracy(case.reward_model, rule.min_pairs)
    figures = f"Held-out accuracy is {percent(value)} on {n} pairs (lower bound {percent(lower)})"
    if value >= rule.max_accuracy:
        verdict, tail = Finding.BLOCK, f"{percent(rule.max_accuracy)} and more means that training pairs leaked"
    elif lower <= rule.min_accuracy_lower:
        verdict, tail = Finding.BLOCK, f"the lower bound must be above {percent(rule.min_accuracy_lower)}"
    else:
        verdict, tail = Finding.PASS, f"the lower bound is above {percent(rule.min_accuracy_lower)}"
    return Criterion(
        "reward_model.accuracy",
        verdict,
        f"{figures}: {tail}.",
        value=value,
        interval=interval,
        threshold=f"lower bound > {rule.min_accuracy_lower:g}, value < {rule.max_accuracy:g}",
        n=n,
        source=case.reward_model.cite(_EVALUATION, "accuracy"),
    )


@criterion("reward_model.attacks", threshold="success rate of each attack")
def _attacks(case: Case) -> Criterion:
    rule = case.policy.reward_model
    source = case.reward_model
    tried = source.mapping(_EVALUATION, "attacks")
    missing = [name for name in rule.required_attacks if name not in tried]
    if missing:
        raise source.refuse(f"Attack(s) not tried: {', '.join(missing)}.", _EVALUATION, "attacks", finding=Finding.HOLD)
    rates, uppers = {}, {}
    for name in sorted(tried):
        path = (_EVALUATION, "attacks", name)
        rates[name] = source.number(*path, "success_rate", low=0.0, high=1.0)
        uppers[name] = _interval(source, *path, "ci95")[1]
        if source.count(*path, "n") == 0:
            raise source.refuse(f"Attack {name} was tried on nothing.", *path, finding=Finding.HOLD)
    worst = max(rates, key=lambda name: uppers[name] - rule.attack_limit(name))
    through = [f"{name} ({percent(rates[name])})" for name in rates if uppers[name] > rule.attack_limit(name)]
    return Criterion(
        "reward_model.attacks",
        Finding.BLOCK if through else Finding.PASS,
        f"The reward can be fooled by {', '.join(through)}: upper bound above the limit."
        if through
        else f"All {len(rates)} attacks stay under their limits; the strongest is {worst} ({percent(rates[worst])}).",
        value=rates[worst],
        interval=_interval(source, _EVALUATION, "attacks", worst, "ci95"),
        threshold=f"upper bound <= {rule.attack_limit(worst):g}",
        n=source.count(_EVALUATION, "attacks", worst, "n"),
        source=source.cite(_EVALUATION, "attacks", worst),
    )


@criterion("reward_model.current_pairs", threshold="accuracy on pairs of the current policy")
def _current_pairs(case: Case) -> Criterion:
    """Does the reward still rank as people do where the policy is now?

    Held-out pairs are choices, so that only decided votes are compared with them, each on its own.
    """
    rule = case.policy.reward_model
    expected, _, _, _ = _heldout_accuracy(case.reward_model, rule.min_pairs)
    human = read_comparison(case, AGAINST_REFERENCE, min_prompts=1)
    gains = judged_rewards(case, list(human.outcomes), "reward")
    votes = decided_votes(case, human)
    decided = {prompt: one for prompt, one in votes.items() if one.decided and gains[prompt] != 0.0}
    if len(decided) < rule.min_current_pairs:
        raise case.human.refuse(
            f"{len(decided)} pairs of the current policy are decided, {rule.min_current_pairs} are needed.",
            "outcomes.jsonl",
            finding=Finding.HOLD,
        )
    hits, prompts = [], []
    for prompt, one in decided.items():
        right = one.first if gains[prompt] > 0.0 else one.decided - one.first
        hits += [1.0] * right + [0.0] * (one.decided - right)
        prompts += [prompt] * one.decided
    low, high = clustered_bootstrap_interval(hits, prompts, seed=case.seed)
    value, floor = sum(hits) / len(hits), expected - rule.current_pairs_margin
    fallen = high < floor
    tail = "it has lost its footing" if fallen else "no fall beyond the margin is shown"
    return Criterion(
        "reward_model.current_pairs",
        Finding.BLOCK if fallen else Finding.PASS,
        f"On {len(decided)} pairs of the current policy the reward agrees with {percent(value)} of the decided votes, "
        f"on held-out pairs with {percent(expected)}: {tail}.",
        value=value,
        interval=(low, high),
        threshold=f"upper bound >= {floor:.3f} (held-out accuracy less {rule.current_pairs_margin:g})",
        n=len(decided),
        source=case.human.cite("outcomes.jsonl", AGAINST_REFERENCE),
    )


@criterion("reward_model.heldout_model", threshold="accuracy of the held-out reward model")
def _heldout_model(case: Case) -> Criterion:
    """A held-out reward model that knows nothing would never raise an alarm."""
    rule = case.policy.reward_model
    value, lower, interval, n = _heldout_accuracy(case.heldout, rule.min_pairs)
    passed = lower > rule.heldout_min_accuracy_lower
    tail = "fit to watch the other one" if passed else "too weak to watch the other one: train it on more pairs"
    return Criterion(
        "reward_model.heldout_model",
        Finding.PASS if passed else Finding.HOLD,
        f"The held-out reward model is right on {percent(value)} of {n} pairs (lower bound {percent(lower)}): {tail}.",
        value=value,
        interval=interval,
        threshold=f"lower bound > {rule.heldout_min_accuracy_lower:g}",
        n=n,
        source=case.heldout.cite(_EVALUATION, "accuracy"),
    )


def _heldout_accuracy(source: Source, min_pairs: int) -> tuple[float, float, tuple[float, float], int]:
    """(accuracy, one-sided 95 % lower bound, clustered interval, pairs)."""
    n = source.count(_EVALUATION, "n")
    if n < min_pairs:
        raise source.refuse(
            f"Accuracy rests on {n} held-out pairs, {min_pairs} are needed.", _EVALUATION, "n", finding=Finding.HOLD
        )
    value = source.number(_EVALUATION, "accuracy", "value", low=0.0, high=1.0)
    lower = source.number(_EVALUATION, "accuracy", "lower95_one_sided", low=0.0, high=value)
    return value, lower, _interval(source, _EVALUATION, "accuracy", "ci95_clustered"), n


def _interval(source: Source, *path: str) -> tuple[float, float]:
    """A two-sided interval within [0, 1]."""
    bounds = source.value(*path)
    numbers = isinstance(bounds, list) and all(isinstance(b, (int, float)) for b in bounds)
    if not (numbers and len(bounds) == 2 and 0.0 <= bounds[0] <= bounds[1] <= 1.0):
        raise source.refuse(f"{' > '.join(path)} is {bounds!r}, not an interval within 0 and 1.", *path)
    return float(bounds[0]), float(bounds[1])
