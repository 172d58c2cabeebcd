from __future__ import annotations

from pathlib import Path

import pytest

from components.collection.user_data import pass_through
from components.shared.artifacts import write_artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.files import read_json


def test_a_file_is_copied_byte_for_byte(tmp_path: Path):
    content = b'\xef\xbb\xbf{"prompt": "a"}\r\nnot json at all\n'
    (tmp_path / "mine.jsonl").write_bytes(content)
    taken = pass_through(str(tmp_path / "mine.jsonl"), tmp_path / "user")
    assert taken == {"files": ["mine.jsonl"]}
    assert (tmp_path / "user" / "mine.jsonl").read_bytes() == content


def test_of_a_folder_the_data_files_are_taken_and_nothing_else(tmp_path: Path):
    source = tmp_path / "source"
    for name in ("b.parquet", "deep/a.jsonl", "README.md", ".hidden.jsonl", ".git/c.jsonl"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"x")
    taken = pass_through(f"file://{source}", tmp_path / "user")
    assert taken == {"files": ["b.parquet", "deep/a.jsonl"]}
    assert (tmp_path / "user" / "deep" / "a.jsonl").is_file()


@pytest.mark.parametrize("uri", ["s3://bucket/pairs", "hf://owner/name"])
def test_of_remote_data_the_address_is_recorded(tmp_path: Path, uri: str):
    assert pass_through(uri, tmp_path / "user") == {"uri": uri}
    assert read_json(tmp_path / "user" / "source.json") == {"uri": uri}


@pytest.mark.parametrize(("inside", "taken"), [("pairs.jsonl", "pairs.jsonl"), ("user/mine.jsonl", "mine.jsonl")])
def test_of_an_earlier_pairs_artifact_the_rows_are_taken(tmp_path: Path, inside: str, taken: str):
    with write_artifact(tmp_path / "pairs", "pairs", stage="collection") as draft:
        (draft.path / inside).parent.mkdir(exist_ok=True)
        (draft.path / inside).write_text("{}\n")
        (draft.path / "provenance.json").write_text("{}")
    assert pass_through(str(tmp_path / "pairs"), tmp_path / "again") == {"files": [taken]}


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl: no such file"):
        pass_through(str(tmp_path / "nowhere.jsonl"), tmp_path / "user")


def test_a_folder_without_data_is_an_error(tmp_path: Path):
    (tmp_path / "source").mkdir()
    with pytest.raises(InputError, match="no data file"):
        pass_through(str(tmp_path / "source"), tmp_path / "user")


def test_an_artifact_of_another_kind_is_an_error(tmp_path: Path):
    with write_artifact(tmp_path / "policy", "policy", stage="sft"):
        pass
    with pytest.raises(ArtifactError, match="expected pairs"):
        pass_through(str(tmp_path / "policy"), tmp_path / "user")


def test_a_local_file_cannot_pass_for_a_remote_address(tmp_path: Path):
    (tmp_path / "source.json").write_text('{"uri": "s3://elsewhere/data"}')
    with pytest.raises(InputError, match="Rename"):
        pass_through(str(tmp_path / "source.json"), tmp_path / "user")
