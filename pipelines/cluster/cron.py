"""KFP's cron: six fields, the first of which is seconds. Checked, put in words, and its next times computed.

Second, minute, hour, day of month, month, day of week (0 is Sunday), in UTC; `*`, `?`, lists, ranges, steps and names
of months and days. Where both days are restricted, either is enough, as in every cron.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from components.shared.errors import InputError

__all__ = ["Cron"]

_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_DAYS = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"]


@dataclass(frozen=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, tuple(name[:3] for name in _MONTHS)),
    _Field("day of week", 0, 6, tuple(name[:3] for name in _DAYS)),
)


@dataclass(frozen=True)
class Cron:
    """A parsed expression.

    Attributes:
        text: As given.
        fields: The values at which it fires, by field.
    """

    text: str
    fields: tuple[frozenset[int], ...]

    @classmethod
    def parse(cls, text: str) -> Cron:
        """Parses an expression.

        Raises:
            InputError: It is none, it would fire every second, or it never fires.
        """
        parts = text.split()
        if len(parts) == 5:
            hint = f"The first field is seconds: write '0 {text.strip()}' for what other crons call '{text.strip()}'."
            raise InputError("has five fields; Kubeflow Pipelines takes six.", where=f"cron {text!r}", hint=hint)
        if len(parts) != 6:
            hint = "second minute hour day-of-month month day-of-week, e.g. '0 0 2 * * 1' for Mondays at 02:00 UTC."
            raise InputError(f"has {len(parts)} fields, not six.", where=f"cron {text!r}", hint=hint)
        fields = tuple(_values(part, field, text) for part, field in zip(parts, _FIELDS, strict=True))
        if len(fields[0]) > 1:
            hint = "Give one second, e.g. 0 as the first field."
            raise InputError("fires several times a minute.", where=f"cron {text!r}", hint=hint)
        cron = cls(" ".join(parts), fields)
        if (cron._starred(3) or cron._starred(5)) and not (cron._full(3) or cron._full(5)):
            hint = "Readers of cron do not agree whether both must fit: list the days, e.g. 1,11,21 for */10."
            raise InputError("restricts both days, one of them by a star.", where=f"cron {text!r}", hint=hint)
        if next(cron.times(datetime.now(UTC)), None) is None:
            raise InputError("never fires: no month has that day.", where=f"cron {text!r}")
        return cron

    def in_words(self) -> str:
        """What it means, e.g. `at 02:00:00 UTC on Monday`."""
        seconds, minutes, hours, days, months, weekdays = self.fields
        second = f"{min(seconds):02d}"
        if len(minutes) == 1 and len(hours) <= 4:
            clock = "at " + _listed([f"{hour:02d}:{min(minutes):02d}:{second}" for hour in sorted(hours)]) + " UTC"
        else:
            every_hour = "every hour" if len(hours) == 24 else f"hour {_ranges(hours)} UTC"
            every_minute = "every minute" if len(minutes) == 60 else f"minute {_ranges(minutes)}"
            clock = f"at second {int(second)} of {every_minute} of {every_hour}"
        on = []
        if not self._full(3):
            on.append(f"day {_ranges(days)} of the month")
        if not self._full(5):
            on.append(_listed([_DAYS[day].capitalize() for day in sorted(weekdays)]))
        whichever = self._either_day() and len(on) < 2
        day = "every day" if not on or whichever else "on " + " or ".join(on)
        month = "" if len(months) == 12 else " in " + _listed([_MONTHS[one - 1].capitalize() for one in sorted(months)])
        return f"{clock}, {day}{month}"

    def times(self, after: datetime) -> Iterator[datetime]:
        """The times at which it fires after a moment, for eight years on (29 February may be that far)."""
        seconds, minutes, hours, _, months, _ = (sorted(field) for field in self.fields)
        day = after.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        for _ in range(8 * 366):
            if day.month in months and self._fires_on(day):
                for hour in hours:
                    for minute in minutes:
                        moment = day.replace(hour=hour, minute=minute, second=seconds[0])
                        if moment > after:
                            yield moment
            day += timedelta(days=1)

    def _fires_on(self, day: datetime) -> bool:
        of_month, of_week = day.day in self.fields[3], (day.weekday() + 1) % 7 in self.fields[5]
        return of_month or of_week if self._either_day() else of_month and of_week

    def _either_day(self) -> bool:
        """Whether either day is enough: where neither field has a star."""
        return not (self._starred(3) or self._starred(5))

    def _starred(self, field: int) -> bool:
        return any(piece[0] in "*?" for piece in self.text.split()[field].split(","))

    def _full(self, field: int) -> bool:
        return len(self.fields[field]) == _FIELDS[field].high - _FIELDS[field].low + 1


def _values(part: str, field: _Field, text: str) -> frozenset[int]:
    found: set[int] = set()
    for piece in part.split(","):
        body, slash, step_text = piece.partition("/")
        step = int(step_text) if step_text.isdecimal() else 0
        if slash and step < 1:
            raise _wrong(piece, field, text)
        if body in ("*", "?"):
            low, high = field.low, field.high
        else:
            first, dash, last = body.partition("-")
            low = _number(first, piece, field, text)
            high = _number(last, piece, field, text) if dash else (field.high if slash else low)
        if low > high:
            raise _wrong(piece, field, text)
        found |= set(range(low, high + 1, step or 1))
    return frozenset(found)


def _number(word: str, piece: str, field: _Field, text: str) -> int:
    if word.lower() in field.names:
        return field.names.index(word.lower()) + field.low
    if not word.isdecimal() or not field.low <= int(word) <= field.high:
        raise _wrong(piece, field, text)
    return int(word)


def _wrong(piece: str, field: _Field, text: str) -> InputError:
    hint = f"Values from {field.low} to {field.high}, lists 1,2, ranges 1-5, steps */5."
    return InputError(f"{piece!r} is no {field.name}.", where=f"cron {text!r}", hint=hint)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _ranges(values: frozenset[int]) -> str:
    """`0, 15, 30` or `1-5`."""
    ordered = sorted(values)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}-{ordered[-1]}"
    return _listed([str(value) for value in ordered])
