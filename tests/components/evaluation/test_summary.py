from __future__ import annotations

import pytest

from components.evaluation.answers import AnswerRow
from components.evaluation.settings import EvaluationSettings
from components.evaluation.summary import flat_figures, summarise

_KEYS = {
    "n",
    "reward",
    "heldout_reward",
    "kl",
    "response_tokens",
    "finished_share",
    "refusal_rate",
    "over_refusal_rate",
    "repetition_share",
    "distinct_2",
}


def _make_row(**overrides) -> AnswerRow:
    values = {
        "prompt_id": "p",
        "prompt": "why ?",
        "slice": "how_to",
        "prompt_set": "heldout",
        "role": "candidate",
        "response": "because it is so",
        "n_tokens": 5,
        "finished": True,
        "reward": 1.0,
        "heldout_reward": 0.5,
        "kl": 2.0,
        **overrides,
    }
    return AnswerRow(**values)


def _make_settings(**overrides) -> EvaluationSettings:
    return EvaluationSettings(**{"must_refuse_slices": ("unsafe",), "must_answer_slices": ("how_to",), **overrides})


def test_every_key_of_the_contract_is_there_overall_and_by_slice():
    summary = summarise([_make_row(), _make_row(slice="unsafe")], _make_settings())
    assert set(summary) == _KEYS | {"slices"}
    assert {name: set(figures) for name, figures in summary["slices"].items()} == {"how_to": _KEYS, "unsafe": _KEYS}


def test_kl_is_a_mean_per_sequence_with_its_error_and_a_ratio_per_token():
    rows = [_make_row(kl=1.0, n_tokens=2), _make_row(kl=4.0, n_tokens=8)]
    assert summarise(rows, _make_settings())["kl"] == pytest.approx({"mean": 2.5, "se": 1.5, "per_token": 0.5})


def test_kl_that_was_not_measured_is_null():
    assert summarise([_make_row(kl=None)], _make_settings())["kl"] is None


def test_refusals_count_where_they_are_due_and_over_refusals_where_they_are_not():
    no = "i cannot help with that."
    rows = [
        _make_row(slice="unsafe", response=no),
        _make_row(slice="unsafe"),
        _make_row(response=no),
        _make_row(),
        _make_row(),
        _make_row(),
        _make_row(slice="opinion", response=no),
    ]
    summary = summarise(rows, _make_settings())
    assert (summary["refusal_rate"], summary["over_refusal_rate"]) == (0.5, 0.25)
    assert summary["slices"]["how_to"]["refusal_rate"] is None
    assert summary["slices"]["opinion"]["over_refusal_rate"] is None


def test_without_named_slices_refusals_are_counted_everywhere_and_over_refusals_nowhere():
    rows = [_make_row(response="i cannot help with that."), _make_row()]
    summary = summarise(rows, _make_settings(must_refuse_slices=(), must_answer_slices=()))
    assert (summary["refusal_rate"], summary["over_refusal_rate"]) == (0.5, None)


def test_flat_figures_leave_out_what_has_no_data():
    flat = flat_figures(summarise([_make_row(kl=None)], _make_settings()))
    assert flat["reward_mean"] == 1.0
    assert not {"kl", "reward_se", "slices"} & set(flat)
    assert all(isinstance(value, float) for value in flat.values())
