"""Batches for other labelling tools, and their labels back: Label Studio and Argilla.

An export is as blind as our own pages: which model wrote what is not in it, gold items look like all others, and which
answer stands first is drawn for each item. Labels that come back go through the same desk as those of our pages: never
more votes than asked for, annotators become pseudonyms, a closed batch takes nothing. Every label that is refused is
named with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, get_args

from pydantic import ValidationError

from components.human_eval.answers import DIMENSIONS, FLAGS, Choice, RaterAnswer
from components.human_eval.batch import Batch, Item
from components.human_eval.desk import RatingDesk
from components.human_eval.imports import record_import
from components.human_eval.rating import RaterKind
from components.human_eval.turns import make_plan, shown_swapped
from components.shared.errors import InputError, PlumblineError
from components.shared.records import prompt_text

__all__ = ["LABEL_STUDIO_CONFIG", "Format", "ImportReport", "export_batch", "import_labels"]

Format = Literal["label-studio", "argilla"]

_TOOL = "labelling tool"
"""For whom the position of an exported item is drawn."""

_CHOICES = get_args(Choice)
_RUBRIC = ("a", "tie", "b")


@dataclass
class ImportReport:
    """What became of the labels.

    Attributes:
        stored: Labels that were new.
        known: Labels that were there already.
        refused: A line for each label that was not taken: where, and why.
    """

    stored: int = 0
    known: int = 0
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Label:
    """One annotator's label of one item, as found in a file."""

    where: str
    item_id: str
    shown: tuple[str, str]
    login: str
    answer: dict[str, Any]


def export_batch(batch: Batch, tool: Format) -> list[dict[str, Any]]:
    """The items of a batch as the tasks of a tool.

    Args:
        batch: The batch.
        tool: Whose format.
    """
    plan = make_plan(batch.batch_id, batch.settings, batch.items)
    items = {item.item_id: item for item in batch.items}
    wanted = sorted([*plan.pairs, *plan.gold])  # by id, which says nothing about the kind
    write = _label_studio_task if tool == "label-studio" else _argilla_record
    return [write(item_id, _shown(items[item_id])) for item_id in wanted]


def import_labels(
    desk: RatingDesk,
    batch_id: str,
    file: bytes,
    *,
    actor: str,
    source: str,
    rater_of: Callable[[str], tuple[str, RaterKind]],
) -> ImportReport:
    """Takes the labels of an export that was labelled; which tool it comes from is seen from its fields.

    Who imports it is recorded first: the annotators' names are what the file says, and nobody else vouches for them.

    Args:
        desk: Where they go.
        batch_id: The batch that was exported.
        file: The JSON file.
        actor: Who imports it.
        source: Its name, or by which way it came.
        rater_of: From an annotator's name in the tool to a pseudonym, and how such votes are marked.

    Raises:
        InputError: The file is no export of either tool, or no such batch.
    """
    batch = desk.database.batch(batch_id)
    items = {item.item_id: item for item in batch.items}
    labels = list(_read(_parse(file, source)))
    import_id = record_import(
        desk.database, batch_id, actor=actor, source=source, digest=sha256(file).hexdigest(), labels=len(labels)
    )
    report = ImportReport()
    for label in labels:
        try:
            rater, kind = rater_of(label.login)
            answer, swapped = _answer(items, label)
            stored = desk.take_label(
                batch_id, label.item_id, rater, answer, swapped=swapped, import_id=import_id, rater_kind=kind
            )
        except (PlumblineError, ValidationError) as error:
            report.refused.append(f"{label.where}: {_reason(error)}")
            continue
        report.stored += stored
        report.known += not stored
    return report


def _parse(file: bytes, source: str) -> Any:
    try:
        return json.loads(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON: {error}.", where=source) from error


def _answer(items: Mapping[str, Item], label: _Label) -> tuple[RaterAnswer, bool]:
    """The answer, and whether the tool showed the second one as A."""
    item = items.get(label.item_id)
    if item is None:
        raise InputError(f"the batch has no item {label.item_id!r}.")
    shown = _shown(item)
    if label.shown != (shown["answer_a"], shown["answer_b"]):
        raise InputError("the answers are not those that were exported.")
    return RaterAnswer.model_validate(label.answer), shown_swapped(item.item_id, _TOOL, "vote")


def _shown(item: Item) -> dict[str, str]:
    swapped = shown_swapped(item.item_id, _TOOL, "vote")
    a, b = (item.second, item.first) if swapped else (item.first, item.second)
    return {"prompt": prompt_text(item.record.prompt), "answer_a": a.response, "answer_b": b.response}


def _label_studio_task(item_id: str, shown: dict[str, str]) -> dict[str, Any]:
    return {"data": {"item_id": item_id, **shown}}


def _argilla_record(item_id: str, shown: dict[str, str]) -> dict[str, Any]:
    return {"id": item_id, "fields": shown, "metadata": {}, "suggestions": {}, "responses": {}}


def _read(content: Any) -> Iterator[_Label]:
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise InputError("is no list of tasks or records.", where="import", hint="Export as JSON, not as CSV or TSV.")
    for number, row in enumerate(content, start=1):
        try:
            yield from _labels_of(row, f"record {number}")
        except (AttributeError, TypeError) as error:  # a list where an object is wanted, or the like
            problem = f"is not built as either tool builds it: {error}."
            raise InputError(problem, where=f"record {number}", hint="Import the tool's own JSON export.") from error


def _labels_of(row: dict[str, Any], where: str) -> Iterator[_Label]:
    if isinstance(row.get("data"), dict):
        return _label_studio_labels(row, where)
    if isinstance(row.get("fields"), dict) and "responses" in row:
        return _argilla_labels(row, where)
    raise InputError(
        f"has neither Label Studio's nor Argilla's fields: {', '.join(sorted(row)) or 'none'}.",
        where=where,
        hint="Expected data and annotations, or fields and responses.",
    )


def _label_studio_labels(task: Mapping[str, Any], where: str) -> Iterator[_Label]:
    data = task["data"]
    for number, annotation in enumerate(task.get("annotations") or [], start=1):
        if annotation.get("was_cancelled"):
            continue
        values: dict[str, Any] = {}
        for result in annotation.get("result") or []:
            value = result.get("value") or {}
            values[result.get("from_name", "")] = value.get("choices") or value.get("text") or []
        place = f"{where}, annotation {number}"
        yield _label(place, data.get("item_id"), data, _annotator(annotation.get("completed_by")), values)


def _annotator(completed_by: Any) -> str:
    if isinstance(completed_by, Mapping):
        completed_by = completed_by.get("email") or completed_by.get("username") or completed_by.get("id")
    return "" if completed_by is None else str(completed_by)


def _argilla_labels(record: Mapping[str, Any], where: str) -> Iterator[_Label]:
    by_user: dict[str, dict[str, Any]] = {}
    for question, responses in (record["responses"] or {}).items():
        for response in responses or []:
            if response.get("status", "submitted") == "submitted":
                by_user.setdefault(str(response.get("user_id") or ""), {})[question] = response.get("value")
    for user, values in by_user.items():
        listed = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
        yield _label(f"{where}, user {user}", record.get("id"), record["fields"], user, listed)


def _label(where: str, item_id: Any, shown: Mapping[str, Any], login: str, values: Mapping[str, list[Any]]) -> _Label:
    def first(name: str) -> Any:
        return next(iter(values.get(name) or []), None)

    answer = {
        "choice": first("choice"),
        "flags_a": values.get("flags_a") or [],
        "flags_b": values.get("flags_b") or [],
        "rationale": first("rationale"),
        "rubric": {name: first(f"rubric_{name}") for name in DIMENSIONS if first(f"rubric_{name}")},
    }
    if not login:
        raise InputError("names no annotator.", where=where, hint="Export with the annotators' names or ids.")
    return _Label(where, str(item_id), (str(shown.get("answer_a")), str(shown.get("answer_b"))), login, answer)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        field_name = ".".join(str(part) for part in fault["loc"])
        return f"{field_name + ': ' if field_name else ''}{fault['msg'].removeprefix('Value error, ')}."
    return str(error)


def _choices(name: str, values: Iterable[str], *, many: bool = False, required: bool = False) -> str:
    kind = "multiple" if many else "single-radio"
    options = "".join(f'<Choice value="{value}"/>' for value in values)
    need = ' required="true"' if required else ""
    return f'  <Choices name="{name}" toName="pair" choice="{kind}" showInLine="true"{need}>{options}</Choices>\n'


LABEL_STUDIO_CONFIG = (
    "<View>\n"
    '  <Text name="prompt" value="$prompt"/>\n'
    '  <Text name="pair" value="$answer_a"/>\n'
    '  <Text name="answer_b" value="$answer_b"/>\n'
    + _choices("choice", _CHOICES, required=True)
    + _choices("flags_a", FLAGS, many=True)
    + _choices("flags_b", FLAGS, many=True)
    + "".join(_choices(f"rubric_{name}", _RUBRIC) for name in DIMENSIONS)
    + '  <TextArea name="rationale" toName="pair" rows="3"/>\n'
    "</View>\n"
)
"""The labelling interface that fits the exported tasks. In Argilla: a label question `choice` (a, b, tie, both_bad),
multi-label questions `flags_a` and `flags_b` (unsafe, severity_1), a text question `rationale`, and if wanted label
questions `rubric_<dimension>` (a, tie, b)."""
