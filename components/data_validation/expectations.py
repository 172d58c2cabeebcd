"""Great Expectations suites: what every row of each kind of data must be.

The suites run over a frame with one line a row: the fields of its record, and measures of them (visible characters,
tokens). Great Expectations' own pages would show row values unescaped, so its results are asked for without values: row
numbers only, which become the reasons of quarantine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.data_validation.formats import TEXT_FIELDS, Kind, Reason
from components.data_validation.settings import DataValidationSettings
from components.shared.errors import PlumblineError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RESULT_FORMAT", "ROW", "ExpectationResult", "build_suite", "run_expectations"]

ROW = "row"
"""Column with the number of a row's candidate."""

RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "unexpected_index_column_names": [ROW],
    "partial_unexpected_count": 0,
    "exclude_unexpected_values": True,
}
"""Row numbers of what failed, and no row value anywhere."""

_SLICE_NAME = r"^[\w][\w .:/-]{0,63}\Z"


@dataclass(frozen=True)
class ExpectationResult:
    """Outcome of one expectation.

    Attributes:
        check: Our short name for it: the reason in the quarantine.
        expectation: Great Expectations' name for it.
        column: The column that it looks at; None for the table.
        message: What a row that fails it is told.
        unexpected: Numbers of the rows that failed.
        passed: Whether none did.
    """

    check: str
    expectation: str
    column: str | None
    message: str
    unexpected: tuple[int, ...]
    passed: bool

    @property
    def reason(self) -> Reason:
        return Reason(self.check, self.message)


def run_expectations(frame: pd.DataFrame, kind: Kind, settings: DataValidationSettings) -> list[ExpectationResult]:
    """Runs the suite of a kind of data over every row.

    Args:
        frame: One line a row, with column `row`; missing values are None.
        kind: The kind of data.
        settings: The limits.

    Raises:
        PlumblineError: Great Expectations could not evaluate an expectation.
    """
    context = _context()
    suite = context.suites.add_or_update(build_suite(kind, settings))
    source = context.data_sources.add_pandas("rows")
    definition = source.add_dataframe_asset(kind).add_batch_definition_whole_dataframe("all rows")
    outcome = definition.get_batch({"dataframe": frame}).validate(suite, result_format=RESULT_FORMAT)  # pyright: ignore[reportArgumentType]
    return [_to_result(result) for result in outcome.results]


def build_suite(kind: Kind, settings: DataValidationSettings) -> Any:
    """The `ExpectationSuite` of a kind of data; each expectation's `meta` holds our name for it and its message."""
    gx = _great_expectations()
    texts = ("prompt", *TEXT_FIELDS[kind])
    expectations = [
        *_table_expectations(gx.expectations, kind, settings),
        *_identity_expectations(gx.expectations),
        *(expectation for text in texts for expectation in _text_expectations(gx.expectations, text, settings)),
    ]
    if kind == "preferences":
        expectations += _judgement_expectations(gx.expectations)
    return gx.ExpectationSuite(name=f"plumbline {kind}", expectations=expectations)


def _table_expectations(expect: Any, kind: Kind, settings: DataValidationSettings) -> list[Any]:
    """Enough rows (an empty table passes every expectation on a column), and every column there."""
    columns = ("id", "slice", "group_id", "prompt", *TEXT_FIELDS[kind])
    few = {"check": "too_few_rows", "message": f"fewer than {settings.min_rows} rows"}
    return [
        expect.ExpectTableRowCountToBeBetween(min_value=settings.min_rows, meta=few),
        *(
            expect.ExpectColumnToExist(column=column, meta={"check": "missing_column", "message": f"no {column}"})
            for column in columns
        ),
    ]


def _identity_expectations(expect: Any) -> list[Any]:
    return [
        _of_type(expect, "id", ["str"]),
        _of_type(expect, "slice", ["str"]),
        _of_type(expect, "group_id", ["str"]),
        expect.ExpectColumnValuesToMatchRegex(
            column="slice",
            regex=_SLICE_NAME,
            meta={
                "check": "malformed_slice",
                "message": "slice is not a name of letters, digits, space and _ . : / - (64 at most)",
            },
        ),
    ]


def _text_expectations(expect: Any, text: str, settings: DataValidationSettings) -> list[Any]:
    """A text is there, is text, is not blank, and is not too long."""
    limit = settings.max_prompt_tokens if text == "prompt" else settings.max_response_tokens
    return [
        expect.ExpectColumnValuesToNotBeNull(
            column=text, meta={"check": f"missing_{text}", "message": f"{text} is missing"}
        ),
        _of_type(expect, text, ["str"]),
        expect.ExpectColumnValuesToBeBetween(
            column=f"{text}_visible",
            min_value=1,
            meta={"check": f"blank_{text}", "message": f"{text} has no visible character"},
        ),
        expect.ExpectColumnValuesToBeBetween(
            column=f"{text}_tokens",
            max_value=limit,
            meta={"check": f"overlong_{text}", "message": f"{text} is longer than {limit} tokens"},
        ),
    ]


def _judgement_expectations(expect: Any) -> list[Any]:
    return [
        _of_type(expect, "rater", ["str"]),
        _of_type(expect, "rationale", ["str"]),
        _of_type(expect, "strength", ["int", "float"]),
        expect.ExpectColumnValuesToBeBetween(
            column="strength_value",
            min_value=0.0,
            max_value=1.0,
            meta={"check": "strength_out_of_range", "message": "strength is not between 0 and 1"},
        ),
        expect.ExpectColumnValuesToBeInSet(
            column="source",
            value_set=["human", "ai", "simulated"],
            meta={"check": "unknown_source", "message": "source is not human, ai or simulated"},
        ),
        _of_type(expect, "chosen_finished", ["bool"]),
        _of_type(expect, "rejected_finished", ["bool"]),
    ]


def _of_type(expect: Any, column: str, types: Sequence[str]) -> Any:
    return expect.ExpectColumnValuesToBeInTypeList(
        column=column,
        type_list=list(types),
        meta={"check": f"{column}_of_wrong_type", "message": f"{column} is not of type {' or '.join(types)}"},
    )


def _to_result(result: Any) -> ExpectationResult:
    config = result.expectation_config
    check, message = config.meta["check"], config.meta["message"]
    if _raised(result.exception_info):
        raise PlumblineError(
            f"Great Expectations could not evaluate {config.type}: {_raised(result.exception_info)}", where=check
        )
    indices = result.result.get("unexpected_index_list") or []
    rows = tuple(sorted({int(row) for entry in indices for row in entry[ROW]}))
    return ExpectationResult(check, config.type, config.kwargs.get("column"), message, rows, bool(result.success))


def _raised(info: Any) -> str | None:
    """The message of an exception inside an expectation: told in one of two shapes, or absent."""
    if not info:
        return None
    entries = [info] if "raised_exception" in info else list(info.values())
    return next((str(entry.get("exception_message")) for entry in entries if entry.get("raised_exception", True)), None)


def _great_expectations() -> Any:
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations

    return great_expectations


def _context() -> Any:
    gx = _great_expectations()
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger(ProgressBarsConfig.__module__).setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context
