"""A checkpoint becomes a candidate of its own: whole weights, and what came before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_artifacts import make_policy

from components.evaluation.checkpoint import run
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.files import read_json, write_json, write_text
from components.shared.models import load_policy, load_tokenizer


def _make_run(root: Path, steps: tuple[int, ...] = (10, 20, 30), **overrides: Any) -> dict[str, str]:
    """Reference and checkpoints as a training stage leaves them, the weights being text."""
    with write_artifact(root / "sft", "policy", stage="sft") as draft:
        _write_policy(draft.path, "reference", None)
    digest = overrides.get("trained_from", read_artifact(root / "sft", "policy").digest)
    with write_artifact(root / "checkpoints", "policy_checkpoints", inputs={"policy": digest}, stage="ppo") as draft:
        for step in steps:
            _write_policy(draft.path / f"step-{step:04d}", f"weights {step}", step)
    return {"checkpoints": str(root / "checkpoints"), "reference": str(root / "sft")}


def _write_policy(folder: Path, weights: str, step: int | None) -> None:
    folder.mkdir(exist_ok=True)
    write_text(folder / "model.safetensors", weights)
    write_json(folder / "policy.json", {"format": "full", "base_model": "x", "base_digest": "y", "step": step})


def _outputs(root: Path) -> dict[str, str]:
    return {"output_policy": str(root / "candidate"), "output_checkpoints": str(root / "earlier")}


def test_the_candidate_has_the_checkpoints_weights_and_names_what_it_was_trained_from(tmp_path: Path) -> None:
    given = _make_run(tmp_path)
    found = run(**given, step=20, **_outputs(tmp_path))
    candidate = read_artifact(tmp_path / "candidate", "policy")
    assert candidate.digest == found["digest"]
    assert candidate.file("model.safetensors").read_text() == "weights 20"
    assert candidate.manifest["inputs"]["policy"] == read_artifact(given["reference"], "policy").digest
    assert read_json(candidate.file("policy.json"))["step"] == 20


def test_what_came_before_it_begins_with_the_reference_so_that_the_first_checkpoint_has_a_past(tmp_path: Path) -> None:
    given = _make_run(tmp_path)
    run(**given, step=20, **_outputs(tmp_path))
    files = read_artifact(tmp_path / "earlier", "policy_checkpoints").manifest["files"]
    assert {name.split("/")[0] for name in files} == {"step-0000", "step-0010"}
    assert (tmp_path / "earlier" / "step-0000" / "model.safetensors").read_text() == "reference"
    run(**given, step=10, output_policy=str(tmp_path / "c"), output_checkpoints=str(tmp_path / "e"))
    assert {path.name for path in (tmp_path / "e").iterdir() if path.is_dir()} == {"step-0000"}


def test_a_step_that_was_not_kept_is_refused_with_those_that_were(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Steps there: 10, 20, 30"):
        run(**_make_run(tmp_path), step=15, **_outputs(tmp_path))
    assert not (tmp_path / "candidate").exists()


def test_checkpoints_of_another_training_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="were trained from policy"):
        run(**_make_run(tmp_path, trained_from="0" * 64), step=20, **_outputs(tmp_path))


def test_an_adapter_is_merged_into_its_reference(tmp_path: Path) -> None:
    """The candidate's logits are those of reference and adapter together."""
    base = read_artifact(make_policy(tmp_path / "sft", seed=1), "policy")
    device, tokenizer = torch.device("cpu"), load_tokenizer(base.path)
    model = load_policy(base.path, dtype=torch.float32, device=device)
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with write_artifact(tmp_path / "k", "policy_checkpoints", inputs={"policy": base.digest}, stage="ppo") as draft:
        folder = draft.path / "step-0010"
        adapted.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        record = {"format": "adapter", "base_model": "tiny", "base_digest": base.digest, "step": 10}
        write_json(folder / "policy.json", record)
    run(checkpoints=str(tmp_path / "k"), reference=str(base.path), step=10, **_outputs(tmp_path))
    tokens = torch.arange(5, 12)[None]
    whole = load_policy(tmp_path / "candidate", dtype=torch.float32, device=device)(tokens).logits
    together = load_policy(tmp_path / "k" / "step-0010", dtype=torch.float32, device=device, reference=base.path)(
        tokens
    ).logits
    assert torch.allclose(whole, together, atol=1e-5)
    assert not torch.allclose(whole, load_policy(base.path, dtype=torch.float32, device=device)(tokens).logits)
