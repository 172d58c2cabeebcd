"""The first step finds what is missing, all of it at once, and pins what the run rests on."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from components.prerequisites.checks import (
    check_base_model,
    check_checkpoints,
    check_disk,
    check_gpu,
    check_ledger_anchor,
)
from components.prerequisites.stage import run
from components.shared.artifacts import write_artifact
from components.shared.errors import InputError, PlumblineError
from components.shared.hub_models import model_digest


@pytest.fixture
def services(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", f"sqlite:///{tmp_path / 'evidence.db'}")
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", str(tmp_path / "anchors"))
    monkeypatch.setenv("PLUMBLINE_CHECKPOINTS", str(tmp_path / "not" / "made" / "yet"))


def _make_inputs(tmp_path: Path, **overrides: Any) -> dict[str, Any]:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (model / name).write_text("{}")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "hello"}) + "\n")
    rows = str(tmp_path / "rows.jsonl")
    inputs = {
        "base_model": str(model),
        "data": {"sft": rows, "prompts": rows, "preferences": ""},
        "model_name": "assistant",
        "plug_ins": ["json:dumps"],
        "settings": {"min_free_disk_gib": 0},
    }
    return inputs | overrides


def test_digests_follow_the_content_behind_the_paths(services: None, tmp_path: Path) -> None:
    inputs = _make_inputs(tmp_path)
    before = run(**inputs)
    assert before["champion_version"] == ""
    assert run(**inputs) == before
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "changed"}) + "\n")
    after = run(**inputs)
    assert after["data_digest"] != before["data_digest"]
    assert after["base_model_digest"] == before["base_model_digest"]
    (tmp_path / "model" / "model.safetensors").write_text("other")
    assert run(**inputs)["base_model_digest"] != before["base_model_digest"]


def test_further_rewards_are_checked_and_pinned(
    services: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "users"))
    (tmp_path / "users").mkdir()
    rules = tmp_path / "users" / "pinned_rules.py"
    rules.write_text("def polite(prompts, responses):\n    return [0.0] * len(responses)\n")
    with write_artifact(tmp_path / "safety", "reward_model", stage="reward_model") as draft:
        (draft.path / "reward.json").write_text("{}")
    rewards = {"reward_rules": ["pinned_rules:polite"], "reward_models": [str(tmp_path / "safety")]}
    inputs = _make_inputs(tmp_path, **rewards)
    found = [run(**inputs)]
    rules.write_text(rules.read_text() + "# stricter\n")
    found.append(run(**inputs))
    with write_artifact(tmp_path / "safety", "reward_model", stage="reward_model") as draft:
        (draft.path / "reward.json").write_text('{"mean": 0.0}')
    found.append(run(**inputs))
    assert len({each["reward_digest"] for each in found}) == 3
    assert len({each["plug_in_digest"] for each in found}) == 1, "an edited rule must not ask the raters again"
    (tmp_path / "safety" / "reward.json").write_text('{"mean": 1.0}')
    rewards["reward_rules"].append("pinned_rules:absent")
    with pytest.raises(PlumblineError, match="2 prerequisites missing") as caught:
        run(**inputs | rewards)
    for said in ("has no 'absent'", "'reward.json' was altered"):
        assert said in str(caught.value)


def test_every_fault_is_told_at_once(services: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLUMBLINE_LEDGER_ANCHOR")
    data = {"sft": str(tmp_path / "absent.jsonl"), "prompts": str(tmp_path / "rows.jsonl"), "preferences": ""}
    inputs = _make_inputs(tmp_path, data=data, plug_ins=["no.such.module:raters"])
    with pytest.raises(PlumblineError, match="3 prerequisites missing") as caught:
        run(**inputs)
    first, *lines = str(caught.value).splitlines()
    assert first.strip() == "3 prerequisites missing:"
    remedies = {
        "no such sft file": "Check the path under `data`",
        "cannot import 'no.such.module'": "",
        "PLUMBLINE_LEDGER_ANCHOR": "Set it to a folder outside the evidence database",
    }
    for number, (line, (said, remedy)) in enumerate(zip(lines, remedies.items(), strict=True), start=1):
        assert line.startswith(f"  {number}. ")
        assert said in line
        assert remedy in line


_GOLD = {"id": "g", "prompt": "Is it safe?", "better": "No.", "worse": "Yes."}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "gold.jsonl"),
        ([_GOLD], "1 gold items, 2 needed: no vote could ever count"),
        ([_GOLD, {**_GOLD, "worse": ""}], "gold.jsonl line 2.*has no worse"),
    ],
)
def test_items_that_check_raters_are_looked_at_before_anybody_trains(
    services: None, tmp_path: Path, rows: list[dict[str, str]] | None, said: str
) -> None:
    gold = tmp_path / "gold.jsonl"
    if rows is not None:
        gold.write_text("".join(json.dumps(row) + "\n" for row in rows))
    human_eval = {"gold_data": str(gold), "gold_items": 20, "gold_min_count": 2}
    inputs = _make_inputs(tmp_path, human_eval=human_eval)
    with pytest.raises(PlumblineError, match="1 prerequisite missing") as caught:
        run(**inputs)
    assert re.search(said, str(caught.value))
    gold.write_text("".join(json.dumps(row | {"id": str(n)}) + "\n" for n, row in enumerate([_GOLD, _GOLD])))
    assert run(**inputs)
    gold.unlink()
    assert run(**inputs | {"human_eval": {**human_eval, "gold_items": 0}}), "no check, no items"


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "PLUMBLINE_DATABASE_URL"])
def test_a_missing_service_is_named(
    services: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv(variable)
    with pytest.raises(PlumblineError, match=variable):
        run(**_make_inputs(tmp_path))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_folder_without_a_part_is_refused(tmp_path: Path, missing: str) -> None:
    inputs = _make_inputs(tmp_path)
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(InputError, match="the model folder has no"):
        check_base_model(inputs["base_model"])


def test_a_mistyped_folder_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(InputError, match="no such model folder"):
        check_base_model("models/qwen")
    assert "hub" in check_base_model("Qwen/Qwen2.5-0.5B")
    assert "hub" in check_base_model("gpt2")


def test_too_little_disk_and_a_missing_gpu_are_told(tmp_path: Path) -> None:
    with pytest.raises(PlumblineError, match="GiB needed"):
        check_disk(tmp_path / "not" / "there", 10**9)
    if "CPU" in check_gpu(False):
        with pytest.raises(PlumblineError, match="no GPU is visible"):
            check_gpu(True)


def test_the_ledgers_anchor_may_be_in_object_storage_and_is_written_to(
    bucket: str, bucket_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", f"s3://{bucket}/anchors")
    assert check_ledger_anchor() == "ledger anchor: writable"
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", "s3://not-there/anchors")
    with pytest.raises(PlumblineError, match="there is no bucket 'not-there'"):
        check_ledger_anchor()


def test_a_hub_models_digest_follows_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import huggingface_hub

    commits = iter(["a" * 40, "a" * 40, "b" * 40])
    monkeypatch.setattr(
        huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=lambda _, **__: SimpleNamespace(sha=next(commits)))
    )
    first, again, moved = (model_digest("owner/name") for _ in range(3))
    assert first == again != moved


def test_without_the_hub_the_cached_models_commit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    class Unreachable:
        def model_info(self, name: str, revision: str | None = None) -> None:
            raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    with pytest.raises(InputError, match="commit"):
        model_digest("owner/never-fetched")
    cached = tmp_path / "snapshots" / ("c" * 40) / "config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(cached))
    assert len(model_digest("owner/name")) == 64


def test_checkpoints_in_object_storage_are_tried_and_their_scratch_disk_measured(
    bucket: str, bucket_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = f"s3://{bucket}/checkpoints"
    assert check_checkpoints(place, 0).startswith(f"checkpoints: {place}; disk: ")
    assert "Contents" not in bucket_client.list_objects_v2(Bucket=bucket)
    with pytest.raises(PlumblineError, match=f"{tmp_path}.*GiB needed"):
        check_checkpoints(place, 1e9)
    with pytest.raises(PlumblineError, match=r"no bucket 'absent-one'.*Create it"):
        check_checkpoints("s3://absent-one/checkpoints", 0)


def test_a_changed_panel_makes_no_pair_be_collected_anew(
    services: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pair_raters", "panel"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"my_{name}.py").write_text("def make(seed):\n    return None\n")
        monkeypatch.syspath_prepend(str(tmp_path / name))
    plug_ins = ["my_pair_raters:make", "my_panel:make"]
    collection = {"source": "raters", "raters": "my_pair_raters:make"}
    inputs = _make_inputs(tmp_path, plug_ins=plug_ins, collection=collection)
    found = [run(**inputs)["plug_in_digest"]]
    for changed in ("panel", "pair_raters"):
        file = tmp_path / changed / f"my_{changed}.py"
        file.write_text(file.read_text() + "# another taste\n")
        found.append(run(**inputs)["plug_in_digest"])
    before, other_panel, other_raters = found
    assert before == other_panel != other_raters
    passed_on = {**collection, "source": "dataset"}
    assert run(**inputs | {"collection": passed_on})["plug_in_digest"] not in found, "no rater is used, none is pinned"
