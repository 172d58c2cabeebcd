from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.collection.settings import CollectionSettings
from components.collection.stage import run
from components.demo_world.tokenizer_and_model import make_model, make_tokenizer
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.files import read_json, read_jsonl
from components.shared.locations import data_digest, recorded_digest
from components.shared.models import save_policy
from components.shared.records import PreferenceRecord, PromptRecord, read_records, write_records
from components.shared.settings import parse_settings

_RATER = f"{__name__}:LongerRater"


class LongerRater:
    """Prefers the answer with more characters."""

    kind = "simulated"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def prefer(self, record: PromptRecord, response_a: str, response_b: str, *, finished_a: bool, finished_b: bool):
        choice = "a" if len(response_a) >= len(response_b) else "b"
        return {"choice": choice, "rater": f"longer-{self.seed}", "strength": 0.5}


class UndecidedRater(LongerRater):
    def prefer(self, *args: Any, **options: Any):
        return {"choice": "tie", "rater": "u", "strength": 0.5}


class AIRater(LongerRater):
    kind = "ai"


class ClaimsToBeHuman(LongerRater):
    kind = "human"


class SaysNoKind(LongerRater):
    kind = None


class NoRater:
    def __init__(self, seed: int) -> None: ...


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "policy"
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=0, layers=1, hidden_size=16, feedforward_size=32, heads=2)
    with write_artifact(path, "policy", stage="sft") as draft:
        save_policy(model, tokenizer, draft.path, base_model="tiny", base_digest="0")
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make_dataset(tmp_path_factory.mktemp("dataset"), n=6)


def _make_dataset(folder: Path, n: int) -> Path:
    records = [
        PromptRecord(id=f"p{i}", prompt="how do i fix it ?", slice=("safe", "unsafe")[i % 2], group_id=f"g{i}")
        for i in range(n)
    ]
    with write_artifact(folder / "dataset", "dataset", stage="data_validation") as draft:
        write_records(draft.path / "prompts" / "train.jsonl", records)
    return folder / "dataset"


def _make_settings(**overrides) -> dict[str, Any]:
    return {"source": "raters", "raters": _RATER, "pairs": 8, "max_response_tokens": 6, "batch_size": 4, **overrides}


def _run(policy: Path, dataset: Path, output: Path, *, preference_data: str = "", seed: int = 3, **settings):
    return run(
        policy=str(policy),
        dataset=str(dataset),
        output=str(output),
        preference_data=preference_data,
        seed=seed,
        settings=_make_settings(**settings),
    )


def test_pairs_are_sampled_judged_and_kept_with_their_provenance(policy: Path, dataset: Path, tmp_path: Path):
    result = _run(policy, dataset, tmp_path / "pairs")
    artifact = read_artifact(tmp_path / "pairs", "pairs")
    records = list(read_records(artifact.file("pairs.jsonl"), PreferenceRecord))
    assert result == {"digest": artifact.digest, "source": "raters", "pairs": 8}
    assert len(records) == 8
    for record in records:
        assert record.chosen != record.rejected
        assert len(record.chosen) >= len(record.rejected)
        assert (record.source, record.rater, record.strength) == ("simulated", "longer-3", 0.5)
        assert record.group_id == record.metadata["prompt_id"].replace("p", "g")
        assert record.metadata["policy"] == read_artifact(policy, "policy").digest
        assert record.metadata["temperature"] == 1.0
    provenance = read_json(artifact.file("provenance.json"))
    assert (provenance["pairs"], provenance["answers"], provenance["pairs_by_rater"]) == (8, 16, {"longer-3": 8})


def test_pairs_that_a_model_judged_are_marked_as_such(policy: Path, dataset: Path, tmp_path: Path):
    _run(policy, dataset, tmp_path / "pairs", raters=f"{__name__}:AIRater")
    assert {row["source"] for row in read_jsonl(tmp_path / "pairs" / "pairs.jsonl")} == {"ai"}


def test_an_answer_cut_at_the_length_limit_is_marked(policy: Path, dataset: Path, tmp_path: Path):
    _run(policy, dataset, tmp_path / "pairs", max_response_tokens=2)
    rows = list(read_jsonl(tmp_path / "pairs" / "pairs.jsonl"))
    assert not all(row["chosen_finished"] for row in rows)


def test_the_same_seed_gives_the_same_pairs_and_another_seed_others(policy: Path, dataset: Path, tmp_path: Path):
    digests = [
        _run(policy, dataset, tmp_path / name, seed=seed)["digest"] for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_users_pairs_are_passed_through(policy: Path, dataset: Path, tmp_path: Path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    result = _run(
        policy, dataset, tmp_path / "pairs", preference_data=str(tmp_path / "mine.jsonl"), source="dataset", raters=None
    )
    artifact = read_artifact(tmp_path / "pairs", "pairs")
    assert artifact.file("user/mine.jsonl").read_bytes() == (tmp_path / "mine.jsonl").read_bytes()
    assert "pairs.jsonl" not in artifact.manifest["files"]
    assert read_json(artifact.file("provenance.json"))["files"] == ["mine.jsonl"]
    assert result["pairs"] is None


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"raters": f"{__name__}:UndecidedRater"}, "returned .*choice"),
        ({"raters": f"{__name__}:NoRater"}, "no method 'prefer'"),
        ({"raters": f"{__name__}:ClaimsToBeHuman"}, "kind is 'human'"),
        ({"raters": f"{__name__}:SaysNoKind"}, "kind is None"),
        ({"raters": "no.such.module:Rater"}, "cannot import"),
        ({"source": "dataset", "raters": None}, "no preference data"),
        ({"raters": None}, "needs the setting raters"),
        ({"samples_per_prompt": 1}, "samples_per_prompt"),
        ({"temprature": 1.0}, "temprature: unknown setting"),
        ({"temperature": 1e-6, "resample_rounds": 0}, "same answer every time"),
    ],
)
def test_a_fault_is_an_error_and_leaves_nothing_behind(
    policy: Path, dataset: Path, tmp_path: Path, settings: dict[str, Any], problem: str
):
    with pytest.raises(InputError, match=problem):
        _run(policy, dataset, tmp_path / "pairs", **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_prompts_is_an_error(policy: Path, tmp_path: Path):
    dataset = _make_dataset(tmp_path, n=0)
    with pytest.raises(InputError, match="no prompt"):
        _run(policy, dataset, tmp_path / "pairs")


def test_a_damaged_policy_is_refused(policy: Path, dataset: Path, tmp_path: Path):
    with pytest.raises(ArtifactError, match="expected policy"):
        _run(dataset, dataset, tmp_path / "pairs")


def test_numbers_arrive_from_kfp_as_floats():
    parsed = parse_settings(_make_settings(pairs=8.0, batch_size=4.0), CollectionSettings, where="test")
    assert (parsed.pairs, parsed.batch_size) == (8, 4)


def test_preference_data_that_changed_since_the_first_step_is_refused(policy: Path, dataset: Path, tmp_path: Path):
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    recorded = {"data_digest": recorded_digest([data_digest(str(data))], "model"), "base_model_digest": "model"}

    def collect(name: str) -> None:
        run(
            policy=str(policy),
            dataset=str(dataset),
            output=str(tmp_path / name),
            preference_data=str(data),
            seed=0,
            settings={"source": "dataset"},
            **recorded,
        )

    collect("first")
    data.write_text('{"prompt": "p", "chosen": "b", "rejected": "a"}\n')
    with pytest.raises(InputError, match="not what the run's first step"):
        collect("second")
    assert not (tmp_path / "second").exists()
