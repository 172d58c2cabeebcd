"""Several rewards: how they combine, what rules may do, and that a stage with them resumes and knows what it used."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_ppo import (
    load_latest,
    make_models,
    make_prompts,
    make_reward_model,
    make_settings,
    make_tokenizer,
    run_arguments,
)

from components.ppo import stage as ppo_stage
from components.ppo.checkpoint import CheckpointStore
from components.ppo.errors import CheckpointMismatchError, NotFiniteError, RewardRuleError
from components.ppo.history import metrics_of_row
from components.ppo.reward_shaping import MAIN, RewardShaper, ShapedRewards, combine_ensemble
from components.ppo.rewards import ModelReward, Rewards, RewardSource, RulePrompt, RuleResponse, RuleReward, load_rule
from components.ppo.rollout import EncodedPrompt, Rollout
from components.ppo.settings import RewardSettings
from components.ppo.stage import run
from components.ppo.trainer import PPOTrainer
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.files import read_json, read_jsonl, write_json
from components.shared.models import save_reward_model
from components.shared.plugins import plug_in_digest
from components.shared.scoring import rewards as reward_scores

Rule = Callable[[list[RulePrompt], list[RuleResponse]], Any]

RAW = {"normalise": "none", "clip": None, "missing_eos_penalty": 0.0}
SECOND = {"name": "second", "reward_model": "somewhere", "role": "ensemble", "normalise": "none"}
THIRD = {**SECOND, "name": "third"}
SAFE = {"name": "safe", "reward_model": "somewhere", "role": "safety", "normalise": "none"}


def _settings(**overrides: Any) -> RewardSettings:
    return RewardSettings.model_validate(RAW | overrides)


def _shape(
    settings: RewardSettings, main: Sequence[float], *, slices: Sequence[str] = (), **further: Sequence[float]
) -> ShapedRewards:
    """Shapes raw rewards of finished four-token responses; every reward model has mean 10 and deviation 2."""
    shaper = RewardShaper(settings, mean=10.0, std=2.0, scales=dict.fromkeys(settings.reward_models, (10.0, 2.0)))
    return shaper.shape(
        torch.tensor(main),
        finished=[True] * len(main),
        lengths=[4] * len(main),
        further={name: torch.tensor(values) for name, values in further.items()},
        slices=slices,
    )


# --- combining -------------------------------------------------------------------------------------------------------


def test_terms_are_added_by_weight() -> None:
    sources = [
        {"name": "brief", "rule": "a:b", "weight": -0.5},
        {"name": "other", "reward_model": "x", "weight": 2.0, "normalise": "reward_model"},
    ]

    shaped = _shape(_settings(weight=3.0, sources=sources), [1.0, 2.0], brief=[4.0, 0.0], other=[10.0, 14.0])

    assert shaped.scores.tolist() == [3.0 * 1.0 - 2.0 + 0.0, 3.0 * 2.0 - 0.0 + 2.0 * 2.0]
    assert shaped.parts["reward/brief"].tolist() == [4.0, 0.0]
    assert shaped.parts["reward/other"].tolist() == [10.0, 14.0]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("mean", [2.0, 5.0]), ("min", [1.0, 5.0]), ("mean_minus_variance", [2.0 - 0.5 * 2.0 / 3.0, 5.0])],
)
def test_ensemble_modes(mode: str, expected: list[float]) -> None:
    settings = _settings(sources=[SECOND, THIRD], ensemble=mode, ensemble_lambda=0.5)

    shaped = _shape(settings, [1.0, 5.0], second=[2.0, 5.0], third=[3.0, 5.0])

    assert shaped.scores.tolist() == pytest.approx(expected)
    assert shaped.parts["ensemble_variance"].tolist() == pytest.approx([2.0 / 3.0, 0.0])


@given(
    members=st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=1, max_size=5),
    penalty=st.floats(0, 2),
)
def test_caution_never_pays_more_than_the_mean(members: list[list[float]], penalty: float) -> None:
    stacked = torch.tensor(members, dtype=torch.float64)
    mean = combine_ensemble(stacked, "mean")

    assert bool((combine_ensemble(stacked, "min") <= mean + 1e-12).all())
    assert bool((combine_ensemble(stacked, "mean_minus_variance", penalty=penalty) <= mean + 1e-12).all())


def test_each_source_has_its_own_scale() -> None:
    settings = _settings(
        normalise="reward_model",
        sources=[
            {**SECOND, "normalise": "reward_model", "role": "term"},
            {"name": "rule", "rule": "a:b", "normalise": "running"},
        ],
    )

    shaped = _shape(settings, [12.0, 8.0], second=[14.0, 10.0], rule=[100.0, 300.0])

    assert shaped.scores.tolist() == [1.0 + 2.0 - 1.0, -1.0 + 0.0 + 1.0]


def test_the_sum_is_clipped_before_penalties() -> None:
    settings = _settings(clip=3.0, length_penalty_per_token=0.25, sources=[{"name": "rule", "rule": "a:b"}])

    assert _shape(settings, [2.0], rule=[2.0]).scores.tolist() == [3.0 - 1.0]


@pytest.mark.parametrize(
    ("unit", "threshold", "raw_at_threshold"),
    [("sigmoid", 0.15, math.log(0.15 / 0.85)), ("raw", 0.5, 0.5), ("normalised", -1.0, 8.0)],
)
def test_safety_replaces_helpfulness_below_the_threshold_only(
    unit: str, threshold: float, raw_at_threshold: float
) -> None:
    safe = {**SAFE, "weight": 2.0, "normalise": "reward_model" if unit == "normalised" else "none"}
    settings = _settings(sources=[safe, {"name": "rule", "rule": "a:b"}], safety={"threshold": threshold, "unit": unit})
    below, above = raw_at_threshold - 0.01, raw_at_threshold + 0.01

    shaped = _shape(settings, [7.0, 7.0], safe=[below, above], rule=[1.0, 1.0])

    paid = (below - 10.0) / 2.0 if unit == "normalised" else below
    assert shaped.scores.tolist() == pytest.approx([2.0 * paid, 8.0], rel=1e-5)
    assert shaped.parts["safety_override_share"].tolist() == [1.0, 0.0]


def test_prompts_of_safety_slices_are_always_scored_for_safety() -> None:
    settings = _settings(sources=[SAFE], safety={"slices": ["provoking"]})

    shaped = _shape(settings, [7.0, 7.0], safe=[5.0, 5.0], slices=["provoking", "chat"])

    assert shaped.scores.tolist() == [5.0, 7.0]
    assert shaped.parts["safety_override_share"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sources": [{"name": "a", "rule": "a:b"}, {"name": "a", "rule": "a:c"}]}, "two sources are named 'a'"),
        ({"sources": [{"name": "main", "rule": "a:b"}]}, "give the source another name"),
        ({"sources": [{"name": "A b", "rule": "a:b"}]}, "name"),
        ({"sources": [{"name": "a"}]}, "reward_model"),
        ({"sources": [{"name": "a", "rule": "no colon"}]}, "rule"),
        ({"sources": [{"name": "a", "rule": "a:b", "reward_model": "x"}]}, "reward_model"),
        ({"sources": [{"name": "a", "rule": "a:b", "normalise": "reward_model"}]}, "normalise"),
        ({"sources": [{**SECOND, "weight": 2.0}]}, "members count alike"),
        ({"sources": [{**SAFE, "weight": -1.0}]}, "pay for unsafe"),
        ({"sources": [{**SECOND, "normalise": "running"}]}, "different scales"),
        ({"ensemble": "min"}, "no source has role 'ensemble'"),
        ({"safety": {"threshold": 0.3}}, "no source has role 'safety'"),
        ({"sources": [SAFE], "safety": {"threshold": 1.5}}, "between 0 and 1"),
        ({"sources": [SAFE, {**SAFE, "name": "safer"}]}, "only one can replace"),
        ({"sources": [{"name": "a", "rule": "a:b", "role": "safety"}]}, "no logit"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        _settings(**options)


# --- rules -----------------------------------------------------------------------------------------------------------


def _make_rollout(count: int = 3, *, known: bool = True) -> Rollout:
    prompts = [
        EncodedPrompt(ids=[1, 4 + i], slice="even", id=f"p{i}", text=f"say {i}", metadata={"answer": i})
        for i in range(count)
    ]
    return Rollout(
        slices=["even"] * count,
        prompts_ids=[prompt.ids for prompt in prompts],
        responses_ids=[[4 + i, 5, 2] for i in range(count)],
        finished=[i != 1 for i in range(count)],
        decode_logprobs=[[0.0] * 3 for _ in range(count)],
        prompts=prompts if known else [],
    )


def _score(rule: Rule, rollout: Rollout | None = None) -> list[float]:
    rollout = rollout or _make_rollout()
    return RuleReward("mine", rule, make_tokenizer()).score(rollout, range(len(rollout))).tolist()


def test_a_rule_sees_text_and_tokens_in_order() -> None:
    seen: list[Any] = []

    def rule(prompts: list[RulePrompt], responses: list[RuleResponse]) -> list[float]:
        seen.extend(zip(prompts, responses, strict=True))
        return [float(len(response.ids)) + index for index, response in enumerate(responses)]

    assert _score(rule) == [3.0, 4.0, 5.0]
    assert [(prompt.id, prompt.text, prompt.slice, prompt.metadata) for prompt, _ in seen] == [
        (f"p{i}", f"say {i}", "even", {"answer": i}) for i in range(3)
    ]
    assert seen[1][0].ids == [1, 5]
    assert seen[1][1] == RuleResponse(text="blue blue", ids=[5, 5, 2], finished=False)


def test_a_prompt_of_which_only_ids_are_known_is_decoded() -> None:
    seen: list[str] = []

    def rule(prompts: list[RulePrompt], responses: list[RuleResponse]) -> list[float]:
        seen.extend(prompt.text for prompt in prompts)
        return [0.0] * len(responses)

    _score(rule, _make_rollout(2, known=False))

    assert seen == ["red", "blue"]


@pytest.mark.parametrize("convert", [list, tuple, np.asarray, torch.tensor])
def test_a_rule_may_return_any_row_of_numbers(convert: Callable[[list[float]], Any]) -> None:
    assert _score(lambda prompts, responses: convert([1, 0, 1])) == [1.0, 0.0, 1.0]


def _raise_at_blue(prompts: list[RulePrompt], responses: list[RuleResponse]) -> list[float]:
    if any(response.text.startswith("blue") for response in responses):
        raise KeyError("blue")
    return [0.0] * len(responses)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (_raise_at_blue, r"rule 'mine'.*raised KeyError: 'blue' - at prompt 'p1' 'say 1', response 'blue blue'.*Mend"),
        (lambda p, r: [1.0], r"rule 'mine'.*gave 1 numbers for 3 responses.*'p0'.*one number a response"),
        (lambda p, r: [1.0, math.nan, 1.0], r"rule 'mine'.*gave nan at prompt 'p1' 'say 1'.*finite number"),
        (lambda p, r: [1.0, 1.0, math.inf], r"gave inf at prompt 'p2'"),
        (lambda p, r: [1.0, None, 1.0], r"gave None at prompt 'p1'"),
        (lambda p, r: ["1", "2", "3"], r"gave '1' at prompt 'p0'"),
        (lambda p, r: 1.0, r"gave a float for 3 responses"),
        (lambda p, r: None, r"gave a NoneType for 3 responses"),
        (lambda p, r: dict.fromkeys(range(3), 1.0), r"gave a dict for 3 responses"),
    ],
)
def test_a_rule_that_fails_is_named_with_the_prompt(rule: Rule, said: str) -> None:
    with pytest.raises(RewardRuleError, match=said):
        _score(rule)


def test_a_rule_that_fails_on_a_batch_only_says_so() -> None:
    def rule(prompts: list[RulePrompt], responses: list[RuleResponse]) -> list[float]:
        if len(responses) > 1:
            raise ValueError("too many")
        return [0.0]

    with pytest.raises(RewardRuleError, match=r"ValueError: too many - at a batch of 3 \(at none of them alone\)") as e:
        _score(rule)
    assert isinstance(e.value.__cause__, ValueError)


def test_a_long_prompt_is_shown_by_its_start() -> None:
    rollout = _make_rollout(1)
    rollout.prompts[0] = EncodedPrompt(ids=[1, 4], slice="even", text="x" * 500)

    with pytest.raises(RewardRuleError, match=r"at prompt 'x{60}\.\.\.', response 'red blue'"):
        _score(lambda p, r: [math.nan], rollout)


def test_what_is_no_function_is_no_rule() -> None:
    with pytest.raises(InputError, match=r"rule 'a' \(math:pi\): is a float, no function"):
        load_rule("a", "math:pi", make_tokenizer())
    with pytest.raises(InputError, match="has no 'absent'"):
        load_rule("a", "math:absent", make_tokenizer())


# --- sources together ------------------------------------------------------------------------------------------------


def _model(name: str, seed: int) -> ModelReward:
    return ModelReward(
        name, make_reward_model(seed=seed), make_tokenizer(), mean=0.5 * seed, std=1.0 + seed, microbatch=4
    )


def test_an_ensemble_of_two_reward_models_pays_what_they_say_by_hand() -> None:
    settings = _settings(
        normalise="reward_model",
        sources=[{**SECOND, "normalise": "reward_model"}],
        ensemble="mean_minus_variance",
        ensemble_lambda=0.3,
    )
    main, second = _model(MAIN, 1), _model("second", 2)
    rollout = _make_rollout(5)
    rewards = Rewards(settings, main, [second])

    raw = rewards.raw(rollout)
    shaped = rewards.shape(raw, rollout)

    by_hand = [
        reward_scores(source.model, make_tokenizer(), rollout.prompts_ids, rollout.responses_ids)
        for source in (main, second)
    ]
    assert rewards.names == ["main", "second"]
    torch.testing.assert_close(raw, torch.stack(by_hand))
    a, b = (by_hand[0] - 0.5) / 2.0, (by_hand[1] - 1.0) / 3.0
    torch.testing.assert_close(shaped.scores, (a + b) / 2 - 0.3 * ((a - b) / 2) ** 2)
    torch.testing.assert_close(rewards.raw(rollout, [3, 1]), raw[:, [3, 1]])


def test_sources_must_be_those_that_the_settings_name() -> None:
    settings = _settings(sources=[SECOND])

    with pytest.raises(InputError, match="the settings name second, given are none"):
        Rewards(settings, _model(MAIN, 1))
    with pytest.raises(InputError, match="the settings name second, given are third"):
        Rewards(settings, _model(MAIN, 1), [_model("third", 2)])


def test_a_further_model_that_gives_nan_is_named() -> None:
    second = _model("second", 2)
    with torch.no_grad():
        second.model.score.weight.fill_(math.nan)  # pyright: ignore

    with pytest.raises(NotFiniteError, match="rewards of the 'second' reward model"):
        Rewards(_settings(sources=[SECOND]), _model(MAIN, 1), [second]).raw(_make_rollout())


# --- the trainer -----------------------------------------------------------------------------------------------------

SOURCES = [
    {"name": "second", "reward_model": "x", "role": "ensemble", "normalise": "running"},
    {"name": "dogs", "rule": "x:y", "weight": 0.5, "normalise": "running"},
    {"name": "safe", "rule": "x:z", "role": "safety"},
]
ALL = {
    "normalise": "running",
    "sources": SOURCES,
    "ensemble": "min",
    "safety": {"threshold": -0.3, "unit": "raw"},
}


def _dogs(prompts: list[RulePrompt], responses: list[RuleResponse]) -> list[float]:
    return [float(response.text.count("dog")) for response in responses]


def _no_cats(prompts: list[RulePrompt], responses: list[RuleResponse]) -> list[float]:
    return [-response.text.count("cat") / max(1, len(response.ids)) for response in responses]


def _make_trainer(**reward: Any) -> PPOTrainer:
    settings = make_settings(reward=reward or ALL)
    further: list[RewardSource] = [
        _model("second", 2),
        RuleReward("dogs", _dogs, make_tokenizer()),
        RuleReward("safe", _no_cats, make_tokenizer()),
    ]
    return PPOTrainer(
        make_models(settings),
        make_reward_model(),
        make_tokenizer(),
        make_prompts(),
        settings=settings,
        seed=0,
        further_rewards=further,
    )


def test_history_has_every_reward_overall_and_by_slice() -> None:
    trainer = _make_trainer()
    rollout = trainer.rollout()
    dogs = _dogs([], [RuleResponse(make_tokenizer().decode(ids), ids, True) for ids in rollout.responses_ids])
    trainer = _make_trainer()

    row = trainer.step()

    assert row["reward/dogs"] == pytest.approx(sum(dogs) / len(dogs))
    assert set(row) >= {"reward/second", "reward/safe", "ensemble_variance", "safety_override_share"}
    for name in ("reward/dogs", "reward/second", "safety_override_share"):
        weighed = sum(figures["n"] * figures[name] for figures in row["slices"].values()) / row["episodes"]
        assert weighed == pytest.approx(row[name], abs=1e-6)
    metrics = metrics_of_row(row)
    assert metrics["reward/second"] == row["reward/second"]
    assert metrics["slice/odd/reward/dogs"] == row["slices"]["odd"]["reward/dogs"]


def test_reward_mean_stays_the_main_reward_models() -> None:
    several, one = _make_trainer(), _make_trainer_of_one()

    rows = [trainer.step() for trainer in (several, one)]

    assert rows[0]["reward_mean"] == rows[1]["reward_mean"]
    assert rows[0]["score_mean"] != rows[1]["score_mean"]
    assert not [name for name in rows[1] if name.startswith("reward/") or name == "safety_override_share"]


def _make_trainer_of_one() -> PPOTrainer:
    settings = make_settings(reward={"normalise": "running"})
    return PPOTrainer(
        make_models(settings), make_reward_model(), make_tokenizer(), make_prompts(), settings=settings, seed=0
    )


def test_a_resumed_training_ends_bit_for_bit_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = _make_trainer()
    whole.train()
    first = _make_trainer()
    first.train(store=CheckpointStore(tmp_path, {}), stop_requested=lambda: first.updates == 2)

    resumed = _make_trainer()
    state = load_latest(CheckpointStore(tmp_path, {}))
    assert state is not None
    assert set(state.progress["reward_moments"]) == {"main", "second", "dogs", "safe"}
    assert state.progress["reward_moments"]["dogs"]["count"] == 16
    resumed.load_state(state)
    resumed.train()

    assert resumed.rewards.state_dict() == whole.rewards.state_dict()
    assert _without_times(resumed.history) == _without_times(whole.history)
    theirs = whole.models.policy_parameters()
    assert all(torch.equal(value, theirs[name]) for name, value in resumed.models.policy_parameters().items())


def test_training_follows_a_rule() -> None:
    reward = {**RAW, "weight": 0.0, "sources": [{"name": "dogs", "rule": "x:y"}]}
    settings = make_settings(steps=12, episodes_per_step=32, reward=reward, kl={"control": "off"})
    trainer = PPOTrainer(
        make_models(settings),
        make_reward_model(),
        make_tokenizer(),
        make_prompts(),
        settings=settings,
        seed=0,
        further_rewards=[RuleReward("dogs", _dogs, make_tokenizer())],
    )

    trainer.train()

    paid = [row["reward/dogs"] for row in trainer.history]
    assert np.mean(paid[-3:]) > np.mean(paid[:3]) + 1.0


def _without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if key not in ("seconds", "tokens_per_second")} for row in history]


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def rule_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of a user, `my_reward_rules`."""
    folder = tmp_path / "users"
    folder.mkdir()
    (folder / "my_reward_rules.py").write_text(
        "def dogs(prompts, responses):\n    return [float(response.text.count('dog')) for response in responses]\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_reward_rules", raising=False)
    return folder / "my_reward_rules.py"


def _write_reward_model(folder: Path, *, seed: int, words: Sequence[str] = (), **scale: Any) -> str:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(words))
    with write_artifact(folder, "reward_model", stage="reward_model") as draft:
        save_reward_model(make_reward_model(seed=seed), tokenizer, draft.path)
        write_json(draft.path / "reward.json", {"mean": 0.1, "std": 0.5, "slope": 1.0} | scale)
    return str(folder)


def _stage_arguments(folder: Path, *, reward_model: str, **reward: Any) -> dict[str, Any]:
    sources = [
        {"name": "second", "reward_model": reward_model, "role": "ensemble"},
        {"name": "dogs", "rule": "my_reward_rules:dogs", "weight": 0.5},
    ]
    return run_arguments(folder, reward={"sources": sources, "ensemble": "min"} | reward)


def test_a_stage_with_a_rule_and_another_model_says_what_it_rested_on(tmp_path: Path, rule_module: Path) -> None:
    arguments = _stage_arguments(tmp_path, reward_model=_write_reward_model(tmp_path / "second", seed=5))

    run(**arguments)

    history = read_artifact(arguments["output_history"], "training_history")
    rows = list(read_jsonl(history.file("history.jsonl")))
    assert all(math.isfinite(row["reward/second"]) and row["reward/dogs"] >= 0.0 for row in rows)
    for output, kind in (("output_policy", "policy"), ("output_checkpoints", "policy_checkpoints")):
        inputs = read_artifact(arguments[output], kind).manifest["inputs"]
        assert inputs == history.manifest["inputs"]
        assert inputs["reward/second"] == read_artifact(tmp_path / "second", "reward_model").digest
        assert inputs["reward/dogs"] == plug_in_digest(["my_reward_rules:dogs"])
    assert json.dumps(read_json(history.file("summary.json")))


@pytest.mark.parametrize("changed", ["rule", "model"])
def test_a_checkpoint_under_other_rewards_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule_module: Path, changed: str
) -> None:
    monkeypatch.setenv("PLUMBLINE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    arguments = _stage_arguments(tmp_path, reward_model=_write_reward_model(tmp_path / "second", seed=5))
    started: list[int] = []

    def stop_at_second(stage: str, step: int, *_: Any, **fields: Any) -> None:
        started.append(step)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ppo_stage, "report", stop_at_second)
    for attempt in range(3):
        if attempt == 2 and changed == "rule":
            rule_module.write_text(rule_module.read_text() + "# stricter\n")
        elif attempt == 2:
            _write_reward_model(tmp_path / "second", seed=6)
        with pytest.raises(KeyboardInterrupt):
            run(**arguments)

    assert started == [1, 2, 2, 1, 2]
    stores = [path / "resume" for path in (tmp_path / "checkpoints").iterdir()]
    identity = read_json(next(stores[0].glob("step-*")) / "manifest.json")["identity"]
    name = "second" if changed == "model" else "dogs"
    with pytest.raises(CheckpointMismatchError, match=f"inputs.reward/{name}"):
        load_latest(CheckpointStore(stores[1], identity))


def test_a_further_reward_model_of_another_vocabulary_is_refused(tmp_path: Path, rule_module: Path) -> None:
    other = _write_reward_model(tmp_path / "second", seed=5, words=["hund"])

    with pytest.raises(InputError, match="policy and reward model 'second' have different vocabularies"):
        run(**_stage_arguments(tmp_path, reward_model=other))


def test_a_damaged_or_absent_further_reward_model_is_refused(tmp_path: Path, rule_module: Path) -> None:
    second = _write_reward_model(tmp_path / "second", seed=5)
    (tmp_path / "second" / "reward.json").write_text('{"mean": 0.0, "std": 9.0}')

    with pytest.raises(ArtifactError, match=r"'reward\.json' was altered"):
        run(**_stage_arguments(tmp_path, reward_model=second))
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        run(**_stage_arguments(tmp_path, reward_model=str(tmp_path / "absent")))
    with pytest.raises(ArtifactError, match="expected reward_model"):
        run(**_stage_arguments(tmp_path, reward_model=str(tmp_path / "dataset")))


def test_the_model_that_judges_over_optimisation_is_not_optimised(tmp_path: Path, rule_module: Path) -> None:
    heldout = _write_reward_model(tmp_path / "second", seed=5, train_split="divergence")

    with pytest.raises(InputError, match="'second' was trained on the divergence split"):
        run(**_stage_arguments(tmp_path, reward_model=heldout))


def test_a_further_reward_model_without_spread_is_refused(tmp_path: Path, rule_module: Path) -> None:
    flat = _write_reward_model(tmp_path / "second", seed=5, std=0.0)

    with pytest.raises(ArtifactError, match="positive std"):
        run(**_stage_arguments(tmp_path, reward_model=flat))


def test_a_rule_that_fails_stops_the_stage_and_leaves_no_output(tmp_path: Path, rule_module: Path) -> None:
    rule_module.write_text("def dogs(prompts, responses):\n    return [float('nan')] * len(responses)\n")
    arguments = _stage_arguments(tmp_path, reward_model=_write_reward_model(tmp_path / "second", seed=5))

    with pytest.raises(RewardRuleError, match=r"rule 'dogs' \(my_reward_rules:dogs\): gave nan at prompt '\d+'"):
        run(**arguments)
    assert not Path(arguments["output_policy"]).exists()


def test_a_safety_slice_that_no_prompt_has_is_refused(tmp_path: Path, rule_module: Path) -> None:
    sources = [{**SAFE, "reward_model": _write_reward_model(tmp_path / "safe", seed=5), "normalise": "reward_model"}]

    with pytest.raises(InputError, match=r"no training prompt is of slice 'evn'.*The slices are even, odd"):
        run(**run_arguments(tmp_path, reward={"sources": sources, "safety": {"slices": ["evn"]}}))


def test_settings_survive_their_way_through_the_pipeline(tmp_path: Path, rule_module: Path) -> None:
    from components.ppo.settings import PPOSettings
    from components.shared.settings import as_parameter, parse_settings

    settings = make_settings(reward=ALL)

    assert parse_settings(as_parameter(settings), PPOSettings, where="ppo") == settings
