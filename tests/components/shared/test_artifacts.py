"""Artifacts are whole or absent, and verified before they are read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from components.shared.artifacts import MANIFEST, read_artifact, require_as_told, tell_digests, write_artifact
from components.shared.errors import ArtifactError


def _write(path: Path, content: str = "x", **overrides) -> None:
    options = {"kind": "policy", "stage": "sft", "inputs": {"data": "abc"}, "settings": {"epochs": 1}} | overrides
    with write_artifact(path, options.pop("kind"), **options) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "weights.txt").write_text(content)
        draft.metadata["steps"] = 3


def test_an_artifact_is_read_back_with_everything_that_made_it(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    artifact = read_artifact(tmp_path / "a", "policy")
    assert artifact.file("sub/weights.txt").read_text() == "x"
    assert artifact.manifest["inputs"] == {"data": "abc"}
    assert artifact.manifest["settings"] == {"epochs": 1}
    assert artifact.manifest["metadata"] == {"steps": 3}
    assert len(artifact.manifest["code_version"]) == 64


def test_equal_content_has_an_equal_digest_whenever_it_was_written(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    _write(tmp_path / "b", settings={"epochs": 2})
    _write(tmp_path / "c", content="y")
    digests = [read_artifact(tmp_path / name, "policy").digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"), write_artifact(tmp_path / "a", "policy", stage="sft") as draft:
        (draft.path / "half").write_text("half")
        raise ValueError("boom")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_killed_half_way_leaves_nothing_that_can_be_read(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from components.shared.artifacts import write_artifact\n"
        "with write_artifact(sys.argv[1], 'policy', stage='sft') as draft:\n"
        "    (draft.path / 'half').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        read_artifact(tmp_path / "a", "policy")
    _write(tmp_path / "a")
    assert read_artifact(tmp_path / "a", "policy").digest


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from components.shared.artifacts import write_artifact\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with write_artifact(sys.argv[1], 'policy', stage='sft') as draft:\n"
        "    (draft.path / 'weights').write_bytes(b'x' * 5000)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False, capture_output=True, text=True)
    assert run.returncode != 0
    assert "File too large" in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", ["alter", "remove", "manifest", "kind", "schema"])
def test_an_altered_artifact_is_refused(tmp_path: Path, harm: str) -> None:
    _write(tmp_path / "a")
    manifest_path = tmp_path / "a" / MANIFEST
    manifest = json.loads(manifest_path.read_text())
    kind = "policy"
    match harm:
        case "alter":
            (tmp_path / "a" / "sub" / "weights.txt").write_text("z")
        case "remove":
            (tmp_path / "a" / "sub" / "weights.txt").unlink()
        case "manifest":
            manifest["files"] = {}
        case "kind":
            kind = "reward_model"
        case "schema":
            manifest["schema_version"] = 99
    manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=str(tmp_path / "a")):
        read_artifact(tmp_path / "a", kind)


def test_a_retried_step_replaces_its_own_artifact_but_nothing_else(tmp_path: Path) -> None:
    _write(tmp_path / "a", content="first")
    _write(tmp_path / "a", content="second")
    assert read_artifact(tmp_path / "a", "policy").file("sub/weights.txt").read_text() == "second"
    assert os.listdir(tmp_path) == ["a"]
    with pytest.raises(ArtifactError, match="something else"):
        _write(tmp_path / "a", kind="dataset")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="something else"):
        _write(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_what_was_put_in_an_artifacts_place_is_told_from_what_its_step_wrote(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    told = read_artifact(tmp_path / "a", "policy").digest
    candidate = SimpleNamespace(path=str(tmp_path / "a"), metadata={"digest": "of another artifact", "steps": 3})
    tell_digests(candidate)
    assert candidate.metadata == {"digest": told, "steps": 3}
    require_as_told(candidate=candidate, history=None)
    _write(tmp_path / "a", "other weights, with a manifest that fits them")
    assert read_artifact(tmp_path / "a", "policy").digest != told
    with pytest.raises(ArtifactError, match=r"candidate, .*: has digest .* it was replaced"):
        require_as_told(candidate=candidate)
    require_as_told(fetched=SimpleNamespace(path=str(tmp_path / "a"), metadata={}))
