"""Is there anything new to train on? Only runs that ended well count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.prerequisites.new_data import input_digests, inputs_tags, run
from components.shared.errors import InputError, PlumblineError
from components.shared.tracking import close_pipeline_run, tag_pipeline_run


@pytest.fixture
def world(tmp_path: Path, mlflow_store: str) -> Path:
    """Data and a base model folder."""
    for name in ("sft", "prompts", "preferences"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "hello"}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path


def _inputs(world: Path) -> dict[str, Any]:
    data = {name: str(world / f"{name}.jsonl") for name in ("sft", "prompts", "preferences")}
    return {"base_model": str(world / "model"), "data": data}


@pytest.fixture
def ask(world: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Asks as the pipeline run `name` would."""

    def answer(name: str, *, model: str = "assistant", force: bool = False, **recipe: Any) -> dict[str, Any]:
        monkeypatch.setenv("PLUMBLINE_RUN_ID", name)
        return run(**_inputs(world), model_name=model, force=force, **recipe)

    return answer


@pytest.fixture
def train(world: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What a training run leaves in MLflow."""

    def leave(name: str, *, ends: str | None = "SUCCEEDED", model: str = "assistant", **recipe: Any) -> None:
        monkeypatch.setenv("PLUMBLINE_RUN_ID", name)
        tag_pipeline_run(inputs_tags(model, input_digests(**_inputs(world), **recipe)))
        if ends:
            close_pipeline_run(ends)

    return leave


def test_the_first_run_trains(ask: Callable[..., dict[str, Any]]) -> None:
    assert ask("first")["changed"] is True


def test_nothing_new_after_a_run_that_ended_well(
    ask: Callable[..., dict[str, Any]], train: Callable[..., None]
) -> None:
    train("first")
    assert ask("second") == {"changed": False, "reason": "nothing is new since first"}


@pytest.mark.parametrize("ends", ["FAILED", "CANCELLED", None])
def test_a_run_that_failed_or_never_ended_does_not_count(
    ends: str | None, ask: Callable[..., dict[str, Any]], train: Callable[..., None]
) -> None:
    train("first", ends=ends)
    assert ask("second")["changed"] is True


def test_a_run_that_found_nothing_new_does_not_hide_the_one_before(
    ask: Callable[..., dict[str, Any]], train: Callable[..., None]
) -> None:
    train("first")
    ask("second")
    close_pipeline_run("SUCCEEDED")
    assert ask("third") == {"changed": False, "reason": "nothing is new since first"}


@pytest.mark.parametrize("file", ["sft.jsonl", "prompts.jsonl", "preferences.jsonl", "model/config.json"])
def test_a_changed_input_is_named(
    file: str, world: Path, ask: Callable[..., dict[str, Any]], train: Callable[..., None]
) -> None:
    train("first")
    (world / file).write_text('{"prompt": "good day"}\n')
    found = ask("second")
    assert found["changed"] is True
    assert found["reason"] == f"changed since first: {'base_model' if '/' in file else file.removesuffix('.jsonl')}"


def test_after_failed_attempts_on_new_data_it_still_is_new(
    world: Path, ask: Callable[..., dict[str, Any]], train: Callable[..., None]
) -> None:
    train("first")
    (world / "sft.jsonl").write_text('{"prompt": "good day"}\n')
    train("second", ends="FAILED")
    assert ask("third")["reason"] == "changed since first: sft"


def test_another_models_run_does_not_count(ask: Callable[..., dict[str, Any]], train: Callable[..., None]) -> None:
    train("first", model="other")
    assert ask("second")["changed"] is True


def test_changed_settings_code_and_images_are_new_and_named(
    ask: Callable[..., dict[str, Any]], train: Callable[..., None]
) -> None:
    recipe = {"ppo_settings": "1", "code": "2", "images": "3"}
    train("first", recipe=recipe)
    assert ask("second", recipe=recipe)["changed"] is False
    found = ask("third", recipe=recipe | {"ppo_settings": "4", "code": "5"})
    assert found == {"changed": True, "reason": "changed since first: ppo_settings, code"}


def test_a_plug_in_whose_source_changed_is_new(
    tmp_path: Path, ask: Callable[..., dict[str, Any]], train: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users").mkdir()
    rules = tmp_path / "users" / "my_polite_rules.py"
    rules.write_text("def polite(prompts, responses): ...\n")
    monkeypatch.syspath_prepend(str(rules.parent))
    plug_ins = ["my_polite_rules:polite"]
    train("first", plug_ins=plug_ins)
    assert ask("second", plug_ins=plug_ins)["changed"] is False
    rules.write_text(rules.read_text() + "# stricter\n")
    assert ask("third", plug_ins=plug_ins)["reason"] == "changed since first: plug_ins"


def test_force_trains_all_the_same(ask: Callable[..., dict[str, Any]], train: Callable[..., None]) -> None:
    train("first")
    found = ask("second", force=True)
    assert found["changed"] is True
    assert "as asked" in found["reason"]


def test_data_that_is_not_there_is_an_error_and_not_news(world: Path, ask: Callable[..., dict[str, Any]]) -> None:
    (world / "sft.jsonl").unlink()
    with pytest.raises(InputError, match="no such file"):
        ask("first")


def test_without_mlflow_nothing_is_decided(ask: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(PlumblineError, match="no MLflow server"):
        ask("first")
