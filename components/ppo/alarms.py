"""Signs that a training goes wrong: each is looked for in the history, told with its reason, and may stop the run.

NaN, infinity and the KL ceiling always stop (`scoring.require_finite`, `KLController.exceeds_ceiling`). The alarms here
tell of what is slower: a policy that says one thing only, that never ends its answers or repeats itself, a value model
that explains nothing. They follow from the history alone, so that a resumed run raises what the uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from components.ppo.settings import AlarmSettings

__all__ = ["Alarm", "raise_alarms"]

_Row = dict[str, Any]


@dataclass(frozen=True)
class Alarm:
    """A sign that has lasted.

    Attributes:
        name: As in `AlarmSettings.stop_on`.
        reason: What was seen, in words.
        new: Whether this is the first step of it.
    """

    name: str
    reason: str
    new: bool


@dataclass(frozen=True)
class _Sign:
    name: str
    seen: Callable[[_Row], bool]
    told: Callable[[_Row], str]


def raise_alarms(history: Sequence[_Row], settings: AlarmSettings) -> list[Alarm]:
    """The alarms of the last row: signs that each of the last `patience` rows shows.

    Args:
        history: All rows, the last one included; at least one.
        settings: Limits.
    """
    alarms = []
    for sign in _signs(history[0], settings):
        if all(sign.seen(row) for row in history[-settings.patience :]) and len(history) >= settings.patience:
            before = history[-settings.patience - 1 : -1]
            lasting = len(before) == settings.patience and all(sign.seen(row) for row in before)
            reason = f"{sign.told(history[-1])} for {settings.patience} steps"
            alarms.append(Alarm(sign.name, reason, new=not lasting))
    return alarms


def _signs(first: _Row, settings: AlarmSettings) -> list[_Sign]:
    """Every sign that is looked for; a limit that is absent is not."""
    signs = []
    if settings.min_entropy_share is not None:
        limit = settings.min_entropy_share * first["entropy"]
        signs.append(
            _Sign(
                "entropy",
                lambda row: row["entropy"] < limit,
                lambda row: (
                    f"entropy {row['entropy']:.3f} nats a token is below {settings.min_entropy_share:.0%} of the "
                    f"{first['entropy']:.3f} at the start"
                ),
            )
        )
    if (least := settings.min_explained_variance) is not None:
        signs.append(
            _Sign(
                "explained_variance",
                lambda row: row["explained_variance"] is not None and row["explained_variance"] < least,
                lambda row: f"the value model explains {row['explained_variance']:.2f} of the returns, below {least:g}",
            )
        )
    if (most_cut := settings.max_truncated_share) is not None:
        signs.append(
            _Sign(
                "truncation",
                lambda row: 1.0 - row["finished_share"] > most_cut,
                lambda row: f"{1.0 - row['finished_share']:.0%} of answers hit the length limit, above {most_cut:.0%}",
            )
        )
    if (most_repeated := settings.max_repetition_share) is not None:
        signs.append(
            _Sign(
                "repetition",
                lambda row: row["repetition_share"] > most_repeated,
                lambda row: f"{row['repetition_share']:.0%} of trigrams repeat, above {most_repeated:.0%}",
            )
        )
    return signs
