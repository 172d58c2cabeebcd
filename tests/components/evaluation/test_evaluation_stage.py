from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_artifacts import make_checkpoints, make_dataset, make_other_tokenizer, make_policy, make_reward_model

from components.demo_world.tokenizer_and_model import make_tokenizer
from components.evaluation.answers import role_seed, same_vocabulary
from components.evaluation.roles import evenly_spaced
from components.evaluation.settings import EvaluationSettings
from components.evaluation.stage import run, select_prompts
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.files import read_json, read_jsonl
from components.shared.models import encode_prompt, encode_response, load_policy, load_reward_model, load_tokenizer
from components.shared.scoring import rewards
from components.shared.settings import parse_settings


@dataclass(frozen=True)
class _World:
    """Input artifacts, made once."""

    folder: Path
    reference: str
    candidate: str
    champion: str
    foreign: str
    checkpoints: str
    reward_model: str
    heldout_reward_model: str
    foreign_reward_model: str
    dataset: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> _World:
    folder = tmp_path_factory.mktemp("world")
    return _World(
        folder=folder,
        reference=make_policy(folder / "reference", seed=0),
        candidate=make_policy(folder / "candidate", seed=0, sharpness=3.0),
        champion=make_policy(folder / "champion", seed=1),
        foreign=make_policy(folder / "foreign", seed=2, tokenizer=make_other_tokenizer()),
        checkpoints=make_checkpoints(folder / "checkpoints", [10, 20, 30]),
        reward_model=make_reward_model(folder / "rm", seed=3),
        heldout_reward_model=make_reward_model(folder / "rm2", seed=4),
        foreign_reward_model=make_reward_model(folder / "rm3", seed=5, tokenizer=make_other_tokenizer()),
        dataset=make_dataset(folder / "dataset", heldout=12, human_eval=10, fresh=8),
    )


def _run(world: _World, output: Path, settings: dict[str, Any] | None = None, **overrides) -> dict[str, Any]:
    options = {
        "reference": world.reference,
        "candidate": world.candidate,
        "reward_model": world.reward_model,
        "heldout_reward_model": world.heldout_reward_model,
        "dataset": world.dataset,
        "output": str(output),
        "seed": 0,
        **overrides,
    }
    return run(**options, settings=_make_settings(**(settings or {})))


def _make_settings(**overrides) -> dict[str, Any]:
    return {
        "prompts": {"heldout": 8, "human_eval": 6},
        "checkpoint_prompts": 4,
        "max_checkpoints": 2,
        "max_response_tokens": 6,
        "batch_size": 4,
        **overrides,
    }


def _digest(path: str) -> str:
    return read_artifact(path, "policy").digest


def _rows(output: Path, role: str) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(output / "generations.jsonl") if row["role"] == role]


def test_every_role_answers_its_prompts_and_is_summarised(world: _World, tmp_path: Path):
    result = _run(
        world,
        tmp_path / "out",
        checkpoints=world.checkpoints,
        champion_uri=world.champion,
        champion_digest=_digest(world.champion),
    )
    artifact = read_artifact(tmp_path / "out", "evaluation")
    models = read_json(artifact.file("models.json"))
    metrics = read_json(artifact.file("metrics.json"))
    assert list(models) == list(metrics) == result["roles"]
    assert result["roles"] == ["reference", "candidate", "step-0010", "step-0030", "champion"]
    assert {name: figures["n"] for name, figures in metrics.items()} == {
        "reference": 14,
        "candidate": 14,
        "step-0010": 4,
        "step-0030": 4,
        "champion": 14,
    }
    assert models["step-0030"]["step"] == 30
    assert models["candidate"] == {"digest": _digest(world.candidate), "step": None, "name": "tiny"}
    assert models["champion"]["name"] == world.champion
    assert artifact.manifest["inputs"]["candidate"] == _digest(world.candidate)
    assert result["candidate_kl_mean"] == metrics["candidate"]["kl"]["mean"]


def test_a_checkpoint_has_the_digest_that_it_would_have_as_an_artifact(world: _World, tmp_path: Path):
    _run(world, tmp_path / "out", checkpoints=world.checkpoints)
    models = read_json(tmp_path / "out" / "models.json")
    with write_artifact(tmp_path / "policy", "policy", stage="test") as draft:
        shutil.copytree(Path(world.checkpoints) / "step-0010", draft.path, dirs_exist_ok=True)
    assert models["step-0010"]["digest"] == _digest(str(tmp_path / "policy"))


def test_kl_is_what_two_full_forward_passes_say(world: _World, tmp_path: Path):
    _run(world, tmp_path / "out", settings={"temperature": 0.8})
    tokenizer = load_tokenizer(world.reference)
    policies = [load_policy(path).requires_grad_(False) for path in (world.candidate, world.reference)]
    for row in _rows(tmp_path / "out", "candidate"):
        prompt = encode_prompt(tokenizer, row["prompt"])
        response = encode_response(tokenizer, row["response"], finished=row["finished"])
        if len(response) != row["n_tokens"]:  # a special token in the middle is not in the text
            continue
        logits = [
            policy(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / 0.8 for policy in policies
        ]
        for each in logits:
            each[:, tokenizer.pad_token_id] = -torch.inf
        taken = [torch.log_softmax(each, -1).gather(1, torch.tensor(response)[:, None]).sum() for each in logits]
        assert row["kl"] == pytest.approx(float(taken[0] - taken[1]), abs=1e-4)


def test_kl_of_a_different_policy_is_positive_and_of_the_reference_exactly_zero(world: _World, tmp_path: Path):
    """Long answers of all prompts: the estimate's noise grows slower than the KL."""
    _run(world, tmp_path / "out", {"prompts": {"heldout": 12, "human_eval": 10}, "max_response_tokens": 30})
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert metrics["candidate"]["kl"]["mean"] > 3 * metrics["candidate"]["kl"]["se"] > 0
    assert metrics["reference"]["kl"] == {"mean": 0.0, "se": 0.0, "per_token": 0.0}


def test_the_champion_has_no_kl_even_from_the_same_base(world: _World, tmp_path: Path):
    _run(world, tmp_path / "out", champion_uri=world.champion, champion_digest=_digest(world.champion))
    assert read_json(tmp_path / "out" / "metrics.json")["champion"]["kl"] is None
    assert {row["kl"] for row in _rows(tmp_path / "out", "champion")} == {None}


def test_a_roles_answers_do_not_depend_on_the_other_roles(world: _World, tmp_path: Path):
    _run(world, tmp_path / "alone")
    _run(
        world,
        tmp_path / "crowd",
        checkpoints=world.checkpoints,
        champion_uri=world.champion,
        champion_digest=_digest(world.champion),
    )
    assert _rows(tmp_path / "alone", "candidate") == _rows(tmp_path / "crowd", "candidate")


def test_the_same_inputs_give_the_same_digest_and_another_seed_another(world: _World, tmp_path: Path):
    first, second, other = (
        _run(world, tmp_path / name, seed=seed)["digest"] for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == second != other


def test_rewards_are_those_of_the_token_ids(world: _World, tmp_path: Path):
    _run(world, tmp_path / "out")
    tokenizer = load_tokenizer(world.reward_model)
    for row in _rows(tmp_path / "out", "candidate"):
        prompt = encode_prompt(tokenizer, row["prompt"])
        response = encode_response(tokenizer, row["response"], finished=row["finished"])
        if len(response) != row["n_tokens"]:
            continue
        for path, key in ((world.reward_model, "reward"), (world.heldout_reward_model, "heldout_reward")):
            score = rewards(load_reward_model(path), tokenizer, [prompt], [response])
            assert row[key] == pytest.approx(float(score[0]), abs=1e-4)


def test_a_reward_model_of_another_vocabulary_reads_the_text(world: _World, tmp_path: Path):
    _run(world, tmp_path / "out", reward_model=world.foreign_reward_model)
    tokenizer = load_tokenizer(world.foreign_reward_model)
    row = _rows(tmp_path / "out", "candidate")[0]
    response = encode_response(tokenizer, row["response"], finished=row["finished"])
    score = rewards(
        load_reward_model(world.foreign_reward_model), tokenizer, [encode_prompt(tokenizer, row["prompt"])], [response]
    )
    assert row["reward"] == pytest.approx(float(score[0]), abs=1e-4)


def test_a_champion_of_another_vocabulary_answers_with_its_own_tokenizer(world: _World, tmp_path: Path):
    _run(world, tmp_path / "out", champion_uri=world.foreign, champion_digest=_digest(world.foreign))
    letters = set("abcdefghijklmnopqrstuvwxyz .,?!'-\n:<>")
    assert all(set(row["response"]) <= letters for row in _rows(tmp_path / "out", "champion"))


def test_a_champion_that_is_the_candidate_is_no_role_of_its_own(world: _World, tmp_path: Path):
    _run(world, tmp_path / "out", champion_uri=world.candidate, champion_digest=_digest(world.candidate))
    models = read_json(tmp_path / "out" / "models.json")
    assert list(models) == ["reference", "candidate"]
    assert models["candidate"]["is_champion"] is True


def test_soak_compares_registered_policies_on_fresh_prompts(world: _World, tmp_path: Path):
    result = _run(
        world,
        tmp_path / "out",
        settings={"prompts": {"fresh": 8}},
        reference="",
        candidate="",
        reference_uri=world.champion,
        reference_digest=_digest(world.champion),
        candidate_uri=world.candidate,
        candidate_digest=_digest(world.candidate),
    )
    models = read_json(tmp_path / "out" / "models.json")
    assert result["roles"] == ["reference", "candidate"]
    assert models["candidate"] == {"digest": _digest(world.candidate), "step": None, "name": world.candidate}
    assert {row["prompt_set"] for row in read_jsonl(tmp_path / "out" / "generations.jsonl")} == {"fresh"}
    assert read_json(tmp_path / "out" / "metrics.json")["candidate"]["kl"] is None


def test_soak_measures_kl_against_the_sft_policy_if_it_is_given(world: _World, tmp_path: Path):
    _run(
        world,
        tmp_path / "out",
        reference="",
        reference_uri=world.champion,
        reference_digest=_digest(world.champion),
        kl_reference=world.reference,
    )
    _run(world, tmp_path / "plain")
    soak, plain = (read_json(tmp_path / name / "metrics.json") for name in ("out", "plain"))
    assert soak["candidate"]["kl"] == plain["candidate"]["kl"]
    assert soak["reference"]["kl"]["mean"] != 0.0


def test_without_a_predecessor_soak_compares_with_the_sft_policy(world: _World, tmp_path: Path):
    _run(world, tmp_path / "out", reference="", kl_reference=world.reference)
    models = read_json(tmp_path / "out" / "models.json")
    assert models["reference"]["digest"] == _digest(world.reference)


def test_tokenizers_of_equal_vocabulary_are_told_from_others():
    assert same_vocabulary(make_tokenizer(), make_tokenizer())
    assert not same_vocabulary(make_tokenizer(), make_other_tokenizer())


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"candidate": ""}, "give the candidate as an artifact or as URI and digest"),
        ({"candidate_uri": "somewhere"}, "give the candidate"),
        ({"reference": "", "reference_uri": "somewhere"}, "without a digest"),
        ({"settings": {"prompts": {}}}, "prompts"),
        ({"settings": {"prompts": {"nonsense": 3}}}, "prompts"),
        ({"settings": {"refusal_patterns": ["("]}}, "not a regular expression"),
        ({"settings": {"temperature": 0.0}}, "temperature"),
        ({"settings": {"must_refuse_slices": ["a"], "must_answer_slices": ["a"]}}, "must_answer_slices"),
    ],
)
def test_faulty_settings_are_errors_and_leave_nothing(
    world: _World, tmp_path: Path, overrides: dict[str, Any], problem: str
):
    with pytest.raises(InputError, match=problem):
        _run(world, tmp_path / "out", **overrides)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"settings": {"prompts": {"train": 3}}}, "no file 'prompts/train.jsonl'"),
        ({"champion_uri": "no/such/folder", "champion_digest": "0" * 64}, "no such policy folder"),
    ],
)
def test_missing_inputs_are_errors_and_leave_nothing(
    world: _World, tmp_path: Path, overrides: dict[str, Any], problem: str
):
    with pytest.raises(ArtifactError, match=problem):
        _run(world, tmp_path / "out", **overrides)
    assert list(tmp_path.iterdir()) == []


def test_a_registered_policy_with_another_digest_is_refused(world: _World, tmp_path: Path):
    with pytest.raises(ArtifactError, match="expected 000000000000"):
        _run(world, tmp_path / "out", champion_uri=world.champion, champion_digest="0" * 64)


def test_fewer_prompts_are_a_subset_of_more(world: _World):
    dataset = read_artifact(world.dataset, "dataset")
    few, many = (
        select_prompts(dataset, parse_settings({"prompts": {"heldout": n}}, EvaluationSettings, where="t"))["heldout"]
        for n in (5, 10)
    )
    assert many[:5] == few
    assert [record.id for record in many] != sorted(record.id for record in many)


def test_an_empty_prompt_set_is_an_error(tmp_path: Path):
    dataset = read_artifact(make_dataset(tmp_path / "dataset", heldout=0), "dataset")
    with pytest.raises(InputError, match="prompt set 'heldout' is empty"):
        select_prompts(dataset, EvaluationSettings(prompts={"heldout": 5}))


@pytest.mark.parametrize(
    ("n_items", "n", "expected"), [(3, 6, [0, 1, 2]), (10, 2, [4, 9]), (6, 3, [1, 3, 5]), (5, 1, [4]), (5, 0, [])]
)
def test_checkpoints_are_evenly_spaced_and_end_with_the_last(n_items: int, n: int, expected: list[int]):
    assert evenly_spaced(range(n_items), n) == expected


def test_seeds_differ_by_role_set_and_run():
    seeds = {role_seed(s, r, p) for s in (0, 1) for r in ("reference", "candidate") for p in ("heldout", "human_eval")}
    assert len(seeds) == 8


def test_a_training_too_short_to_leave_checkpoints_is_evaluated_all_the_same(world: _World, tmp_path: Path):
    with write_artifact(tmp_path / "checkpoints", "policy_checkpoints", stage="ppo"):
        pass
    result = _run(world, tmp_path / "out", checkpoints=str(tmp_path / "checkpoints"))
    assert set(result["roles"]) == {"reference", "candidate"}
