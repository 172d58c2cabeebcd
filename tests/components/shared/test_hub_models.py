"""Models of the hub by commit, loaded from a cache of the hub's own layout; no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.shared.errors import InputError
from components.shared.hub_models import split_revision

_COMMITS = ("a" * 40, "b" * 40)
_LOAD = """
import json, sys
from components.shared.hub_models import model_digest, pinned_model
from components.shared.models import load_policy
from components.shared.tokenizers import prepare_tokenizer
source = sys.argv[1]
model = load_policy(source)
weight = float(next(model.parameters()).flatten()[0])
print(json.dumps([pinned_model(source), model_digest(source), weight, len(prepare_tokenizer(source))]))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commits of `acme/tiny`: `main` is the second, the tag `v1` the first."""
    import torch

    from components.demo_world.tokenizer_and_model import make_model, make_tokenizer

    home = tmp_path_factory.mktemp("hub")
    repository = home / "hub" / "models--acme--tiny"
    tokenizer = make_tokenizer()
    for number, commit in enumerate(_COMMITS):
        model = make_model(tokenizer, seed=0, layers=1, hidden_size=16, feedforward_size=32, heads=2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float(number + 1))
        folder = repository / "snapshots" / commit
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(_COMMITS[1])
    (repository / "refs" / "v1").write_text(_COMMITS[0])
    return home


def _load(cache: Path, source: str) -> list[object]:
    environment = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _LOAD, source]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_revision_is_what_is_loaded_and_a_pinned_name_stays_at_its_commit(cache: Path) -> None:
    newest = _load(cache, "acme/tiny")
    assert newest[0] == f"acme/tiny@{_COMMITS[1]}"
    assert newest[2] == 2.0
    tagged = _load(cache, "acme/tiny@v1")
    assert tagged[0] == f"acme/tiny@{_COMMITS[0]}"
    assert tagged[2] == 1.0
    assert tagged[1] != newest[1]
    pinned = _load(cache, str(tagged[0]))
    assert pinned == tagged, "the same model, the same digest, whatever `main` is by now"


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name@v1.0", ("owner/name", "v1.0")),
        ("owner/name@refs/pr/3", ("owner/name", "refs/pr/3")),
        ("gpt2@main", ("gpt2", "main")),
        ("/models/mine@home", ("/models/mine@home", None)),
        ("runs:/1/x", ("runs:/1/x", None)),
    ],
)
def test_a_revision_stands_after_an_at(source: str, parts: tuple[str, str | None]) -> None:
    assert split_revision(source) == parts


def test_a_folder_with_an_at_in_its_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine@home").mkdir()
    monkeypatch.chdir(tmp_path)
    assert split_revision("mine@home") == ("mine@home", None)
    assert split_revision(tmp_path / "mine@home") == (str(tmp_path / "mine@home"), None)


def test_a_revision_that_is_not_there_is_told(cache: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    code = "from components.shared.hub_models import pinned_model; pinned_model('acme/tiny@v9')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert f"{InputError.__name__}: acme/tiny@v9: cannot ask the hub" in done.stderr
