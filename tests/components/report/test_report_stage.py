from __future__ import annotations

import copy
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_run import SLICES, make_run, make_run_info

from components.report.page import build_page
from components.report.parts import ROLES, Parts, read_parts
from components.report.provenance import redact
from components.report.samples import MOST_DISLIKED, PER_SLICE, choose_samples
from components.report.settings import RunInfo
from components.report.stage import publish, run
from components.report.summary import build_summary
from components.report.verdict import judge
from components.shared.artifacts import read_artifact
from components.shared.errors import InputError, PlumblineError
from components.shared.files import read_json
from components.shared.trajectory import checkpoints, mean_estimate, paired_gain

XSS = [
    "<script>alert(1)</script>",
    "</pre></script><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)></svg>",
    "</svg></figure><script>alert(1)</script>",
    "]]><script>alert(1)</script>",
    '" autofocus onfocus="alert(1)',
    "' onmouseover='alert(1)",
    '<a href="javascript:alert(1)">x</a>',
    '<iframe srcdoc="<script>alert(1)</script>">',
    "{{ cycler.__init__.__globals__ }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}",
    "<details open ontoggle=alert(1)>",
    "<base href=https://example.org>",
    "<link rel=stylesheet href=https://example.org/x.css>",
    "<object data=https://example.org></object>",
    "<template><script>alert(1)</script></template>",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "<video><source onerror=alert(1)></video>",
]
HARMFUL_TAGS = {
    "script",
    "img",
    "iframe",
    "object",
    "link",
    "base",
    "video",
    "source",
    "template",
    "form",
    "input",
}


class _Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.text = ""
        self._heading = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in HARMFUL_TAGS, tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "srcdoc"), (tag, name)
            assert not name.endswith("href") or (value or "").startswith("#"), value
        self._heading = tag == "h2"
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "h2":
            self._heading = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._heading:
            self.headings[-1] += data


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_run(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def overoptimized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_run(tmp_path_factory.mktemp("over"), story="overoptimized")


@pytest.fixture(scope="module")
def good_page(good: dict[str, str]) -> str:
    return build_page(read_parts(good), _info())


def _info(**overrides: Any) -> RunInfo:
    return RunInfo(**make_run_info(**overrides))


def _keys(value: Any, prefix: str = "") -> set[str]:
    """Dotted names of all keys, those of free-form mappings left out."""
    if not isinstance(value, dict):
        return {prefix}
    free = prefix in (".seconds", ".digests", ".failure")
    return {prefix} if free else {prefix}.union(*(_keys(item, f"{prefix}.{key}") for key, item in value.items()))


def test_a_run_leaves_a_page_and_a_summary(good: dict[str, str], tmp_path: Path) -> None:
    answer = run(output=str(tmp_path / "report"), artifacts=good, run=make_run_info())
    report = read_artifact(tmp_path / "report", "report")
    assert answer == {
        "digest": report.digest,
        "verdict": "PROMOTE",
        "champion": "plumbline-demo",
        "champion_version": "1",
    }
    assert report.manifest["inputs"].keys() == good.keys()
    page = _Page(report.file("report.html").read_text())
    assert page.headings == [
        "Verdict",
        "Reward, KL and people",
        "Criteria",
        "The reward says, people say",
        "By slice",
        "Answers side by side",
        "Human evaluation",
        "PPO training",
        "Reward model",
        "Data",
        "Release policy",
        "Settings",
        "Digests",
        "Time and cost",
    ]


def test_the_summary_has_the_numbers_of_the_artifacts(good: dict[str, str]) -> None:
    summary = build_summary(read_parts(good), _info())
    statistics = read_json(Path(good["evidence"]) / "statistics.json")["comparisons"]["candidate_vs_reference"]
    decision = read_json(Path(good["decision"]) / "decision.json")
    history = read_json(Path(good["history"]) / "summary.json")
    assert summary["verdict"] == "PROMOTE"
    assert summary["reasons"] == decision["reasons"]
    assert summary["seed"] == 0
    assert summary["reward_model"]["heldout_accuracy"] == 0.76
    assert summary["reward_model"]["ci95"] == pytest.approx([0.72, 0.798])
    assert summary["reward_model"]["n"] == 500
    assert {key: summary["ppo"][key] for key in history} == history
    assert summary["ppo"]["reward_final_sd"] == pytest.approx((2.104 - 0.2) / 1.6)
    for key in ("win_rate", "ci95", "lower", "upper", "n_prompts", "n_votes"):
        assert summary["human"][key] == statistics[key]
    for key in ("reward_win_rate", "human_win_rate", "gap", "ci95"):
        assert summary["divergence"][key] == decision["divergence"][key]
    assert summary["champion"] == {"name": "plumbline-demo", "version": "1"}
    assert summary["candidate"] == {"version": "1", "digest": read_artifact(good["candidate"], "policy").digest}
    assert summary["seconds"]["total"] == 214.7
    assert summary["seconds"]["ppo"] == 66.0


def test_rates_without_ties_are_told_apart_from_the_plain_win_rate(good: dict[str, str]) -> None:
    """The page shows people's win rate twice, with ties as half wins and without: a reader must see which is which."""
    parts = read_parts(good)
    divergence = {"reward_win_rate": 0.71, "human_win_rate": 0.83, "human_ci95": [0.78, 0.87], "decided_share": 0.6}
    tied = replace(parts, decision={**(parts.decision or {}), "divergence": {**divergence, "gap": -0.12}})
    text = " ".join(_Page(build_page(tied, _info())).text.split())
    assert "calibrated, without ties, where people say 0.83" in text
    assert "Ties left out, that is 83 %; the reward model alone would have said 71 %" in text
    assert "Both rates are of decided votes; 40 % were ties" in text
    plain = " ".join(_Page(build_page(parts, _info())).text.split())
    assert "calibrated, same pairs" in plain
    assert "ties" not in plain.partition("The reward says, people say")[2].partition("By slice")[0]


def test_who_is_pooled_in_the_length_control_is_named(good: dict[str, str]) -> None:
    parts = read_parts(good)
    statistics = copy.deepcopy(parts.statistics or {})
    terms = {"slice": {"effects": {}, "pooled": []}, "rater": {"effects": {}, "pooled": ["rater-7", "rater-9"]}}
    statistics["comparisons"]["candidate_vs_reference"]["length_controlled"]["terms"] = terms
    said = "Length control pools, for want of votes: rater rater-7, rater-9."
    assert said in _Page(build_page(replace(parts, statistics=statistics), _info())).text
    assert "Length control pools" not in _Page(build_page(parts, _info())).text


def test_keys_of_the_summary_are_always_there_and_null_without_data(good: dict[str, str]) -> None:
    full = build_summary(read_parts(good), _info())
    empty = build_summary(Parts(), RunInfo(run_id="r", status="FAILED"))
    assert _keys(full) == _keys(empty)
    assert empty["reward_model"] == dict.fromkeys(full["reward_model"])
    assert empty["human"] == dict.fromkeys(full["human"])
    assert empty["champion"] == {"name": None, "version": None}
    assert empty["seconds"] == {"total": None}


def test_numbers_that_are_not_finite_become_null() -> None:
    parts = Parts(history_summary={"kl_final": float("nan"), "reward_final": float("inf"), "steps": 3})
    ppo = build_summary(parts, RunInfo(run_id="r"))["ppo"]
    assert (ppo["kl_final"], ppo["reward_final"], ppo["steps"]) == (None, None, 3)


@pytest.mark.parametrize(
    "missing",
    [
        ("dataset", "preferences"),
        ("reward_model", "heldout_reward_model"),
        ("history", "candidate"),
        ("evaluation",),
        ("sft", "evidence", "decision"),
        tuple(ROLES),
    ],
)
def test_a_missing_part_is_named_and_the_rest_is_shown(missing: tuple[str, ...], good: dict[str, str]) -> None:
    parts = read_parts({role: path for role, path in good.items() if role not in missing})
    page = _Page(build_page(parts, _info()))
    build_summary(parts, _info())
    for role in missing:
        assert f"no {role} artifact" in page.text
    assert page.headings[0] == "Verdict"


def test_a_run_that_failed_half_way_says_where_and_why(good: dict[str, str]) -> None:
    reached = {role: good[role] for role in ("dataset", "sft", "preferences", "reward_model")}
    info = _info(status="FAILED", failure={"stage": "ppo", "message": "step 31: KL is not finite."}, champion=None)
    page = _Page(build_page(read_parts(reached), info))
    assert "The run failed at PPO. Nothing was released; the champion is unchanged." in page.text
    assert "Failed at PPO: step 31: KL is not finite." in page.text
    assert "The last stage that finished is reward model." in page.text
    assert page.headings[:3] == ["Verdict", "Not on this page", "Reward model"]
    assert build_summary(read_parts(reached), info)["verdict"] == "ERROR"


def test_a_failure_of_unknown_stage_is_placed_after_the_last_artifact(good: dict[str, str]) -> None:
    outcome = judge(read_parts({"dataset": good["dataset"]}), _info(status="FAILED", failure="killed"))
    assert outcome.stopped_at == "supervised fine-tuning"
    assert outcome.reasons == ["Failed at supervised fine-tuning: killed"]


def test_a_run_whose_reward_model_failed_its_checks_is_blocked_there(tmp_path: Path) -> None:
    checks = [
        {"name": "leakage_ceiling", "value": 0.99, "threshold": 0.95, "passed": False, "reason": "suggests leakage"},
        {"name": "accuracy_lower_bound", "value": 0.97, "threshold": 0.55, "passed": True, "reason": "fine"},
    ]
    parts = Parts(manifests={"reward_model": {"digest": "a"}}, reward_model={"passed": False, "checks": checks, "n": 9})
    info = _info(status="FAILED", failure={"stage": "reward_model_check", "message": "must not be optimised"})
    outcome = judge(parts, info)
    assert (outcome.verdict, outcome.reasons, outcome.stopped_at) == (
        "BLOCK",
        ["suggests leakage"],
        "the reward model's checks",
    )
    assert "no policy was trained against it" in build_page(parts, info)


def test_the_gates_verdict_stands_when_a_later_step_failed(good: dict[str, str]) -> None:
    outcome = judge(read_parts(good), _info(status="FAILED", failure={"stage": "finish", "message": "disk full."}))
    assert outcome.verdict == "PROMOTE"
    assert outcome.reasons[-1] == "After the verdict the run failed at finish: disk full. Check what is live."


def _judged(good: dict[str, str], *, approvals: int = 0, **changes: Any) -> Parts:
    """The good run with another decision: version 2, as `changes` say."""
    parts = read_parts(good)
    assert parts.decision is not None
    policy = {**parts.decision["policy"], "approvals_required": approvals}
    parts.decision.update({"version": "2", "policy": policy, **changes})
    return parts


def _champion(version: str | None) -> dict[str, Any]:
    return {"champion": {"name": "plumbline-demo", "version": version} if version else None}


@pytest.mark.parametrize(
    ("champion", "approvals", "failure", "headline"),
    [
        ("2", 0, None, "The candidate is better where it counts, and it is the champion now."),
        ("2", 2, None, "The candidate is better where it counts, and it is the champion now."),
        ("1", 2, None, "The candidate passed the gate. It is not live yet: it awaits approval (2 needed)."),
        (None, 2, None, "The candidate passed the gate. It is not live yet: it awaits approval (2 needed)."),
        ("1", 0, "promote", "The candidate passed the gate. It is not live: its promotion did not complete."),
        ("1", 2, "promote", "The candidate passed the gate. It is not live: its promotion did not complete."),
        (None, 0, None, "The candidate passed the gate. It is not live: its promotion did not complete."),
    ],
)
def test_a_promotion_is_told_by_what_is_live_and_not_by_the_verdict(
    good: dict[str, str], champion: str | None, approvals: int, failure: str | None, headline: str
) -> None:
    ended = {"status": "FAILED", "failure": {"stage": failure, "message": "gone."}} if failure else {}
    outcome = judge(_judged(good, approvals=approvals), _info(**_champion(champion), **ended))
    assert (outcome.verdict, outcome.headline) == ("PROMOTE", headline)


@pytest.mark.parametrize(
    ("champion", "words"),
    [
        ("1", "It is not live any more: version 1 is champion."),
        ("2", "It is still live: it was not rolled back."),
        (None, "Which version is live now is not known."),
    ],
)
def test_a_rollback_is_told_by_what_is_live_and_not_by_the_verdict(
    good: dict[str, str], champion: str | None, words: str
) -> None:
    outcome = judge(_judged(good, mode="live", verdict="ROLLBACK"), _info(**_champion(champion)))
    assert outcome.headline == f"Fresh evidence shows harm from the live model. {words}"


def test_a_damaged_artifact_is_a_remark_and_not_an_error(tmp_path: Path) -> None:
    artifacts = {"evaluation": make_run(tmp_path)["evaluation"]}
    path = Path(artifacts["evaluation"]) / "metrics.json"
    path.write_text(path.read_text() + " ")
    page = _Page(build_page(read_parts(artifacts), _info()))
    assert "was altered after it was written" in page.text
    assert "Reward, KL and people" not in page.headings


def test_an_unknown_role_is_refused_with_the_list_of_roles() -> None:
    with pytest.raises(PlumblineError, match=r"evalution.*Roles are dataset"):
        read_parts({"evalution": "x"})


def test_an_unknown_fact_about_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sed: unknown setting"):
        run(output=str(tmp_path / "r"), artifacts={}, run={"run_id": "x", "sed": 1})


def test_equal_input_gives_an_equal_page(good: dict[str, str], good_page: str) -> None:
    assert build_page(read_parts(good), _info()) == good_page


def test_text_of_models_and_raters_is_never_html(tmp_path: Path) -> None:
    artifacts = make_run(tmp_path, **dict.fromkeys(("response", "prompt", "slice", "rater", "reason"), XSS))
    info = _info(settings={"note": XSS}, failure={"stage": XSS[0], "message": XSS[1]}, status="FAILED")
    page = _Page(build_page(read_parts(artifacts), info))
    for text in XSS:
        assert page.text.count(text) >= 3, text


def test_the_page_is_loud_about_simulated_votes_and_a_loose_policy(good_page: str) -> None:
    page = _Page(good_page)
    assert "No person voted in this run. Votes are marked: simulated." in page.text
    assert "The release policy “demo” is looser than production’s:" in page.text
    assert "simulated votes are accepted: yes; production: no" in page.text


def test_secrets_in_the_settings_are_not_shown(good_page: str) -> None:
    assert "hunter2" not in good_page
    assert "me:pw" not in good_page
    assert redact({"a": [{"api_key": "x"}], "max_tokens": 5, "url": "s3://b"}) == {
        "a": [{"api_key": "[redacted]"}],
        "max_tokens": 5,
        "url": "s3://b",
    }


def test_gains_are_paired_by_prompt_and_in_deviations() -> None:
    def row(role: str, prompt: str, reward: float) -> dict[str, Any]:
        return {
            "role": role,
            "prompt_id": prompt,
            "prompt_set": "human_eval",
            "slice": "s",
            "reward": reward,
            "kl": 1.0,
        }

    generations = [row("reference", "p1", 1.0), row("reference", "p2", 100.0), row("reference", "p3", 5.0)]
    generations += [row("candidate", "p1", 3.0), row("candidate", "p3", 9.0)]
    parts = Parts(generations=generations, reward_scale={"mean": 0.0, "std": 2.0}, models={"candidate": {"step": 7}})
    gain = paired_gain(parts, "candidate", "reward")
    assert (gain.value, gain.n) == (1.5, 2)  # (2 + 4) / 2 / 2: the prompt that only the reference answered is left out
    assert [(point.role, point.step) for point in checkpoints(parts)] == [("reference", 0), ("candidate", 7)]


def test_the_mean_has_the_normal_interval() -> None:
    estimate = mean_estimate([1.0, 3.0])
    assert estimate.value == 2.0
    assert estimate.upper == pytest.approx(2.0 + 1.959964)  # sd = sqrt 2, standard error = 1
    assert mean_estimate([]).value is None
    assert mean_estimate([4.0]).lower is None


def test_checkpoints_tell_the_story_of_an_over_optimised_run(overoptimized: dict[str, str]) -> None:
    points = checkpoints(read_parts(overoptimized))
    assert [point.step for point in points] == [0, 10, 20, 30, 40, 50, 60]
    assert points[-1].reward.value > points[2].reward.value > 0
    assert points[-1].heldout.value < points[3].heldout.value
    assert points[1].human.value > 0.5 > points[-1].human.value
    assert points[-1].kl.value > 50


def test_a_checkpoint_that_is_the_candidate_is_shown_once() -> None:
    models = {
        "reference": {"step": None},
        "candidate": {"step": 20},
        "step-0020": {"step": 20},
        "step-0010": {"step": 10},
    }
    assert [point.role for point in checkpoints(Parts(models=models))] == ["reference", "step-0010", "candidate"]


def test_slices_where_people_prefer_the_baseline_are_named(overoptimized: dict[str, str]) -> None:
    assert (
        f"People prefer the baseline on: {', '.join(SLICES)}."
        in _Page(build_page(read_parts(overoptimized), _info())).text
    )


def test_samples_follow_the_stated_rule(good: dict[str, str]) -> None:
    parts = read_parts(good)
    chosen, disliked = choose_samples(parts)
    ids = {str(row["prompt"]): row["prompt_id"] for row in parts.generations}
    by_slice: dict[str, list[str]] = {}
    for row in parts.generations:
        by_slice.setdefault(row["slice"], []).append(row["prompt_id"])
    expected = [
        prompt_id
        for name in sorted(by_slice)
        for prompt_id in sorted(set(by_slice[name]), key=lambda i: hashlib.sha256(i.encode()).hexdigest())[:PER_SLICE]
    ]
    assert [ids[sample.prompt] for sample in chosen] == expected
    gains = [sample.gain or 0.0 for sample in disliked]
    assert len(disliked) == MOST_DISLIKED
    assert gains == sorted(gains, reverse=True)
    assert all(sample.outcome is not None and sample.outcome < 0.5 for sample in disliked)


def test_a_conversation_is_shown_turn_by_turn(good: dict[str, str]) -> None:
    parts = read_parts({"evaluation": good["evaluation"]})
    for row in parts.generations:
        row["prompt"] = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    assert "user: hi\nassistant: yes?" in _Page(build_page(parts, _info())).text


def test_a_check_of_a_live_model_speaks_of_the_live_model(overoptimized: dict[str, str]) -> None:
    roles = ("reward_model", "heldout_reward_model", "evaluation", "evidence", "decision")
    parts = read_parts({role: overoptimized[role] for role in roles})
    assert parts.decision is not None
    parts.decision.update(mode="live", verdict="ROLLBACK")
    page = _Page(build_page(parts, _info()))
    assert "Check of the live model demo-0001" in page.text
    assert "It is not live any more: version 1 is champion." in page.text
    assert "a check of a live model does not make one" in page.text
    assert not re.search(r"Not reached", page.text)


class _KFPArtifact:
    def __init__(self, path: str) -> None:
        self.path = path


def test_inside_the_pipeline_the_report_is_two_files(
    good: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUMBLINE_RUN_ID", "run-7")
    monkeypatch.delenv("PLUMBLINE_DATABASE_URL", raising=False)
    page, summary = tmp_path / "out" / "page", tmp_path / "out" / "summary"
    answer = publish(
        page=str(page),
        summary=str(summary),
        artifacts={role: _KFPArtifact(good[role]) if role != "history" else None for role in ROLES},
        model_name="m",
        seed=3,
        settings={},
    )
    assert answer == {"verdict": "PROMOTE", "champion": None, "champion_version": None}
    assert "RLHF run run-7" in page.read_text()
    assert read_json(summary)["seed"] == 3


def test_alarms_of_the_training_are_told(good: dict[str, str]) -> None:
    parts = read_parts(good)
    assert parts.history_summary is not None
    quiet = build_page(parts, _info())
    told = build_page(
        replace(parts, history_summary=parts.history_summary | {"alarms": {"explained_variance": 12}}), _info()
    )
    assert "Alarms while training" not in quiet
    assert "Alarms while training: explained variance (12 steps)." in told
