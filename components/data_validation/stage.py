"""Data validation: every row of the user's data judged, the bad ones set aside with their reasons, the rest split.

    read > recognise > redact > measure > expectations and checks > split > judge > dataset artifact + report

One component, two tasks: the first validates demonstrations and prompts, the second the preference pairs that
collection yields, against the held-out prompts of the first. Pairs that the user gives are judged before that too,
so that a faulty file does not wait for a GPU (`check_preferences`). A run that must stop leaves its quarantine and
report in `<output>.rejected/` and says why.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.data_validation.assignment import Assignment, assign, load_frozen
from components.data_validation.formats import Kind
from components.data_validation.judgement import judge
from components.data_validation.report import build_report, render_report
from components.data_validation.settings import DataValidationSettings
from components.data_validation.validation import Part, quarantine_rows, validate
from components.shared import locations
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.errors import InputError
from components.shared.files import write_json, write_jsonl, write_text
from components.shared.records import write_records
from components.shared.settings import parse_settings
from components.shared.tokenizers import prepare_tokenizer
from components.shared.tracking import stage_run

if TYPE_CHECKING:
    from components.shared.tracking import StageRun

__all__ = ["check_preferences", "run"]

logger = logging.getLogger(__name__)

_COLLECTED = "collected pairs"
"""What collected pairs are called: their folder is another in every run, and the data set is not."""


def run(
    *,
    output: str,
    base_model: str,
    settings: dict[str, Any],
    sft_data: str = "",
    prompt_data: str = "",
    preferences: str = "",
    prompts_dataset: str = "",
    data_digest: str = "",
    base_model_digest: str = "",
    name: str = "",
) -> dict[str, Any]:
    """Writes a `dataset` artifact.

    Args:
        output: Where the artifact shall be.
        base_model: Folder or hub id of the model whose tokenizer counts tokens.
        settings: A `DataValidationSettings` as a dict.
        sft_data: Address of demonstrations; empty: none.
        prompt_data: Address of prompts; empty: none.
        preferences: Address of preference pairs, or folder of a `pairs` artifact; empty: none.
        prompts_dataset: Folder of an earlier `dataset` artifact. Its held-out prompts train nothing, and its
            human-evaluation prompts stay as they are.
        data_digest: Digest of the data, as the first step of the run recorded it; noted in the manifest.
        base_model_digest: Digest of the base model, recorded with it. Empty: the data is not compared.
        name: Of the step; by default after what is validated.

    Returns:
        Digest, rows by split, and rows quarantined, for the pipeline's metadata.

    Raises:
        InputError: No data, data that cannot be read, is not what was recorded or changes meanwhile, or data that must
            not be trained on: too many faults, too few rows, a missing slice, an empty split, leakage.
        ArtifactError: An input artifact that is not whole.
    """
    parsed = parse_settings(settings, DataValidationSettings, where="data_validation")
    addresses: dict[Kind, str] = {"sft": sft_data, "prompts": prompt_data, "preferences": preferences}
    addresses = {kind: uri for kind, uri in addresses.items() if uri}
    if not addresses:
        raise InputError(
            "no data was given.", where="data_validation", hint="Give sft_data, prompt_data or preferences."
        )
    name = name or ("data_validation_pairs" if set(addresses) == {"preferences"} else "data_validation")
    with stage_run(name, settings=parsed.model_dump(mode="json")) as tracked:
        if (compared := _recorded(addresses)) is not None:
            locations.require_as_recorded(compared, data_digest, base_model_digest)
        earlier, inputs = _inputs(preferences, prompts_dataset)
        tokenizer = prepare_tokenizer(base_model)
        before = {uri: locations.data_digest(uri) for uri in addresses.values() if not uri.startswith("hf://")}
        names = {"preferences": _COLLECTED} if "pairs" in inputs else {}
        parts = [validate(uri, kind, tokenizer, parsed, name=names.get(kind)) for kind, uri in addresses.items()]
        _require_unchanged(before)
        assignment = assign(parts, parsed.splits, earlier)
        judgement = judge(parts, assignment, parsed)
        summary = build_report(parts, assignment, judgement, parsed, base_model=base_model, data_digest=data_digest)
        if judgement.problems:
            _reject(Path(f"{output}.rejected"), parts, summary, tracked)
        for warning in judgement.warnings:
            logger.warning("%s", warning)
        with write_artifact(
            output, "dataset", inputs=inputs, settings=parsed.model_dump(mode="json"), stage="data_validation"
        ) as draft:
            _write_splits(draft.path, assignment)
            _write_findings(draft.path, parts, summary)
            draft.metadata.update({"data_digest": data_digest, "base_model": base_model})
        tracked.log_metrics(_counts(parts, assignment))
        tracked.log_artifact(Path(output) / "report.html")
    return {"digest": read_artifact(output, "dataset").digest, **_counts(parts, assignment)}


def check_preferences(
    *,
    report: str,
    dataset: str,
    base_model: str,
    settings: dict[str, Any],
    source: str,
    preference_data: str,
    data_digest: str = "",
    base_model_digest: str = "",
) -> int:
    """Judges the user's preference pairs by all that `run` will judge them by when collection has passed them on.

    Args:
        report: Where the data report goes; of data that is rejected, `<report>.rejected/` holds it and the quarantine.
        dataset: Folder of the validated demonstrations and prompts.
        base_model: As for `run`.
        settings: As for `run`.
        source: Where the run's pairs come from; only those of source `dataset` are there to be judged.
        preference_data: Address of the pairs.
        data_digest: As for `run`.
        base_model_digest: As for `run`.

    Returns:
        How many rows were judged.

    Raises:
        InputError: As for `run`.
    """
    if source != "dataset" or not preference_data:
        write_text(Path(report), "<!DOCTYPE html><title>Preferences</title><p>This run collects its pairs itself.</p>")
        return 0
    found = run(
        output=report,
        base_model=base_model,
        settings=settings,
        preferences=preference_data,
        prompts_dataset=dataset,
        data_digest=data_digest,
        base_model_digest=base_model_digest,
        name="preference_check",
    )
    page = (Path(report) / "report.html").read_text(encoding="utf-8")
    shutil.rmtree(report)  # what trains is judged when it is there
    write_text(Path(report), page)
    return found["rows"]


def _recorded(addresses: Mapping[Kind, str]) -> list[str] | None:
    """The addresses whose digests were recorded together; None of pairs that collection copied, or sampled itself."""
    if "preferences" not in addresses:
        return [addresses.get("sft", ""), addresses.get("prompts", "")]
    address = locations.origin(addresses["preferences"])
    return [address] if address else None


def _require_unchanged(before: Mapping[str, str]) -> None:
    for uri, digest in before.items():
        if locations.data_digest(uri) != digest:
            raise InputError(
                "the data changed while it was read.",
                where=uri,
                hint="Let nothing write there during a run; start again.",
            )


def _inputs(preferences: str, prompts_dataset: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The earlier data set's held-out prompts, and the digests of the input artifacts."""
    inputs: dict[str, str] = {}
    if preferences and "://" not in preferences and (Path(preferences) / "manifest.json").is_file():
        inputs["pairs"] = read_artifact(preferences, "pairs").digest
    if not prompts_dataset:
        return {}, inputs
    earlier, inputs["prompts_dataset"] = load_frozen(prompts_dataset)
    return earlier, inputs


def _write_splits(folder: Path, assignment: Assignment) -> None:
    for name, records in assignment.splits.items():
        write_records(folder / f"{name}.jsonl", records)


def _write_findings(folder: Path, parts: Sequence[Part], summary: dict[str, Any]) -> None:
    write_jsonl(folder / "quarantine.jsonl", (row for part in parts for row in quarantine_rows(part)))
    write_json(folder / "report.json", summary)
    write_text(folder / "report.html", render_report(summary, parts))


def _reject(folder: Path, parts: Sequence[Part], summary: dict[str, Any], tracked: StageRun) -> None:
    """Leaves quarantine and report beside the output that will not be, and stops the run."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    _write_findings(folder, parts, summary)
    tracked.log_artifact(folder / "report.html")
    raise InputError(
        "the data was rejected: " + "; ".join(summary["problems"]) + ".",
        where=", ".join(part.uri for part in parts),
        hint=f"Every bad row with its reasons is in {folder / 'quarantine.jsonl'}, the report in "
        f"{folder / 'report.html'}; mend the data or change the settings of data_validation.",
    )


def _counts(parts: Sequence[Part], assignment: Assignment) -> dict[str, int]:
    counts = {f"rows_{name.replace('/', '_')}": len(records) for name, records in assignment.splits.items()}
    return {
        **counts,
        "rows": sum(len(p.candidates) for p in parts),
        "quarantined": sum(len(p.quarantined) for p in parts),
    }
