"""The stage from files to a dataset artifact, and what it leaves behind when it must stop."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_validation import make_pair, make_prompt, make_sft, read_rows_of, save_tokenizer, words, write_rows

from components.data_validation import stage
from components.data_validation.stage import check_preferences, run
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.files import write_json
from components.shared.locations import data_digest, recorded_digest
from components.shared.records import PreferenceRecord, PromptRecord, SFTRecord, group_key, read_records

SETTINGS = {"max_prompt_tokens": 40, "max_response_tokens": 20}


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("model"))


def _run(tmp_path: Path, base_model: str, *, name: str = "out", **overrides: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"output": str(tmp_path / name), "base_model": base_model, "settings": SETTINGS}
    return run(**{**options, **overrides})


def _sft_file(tmp_path: Path, rows: list[Any] | None = None) -> str:
    return write_rows(tmp_path / "sft.jsonl", rows or [make_sft(n) for n in range(120)])


def _prompt_file(tmp_path: Path, rows: list[Any] | None = None) -> str:
    return write_rows(tmp_path / "prompts.jsonl", rows or [make_prompt(n) for n in range(120)])


def test_data_that_is_not_what_the_first_step_recorded_is_refused(tmp_path: Path, base_model: str) -> None:
    given = {"sft_data": _sft_file(tmp_path), "prompt_data": _prompt_file(tmp_path)}
    seen = recorded_digest([data_digest(uri) for uri in given.values()], "model")
    recorded = {"data_digest": seen, "base_model_digest": "model"}
    _run(tmp_path, base_model, **given, **recorded)
    _sft_file(tmp_path, [make_sft(n) for n in range(1, 121)])
    with pytest.raises(InputError, match=r"sft\.jsonl.*not what the run's first step"):
        _run(tmp_path, base_model, name="again", **given, **recorded)
    assert not (tmp_path / "again").exists()


def test_pairs_that_lie_elsewhere_are_compared_and_copies_are_not(
    tmp_path: Path, base_model: str, bucket: str, bucket_client: Any
) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", [make_pair(n) for n in range(150)])
    bucket_client.upload_file(pairs, bucket, "pairs.jsonl")
    address = f"s3://{bucket}/pairs.jsonl"
    with write_artifact(tmp_path / "remote", "pairs", stage="collection") as draft:
        write_json(draft.path / "user" / "source.json", {"uri": address})
    with write_artifact(tmp_path / "copied", "pairs", stage="collection") as draft:
        (draft.path / "user").mkdir()
        shutil.copy(pairs, draft.path / "user")
    recorded = {"data_digest": recorded_digest([data_digest(address)], "model"), "base_model_digest": "model"}
    for name in ("remote", "copied"):
        _run(tmp_path, base_model, name=f"{name}-out", preferences=str(tmp_path / name), **recorded)
    bucket_client.upload_file(
        write_rows(tmp_path / "pairs.jsonl", [make_pair(n) for n in range(1, 151)]), bucket, "pairs.jsonl"
    )
    with pytest.raises(InputError, match="not what the run's first step"):
        _run(tmp_path, base_model, name="later", preferences=str(tmp_path / "remote"), **recorded)


def test_both_tasks_write_their_part_of_the_dataset(tmp_path: Path, base_model: str) -> None:
    first = _run(tmp_path, base_model, sft_data=_sft_file(tmp_path), prompt_data=_prompt_file(tmp_path))
    pairs = write_rows(tmp_path / "pairs.jsonl", [make_pair(n) for n in range(150)])
    second = _run(tmp_path, base_model, name="pairs_out", preferences=pairs, prompts_dataset=str(tmp_path / "out"))
    dataset = read_artifact(tmp_path / "out", "dataset")
    assert first["digest"] == dataset.digest
    sft = list(read_records(dataset.file("sft/train.jsonl"), SFTRecord))
    held_out = [
        record
        for split in ("human_eval", "fresh", "heldout")
        for record in read_records(dataset.file(f"prompts/{split}.jsonl"), PromptRecord)
    ]
    assert first["rows_sft_train"] == len(sft)
    assert not {group_key(r) for r in sft} & {group_key(r) for r in held_out}
    judged = read_artifact(tmp_path / "pairs_out", "dataset")
    assert judged.manifest["inputs"] == {"prompts_dataset": dataset.digest}
    splits = {
        name: {group_key(r) for r in read_records(judged.file(f"preferences/{name}.jsonl"), PreferenceRecord)}
        for name in ("train", "heldout", "divergence")
    }
    assert not splits["train"] & splits["divergence"]
    assert not (splits["train"] | splits["divergence"]) & ({group_key(r) for r in held_out} | splits["heldout"])
    assert second["rows"] == 150
    assert json.loads(judged.file("report.json").read_text())["held_back"]["preferences"]


def test_bad_rows_are_quarantined_with_file_line_and_reasons_and_the_rest_goes_on(
    tmp_path: Path, base_model: str
) -> None:
    rows: list[Any] = [make_prompt(n) for n in range(100)]
    rows[3] = make_prompt(3, prompt="\u200b ", slice="bad\nname")
    rows[5] = {"text": "no prompt"}
    rows[7] = make_prompt(6)
    file = _prompt_file(tmp_path, rows)
    with open(file, "a", encoding="utf-8") as handle:
        handle.write('{"prompt": "mail me at jane@mail.example",\n')
    result = _run(tmp_path, base_model, prompt_data=file)
    quarantine = {row["line"]: row for row in read_rows_of(tmp_path / "out" / "quarantine.jsonl")}
    assert {line: row["reasons"] for line, row in quarantine.items()} == {
        4: ["malformed_slice", "blank_prompt"],
        6: ["wrong_columns"],
        8: ["duplicate"],
        101: ["unreadable_row"],
    }
    assert quarantine[6]["row"] == {"text": "no prompt"}
    assert quarantine[6]["file"] == file
    assert "jane@" not in json.dumps(quarantine)
    kept = sum(result[f"rows_prompts_{split}"] for split in ("train", "human_eval", "fresh", "heldout"))
    assert (result["rows"], result["quarantined"], kept) == (101, 4, 97)


def test_past_the_error_budget_the_run_stops_and_says_where_the_evidence_is(tmp_path: Path, base_model: str) -> None:
    rows = [make_sft(n) for n in range(80)] + [make_sft(n, completion=" ") for n in range(80, 100)]
    for _ in range(2):  # a second attempt replaces the first one's evidence
        with pytest.raises(InputError) as error:
            _run(tmp_path, base_model, sft_data=_sft_file(tmp_path, rows))
    rejected = tmp_path / "out.rejected"
    for part in ("20 of 100 rows (20.0%)", "5.0%", "blank_completion 20", str(rejected / "quarantine.jsonl")):
        assert part in str(error.value)
    assert len(read_rows_of(rejected / "quarantine.jsonl")) == 20
    assert json.loads((rejected / "report.json").read_text())["passed"] is False
    assert "FAILED" in (rejected / "report.html").read_text()
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def _bad_pairs(**overrides: Any) -> list[Any]:
    return [make_pair(n, **overrides) for n in range(60)]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            [make_pair(n, chosen="same", rejected="same ") for n in range(60)],
            {},
            r"60 of 60 rows.*chosen_equals_rejected",
        ),
        (_bad_pairs(), {"min_rows": 100}, "60 good rows are left of 60, fewer than 100"),
        (_bad_pairs(), {"required_slices": ["rare"]}, "slice 'rare' has 0 good rows, fewer than 10"),
        ([make_pair(1) for _ in range(60)], {}, r"59 of 60 rows.*repeat another.*max_duplicate_share"),
        (
            [make_pair(n, chosen=words(n, 9), rejected=words(n, 2)) for n in range(60)],
            {},
            r"the longer answer is preferred in 100\.0% of 60 pairs.*nothing but length",
        ),
        (
            [make_pair(n % 30, chosen=f"a {n % 30}", rejected=f"b {n % 30}") for n in range(30)]
            + [make_pair(n % 30, chosen=f"b {n % 30}", rejected=f"a {n % 30}") for n in range(30)],
            {},
            "contradictory 60",
        ),
        (
            _bad_pairs(),
            {"splits": {"preference_heldout": 1e-9}},
            r"preferences/heldout is empty.*splits.preference_heldout",
        ),
    ],
)
def test_data_that_must_not_be_trained_on_stops_the_run(
    tmp_path: Path, base_model: str, rows: list[Any], settings: dict[str, Any], message: str
) -> None:
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(InputError, match=message):
        _run(tmp_path, base_model, preferences=file, settings=SETTINGS | settings)
    assert (tmp_path / "out.rejected" / "report.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no data was given"),
        ({"sft_data": "{tmp}/missing.jsonl"}, r"missing\.jsonl: no such file"),
        ({"sft_data": "{tmp}/wrong.jsonl"}, r"wrong\.jsonl, row 1: no known columns for sft; found: answer, question"),
        ({"sft_data": "{tmp}/text.jsonl"}, r"text\.jsonl, line 1: is not JSON lines"),
        ({"prompt_data": "{tmp}/ok.jsonl", "settings": {"max_promt_tokens": 3}}, "max_promt_tokens: unknown setting"),
        ({"prompt_data": "{tmp}/ok.jsonl", "settings": {"splits": {"fresh": 0.9}}}, "nothing is left to train on"),
        ({"prompt_data": "{tmp}/ok.jsonl", "base_model": "{tmp}/nowhere"}, "no such model folder"),
        ({"preferences": "{tmp}/ok.jsonl", "prompts_dataset": "{tmp}"}, "not a finished artifact"),
    ],
)
def test_what_cannot_be_used_at_all_is_an_error_and_nothing_is_written(
    tmp_path: Path, base_model: str, options: dict[str, Any], message: str
) -> None:
    write_rows(tmp_path / "wrong.jsonl", [{"question": "q", "answer": "a"}])
    (tmp_path / "text.jsonl").write_text("hello\n")
    write_rows(tmp_path / "ok.jsonl", [make_prompt(1)])
    before = sorted(tmp_path.iterdir())
    filled = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises((InputError, ArtifactError), match=message):
        _run(tmp_path, **({"base_model": base_model} | filled))
    assert sorted(tmp_path.iterdir()) == before


def test_a_pairs_artifact_is_validated_and_named_as_input(tmp_path: Path, base_model: str) -> None:
    with write_artifact(tmp_path / "pairs", "pairs", stage="test") as draft:
        write_rows(draft.path / "pairs.jsonl", [make_pair(n, source="simulated", rater="r1") for n in range(60)])
        write_rows(draft.path / "provenance.jsonl", [{"x": 1}])
    digest = read_artifact(tmp_path / "pairs", "pairs").digest
    result = _run(tmp_path, base_model, preferences=str(tmp_path / "pairs"))
    assert result["rows"] == 60
    dataset = read_artifact(tmp_path / "out", "dataset")
    assert dataset.manifest["inputs"] == {"pairs": digest}
    assert {r.source for r in read_records(dataset.file("preferences/train.jsonl"), PreferenceRecord)} == {"simulated"}


def test_equal_pairs_of_another_run_make_an_equal_dataset_and_bad_rows_are_named_by_the_users_file(
    tmp_path: Path, base_model: str
) -> None:
    """What later steps are cached by must not hold the folder of a run; nor does it tell a user anything."""
    digests = []
    rows = [make_pair(n) for n in range(60)]
    rows[3] = make_pair(3, chosen=" ")
    for folder in ("one", "two"):
        with write_artifact(tmp_path / folder / "pairs", "pairs", stage="collection") as draft:
            (draft.path / "user").mkdir()
            write_rows(draft.path / "user" / "labels.jsonl", rows)
        digests.append(
            _run(tmp_path, base_model, name=f"{folder}_out", preferences=str(tmp_path / folder / "pairs"))["digest"]
        )
    assert digests[0] == digests[1]
    report = (tmp_path / "one_out" / "report.json").read_text()
    assert str(tmp_path) not in report
    (bad,) = read_rows_of(tmp_path / "one_out" / "quarantine.jsonl")
    assert (bad["file"], bad["line"]) == ("collected pairs: labels.jsonl", 4)


def test_equal_data_makes_an_equal_dataset_wherever_its_rows_stand(tmp_path: Path, base_model: str) -> None:
    file = _prompt_file(tmp_path)
    first = _run(tmp_path, base_model, name="a", prompt_data=file)
    second = _run(tmp_path, base_model, name="b", prompt_data=file)
    assert first["digest"] == second["digest"]


def test_secrets_are_redacted_before_they_are_stored(tmp_path: Path, base_model: str) -> None:
    rows = [make_sft(n) for n in range(60)]
    rows[4] = make_sft(4, completion="write to jane@mail.example now", annotator="joe@mail.example")
    _run(tmp_path, base_model, sft_data=_sft_file(tmp_path, rows))
    stored = "".join(file.read_text() for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert "@mail.example" not in stored
    assert "write to [REDACTED:email] now" in stored
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["parts"]["sft"]["redactions"] == {"email": 2}


def test_near_duplicates_are_reported_or_quarantined(tmp_path: Path, base_model: str) -> None:
    rows = [make_prompt(n, prompt=words(n, 30)) for n in range(60)]
    rows[9] = make_prompt(9, prompt=rows[8]["prompt"] + " and more")
    file = _prompt_file(tmp_path, rows)
    for action, quarantined in (("report", 0), ("quarantine", 1), ("off", 0)):
        settings = {**SETTINGS, "near_duplicates": {"action": action}}
        result = _run(tmp_path, base_model, name=action, prompt_data=file, settings=settings)
        report = json.loads((tmp_path / action / "report.json").read_text())
        assert (result["quarantined"], report["parts"]["prompts"]["near_duplicates"]) == (quarantined, action != "off")


def test_the_report_counts_add_up_and_the_page_escapes_what_rows_say(tmp_path: Path, base_model: str) -> None:
    rows = [make_sft(n) for n in range(100)]
    rows[0] = make_sft(0, completion="", prompt="<script>alert(1)</script>")
    rows[1] = make_sft(1, slice="rare")
    rows[2] = {"<img src=x onerror=alert(1)>": 1}
    _run(tmp_path, base_model, sft_data=_sft_file(tmp_path, rows))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    part = report["parts"]["sft"]
    assert part["rows"] == part["accepted"] + part["quarantined"] == 100
    assert part["reasons"] == {"blank_completion": 1, "wrong_columns": 1}
    assert sum(n for counts in part["slices"].values() for n in counts.values()) == part["accepted"]
    assert sum(part["lengths"]["completion"]["histogram"]["counts"]) == part["accepted"]
    assert sum(report["splits"].values()) == part["accepted"]
    assert {e["check"] for e in part["expectations"] if not e["passed"]} == {"blank_completion"}
    assert "sft: slice 'rare' has only 1 rows" in report["warnings"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;img src=x" in page
    assert page.count("<svg") >= 3


def test_the_stage_needs_no_training_library(tmp_path: Path, base_model: str) -> None:
    """Its image has none."""
    options = {
        "output": str(tmp_path / "out"),
        "base_model": base_model,
        "settings": SETTINGS,
        "prompt_data": _prompt_file(tmp_path),
    }
    code = (
        "import importlib.machinery as machinery\n"
        "find = machinery.PathFinder.find_spec\n"
        "absent = {'torch', 'trl', 'peft', 'accelerate', 'datasets'}\n"
        "machinery.PathFinder.find_spec = lambda name, *rest: None if name in absent else find(name, *rest)\n"
        f"from components.data_validation.stage import run; print(run(**{options!r})['rows'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()[-3:]) == (0, "120"), done.stderr


def test_data_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, base_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = stage.validate

    def validate(uri: str, *rest: Any, **more: Any) -> Any:
        part = judge(uri, *rest, **more)
        write_rows(Path(uri), [make_sft(n) for n in range(7)])
        return part

    monkeypatch.setattr(stage, "validate", validate)
    with pytest.raises(InputError, match=r"sft\.jsonl: the data changed while it was read"):
        _run(tmp_path, base_model, sft_data=_sft_file(tmp_path))
    assert not (tmp_path / "out").exists()


def _check(tmp_path: Path, base_model: str, pairs: str, **overrides: Any) -> int:
    options: dict[str, Any] = {"report": str(tmp_path / "report"), "dataset": str(tmp_path / "out")}
    options |= {"base_model": base_model, "settings": SETTINGS, "source": "dataset", "preference_data": pairs}
    return check_preferences(**{**options, **overrides})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not json at all\n", "is not JSON lines"),
        ("", "holds no rows"),
        (json.dumps({"question": "q", "answer": "a"}) + "\n", "pairs.jsonl"),
    ],
)
def test_a_broken_file_of_pairs_is_found_before_anything_is_trained(
    tmp_path: Path, base_model: str, content: str, said: str
) -> None:
    _run(tmp_path, base_model, sft_data=_sft_file(tmp_path), prompt_data=_prompt_file(tmp_path))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(content)
    with pytest.raises(InputError, match=said):
        _check(tmp_path, base_model, str(pairs))
    assert _check(tmp_path, base_model, str(pairs), source="raters") == 0, "this run collects its own"
    write_rows(pairs, [make_pair(n) for n in range(150)])
    (tmp_path / "report").unlink()
    assert _check(tmp_path, base_model, str(pairs)) == 150
    assert "PASSED" in (tmp_path / "report").read_text()
