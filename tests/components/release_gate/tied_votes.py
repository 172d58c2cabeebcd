"""Made-up evidence for the gap: a reward that people follow (or do not), and people who call ties.

Run as a program it prints the table of docs/release_gate.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.release_gate.divergence import Decided, Gap, estimate_gap

__all__ = ["TIES", "People", "constant", "make_gap", "margin_dependent"]

Ties = Callable[[NDArray], NDArray]


def constant(share: float) -> Ties:
    """Everybody ties as often on every pair."""
    return lambda log_odds: np.full(log_odds.shape, share)


def margin_dependent(share: float) -> Ties:
    """Davidson's (1970) ties, most frequent between equals, `share` of all of these pairs."""

    def ties(log_odds: NDArray) -> NDArray:
        at_even = np.geomspace(1e-4, 1e4, 400)[:, None] / np.cosh(log_odds / 2.0)
        shares = at_even / (2.0 + at_even)
        return shares[np.abs(shares.mean(axis=1) - share).argmin()]

    return ties


TIES = {
    "no ties": constant(0.0),
    "30 %": constant(0.3),
    "60 %": constant(0.6),
    "30 %, more between equals": margin_dependent(0.3),
    "60 %, more between equals": margin_dependent(0.6),
}


@dataclass(frozen=True)
class People:
    """Who votes.

    Attributes:
        lead: Mean log odds of the candidate, in the reward's eyes.
        follow: Their taste in units of the reward: 1 if it is theirs, -1 if it is the opposite.
        ties: How often they call a tie, by the log odds of each pair.
        prompts: Judged pairs.
        votes: A pair.
        heldout: Held-out pairs, which people chose by the reward, whatever they think of the candidate.
    """

    lead: float = 2.5
    follow: float = 1.0
    ties: Ties = TIES["no ties"]
    prompts: int = 400
    votes: int = 3
    heldout: int = 600


def make_gap(people: People, seed: int, *, draws: int = 200) -> tuple[Gap, float]:
    """The gap on one made-up evaluation, and what it would be with a tie as half a win for people alone."""
    rng = np.random.default_rng(seed)
    pairs = rng.normal(0.0, 1.5, people.heldout)
    differences = np.where(rng.random(people.heldout) < _sigmoid(pairs), pairs, -pairs)
    gains = rng.normal(people.lead, 1.0, people.prompts)
    log_odds = people.follow * gains
    decided = rng.binomial(people.votes, 1.0 - people.ties(log_odds))
    first = rng.binomial(decided, _sigmoid(log_odds))
    votes = [Decided(people.votes, int(d), int(f)) for d, f in zip(decided, first, strict=True)]
    clusters = [str(number) for number in range(people.heldout)]
    found = estimate_gap(gains, votes, differences, clusters, draws=draws, seed=seed)
    half_wins = float(((first + (people.votes - decided) / 2.0) / people.votes).mean())
    return found, float(_sigmoid(found.slope * gains).mean()) - half_wins


def _sigmoid(x: NDArray) -> NDArray:
    return 1.0 / (1.0 + np.exp(-x))


def _main(runs: int) -> None:
    head = ("ties", "lead", "follow", "mean gap", "as half wins", "lower > 0", "lower > 0.1")
    lines = [" | ".join(head)]
    for lead, follow in ((0.0, 1.0), (1.2, 1.0), (2.5, 1.0), (1.2, 0.1), (1.2, -0.5)):
        for name, ties in TIES.items():
            made = [make_gap(People(lead=lead, follow=follow, ties=ties), seed) for seed in range(runs)]
            lows = np.array([found.ci95[0] for found, _ in made])
            mean, old = np.mean([found.gap for found, _ in made]), np.mean([raw for _, raw in made])
            figures = f"{mean:+.3f} | {old:+.3f} | {(lows > 0.0).mean():.3f} | {(lows > 0.1).mean():.3f}"
            lines.append(f"{name} | {lead} | {follow} | {figures}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    _main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
