"""Made-up runs whose true held-out reward is known, to measure the fall detector on.

Run as a program, it prints the table of docs/release_gate.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.shared.statistics import detect_falls, first_alarm

__all__ = ["CHECKPOINTS", "NOISE", "Measured", "make_run", "measure"]

CHECKPOINTS = 8
PEAK = 4
"""Place of the last checkpoint before the fall."""

Noise = Callable[[np.random.Generator, int], NDArray]


def _normal(correlation: float) -> Noise:
    """Standard normal, equally correlated between checkpoints."""

    def draw(rng: np.random.Generator, n: int) -> NDArray:
        common = rng.normal(size=(n, 1))
        own = rng.normal(size=(n, CHECKPOINTS))
        return np.sqrt(correlation) * common + np.sqrt(1.0 - correlation) * own

    return draw


def _ceiling(*shares: float) -> Noise:
    """Answers near a ceiling (sd 0.05), a share of which fails by 1.5 sd on average; the share by checkpoint.

    So are held-out rewards of a well trained policy in the demo: differences of checkpoints had skewness -7 to 2 and
    excess kurtosis up to 49, correlations between checkpoints were 0 to 0.3 with few exceptions, and the share of
    failures differs from checkpoint to checkpoint.
    """
    rate = np.resize(np.array(shares), CHECKPOINTS)

    def draw(rng: np.random.Generator, n: int) -> NDArray:
        failed = rng.random((n, CHECKPOINTS)) < rate
        loss = failed * rng.exponential(1.5, size=failed.shape)
        return 1.5 * rate - loss + 0.05 * _normal(0.3)(rng, n)

    return draw


NOISE: dict[str, Noise] = {
    "normal, correlation 0.2": _normal(0.2),
    "normal, correlation 0.7": _normal(0.7),
    "failures 5 %": _ceiling(0.05),
    "failures 1 to 8 %": _ceiling(0.08, 0.05, 0.02, 0.01, 0.04, 0.02, 0.01, 0.02),
}
"""True means are 0 at every checkpoint."""


@dataclass(frozen=True)
class Measured:
    """Shares of runs.

    Attributes:
        any_alarm: With an alarm at any checkpoint.
        candidate: With a fall shown at the last one.
        delay: Median number of checkpoints from the peak to the alarm, of runs with one; None if fewer than half have.
    """

    any_alarm: float
    candidate: float
    delay: float | None


def make_run(rng: np.random.Generator, noise: Noise, prompts: int, *, fall: float = 0.0, rise: float = 0.0) -> NDArray:
    """Held-out rewards `(prompts, CHECKPOINTS)`: up by `rise` until the peak, down by `fall` at once after it."""
    means = np.full(CHECKPOINTS, rise)
    means[: PEAK + 1] = np.linspace(0.0, rise, PEAK + 1)
    means[PEAK + 1 :] -= fall
    return noise(rng, prompts) + means


def measure(
    noise: Noise, prompts: int, *, runs: int, fall: float = 0.0, rise: float = 0.0, draws: int = 300, seed: int = 0
) -> Measured:
    """Runs the detector on many runs."""
    rng = np.random.default_rng(seed)
    alarms, candidates = [], 0
    for number in range(runs):
        falls = detect_falls(make_run(rng, noise, prompts, fall=fall, rise=rise), draws=draws, seed=number)
        found = first_alarm(falls)
        alarms.append(found.place - PEAK if found else np.inf)
        candidates += falls[-1].lower > 0.0
    delay = float(np.median(alarms))
    return Measured(
        float(np.isfinite(alarms).mean()), candidates / runs, delay if fall and np.isfinite(delay) else None
    )


def _print_table(runs: int) -> None:
    print("| noise | prompts | " + " | ".join(["false alarms", *(f"fall {f}" for f in (0.1, 0.2, 0.5))]) + " |")  # noqa: T201
    for name, noise in NOISE.items():
        for prompts in (60, 200, 400):
            still = measure(noise, prompts, runs=runs)
            cells = [f"{still.any_alarm:.3f} ({still.candidate:.3f})"]
            for fall in (0.1, 0.2, 0.5):
                found = measure(noise, prompts, runs=runs // 2, fall=fall)
                delay = "-" if found.delay is None else f"{found.delay:g}"
                cells.append(f"{found.any_alarm:.2f} ({found.candidate:.2f}), {delay}")
            print(f"| {name} | {prompts} | " + " | ".join(cells) + " |", flush=True)  # noqa: T201


if __name__ == "__main__":
    _print_table(runs=1000)
