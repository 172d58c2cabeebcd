"""Cron as KFP takes it: six fields, refused in words, explained in words."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice

import pytest

from components.shared.errors import InputError
from pipelines.cluster.cron import Cron

_SATURDAY = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "words", "following"),
    [
        ("0 0 2 * * 1", "at 02:00:00 UTC, on Monday", ["2026-11-23T02:00", "2026-11-30T02:00"]),
        ("0 30 4,16 * * *", "at 04:30:00 and 16:30:00 UTC, every day", ["2026-11-21T04:30", "2026-11-21T16:30"]),
        (
            "0 */15 * * * *",
            "at second 0 of minute 0, 15, 30 and 45 of every hour, every day",
            ["2026-11-21T00:15", "2026-11-21T00:30"],
        ),
        (
            "5 0 9-17 ? * MON-FRI",
            "at second 5 of minute 0 of hour 9-17 UTC, on Monday, Tuesday, Wednesday, Thursday and Friday",
            ["2026-11-23T09:00", "2026-11-23T10:00"],
        ),
        (
            "0 0 4 1,15 * 5",
            "at 04:00:00 UTC, on day 1 and 15 of the month or Friday",
            ["2026-11-27T04:00", "2026-12-01T04:00"],
        ),
        (
            "0 0 4 */10 * *",
            "at 04:00:00 UTC, on day 1, 11, 21 and 31 of the month",
            ["2026-11-21T04:00", "2026-12-01T04:00"],
        ),
        (
            "0 0 4 * * */3",
            "at 04:00:00 UTC, on Sunday, Wednesday and Saturday",
            ["2026-11-21T04:00", "2026-11-22T04:00"],
        ),
        ("0 0 4 1-31 * 5", "at 04:00:00 UTC, every day", ["2026-11-21T04:00", "2026-11-22T04:00"]),
        (
            "0 0 0 29 feb *",
            "at 00:00:00 UTC, on day 29 of the month in February",
            ["2028-02-29T00:00", "2032-02-29T00:00"],
        ),
    ],
)
def test_an_expression_is_put_in_words_and_says_when_it_fires(text: str, words: str, following: list[str]) -> None:
    cron = Cron.parse(text)
    assert cron.in_words() == words
    assert [moment.isoformat()[:16] for moment in islice(cron.times(_SATURDAY), 2)] == following


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 2 * * 1", "The first field is seconds: write '0 0 2 * * 1'"),
        ("* * * * * *", "several times a minute"),
        ("*/10 * * * * *", "several times a minute"),
        ("0 60 * * * *", "'60' is no minute"),
        ("0 0 24 * * *", "'24' is no hour"),
        ("0 0 0 0 * *", "'0' is no day of month"),
        ("0 0 0 * 13 *", "'13' is no month"),
        ("0 0 0 * * 7", "'7' is no day of week"),
        ("0 0 0 * * mun", "'mun' is no day of week"),
        ("0 5-1 0 * * *", "'5-1' is no minute"),
        ("0 */0 0 * * *", "is no minute"),
        ("0 0 0 30 2 *", "never fires"),
        ("0 0 4 */10 * 5", "restricts both days"),
        ("", "0 fields"),
        ("@daily", "1 fields"),
    ],
)
def test_what_is_no_schedule_is_refused_with_what_to_write(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        Cron.parse(text)
    assert said in str(caught.value)
