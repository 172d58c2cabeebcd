from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from components.shared.errors import InputError
from components.shared.hf_checkpoints import TrainingFolder
from components.shared.hf_training import (
    EXIT_TERMINATED,
    EpochSampler,
    fit_answer,
    graceful_termination,
    lora_config,
    training_arguments,
    weights_dtype,
)
from components.shared.training_settings import JointTrainingSettings, TrainingSettings


def make_settings(**overrides: Any) -> TrainingSettings:
    return TrainingSettings(**({"epochs": 1, "learning_rate": 1e-3, "max_tokens": 8} | overrides))


lengths_strategy = st.lists(st.integers(1, 50), min_size=1, max_size=300)


@given(lengths=lengths_strategy, batch_size=st.integers(1, 17), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_an_epoch_holds_every_example_once(lengths, batch_size, seed, epoch):
    sampler = EpochSampler(lengths, batch_size, seed)
    sampler.set_epoch(epoch)
    assert sorted(sampler) == list(range(len(lengths)))
    assert len(sampler) == len(lengths)


@given(lengths=lengths_strategy, batch_size=st.integers(1, 17), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_the_order_depends_on_seed_and_epoch_and_on_no_global_state(lengths, batch_size, seed, epoch):
    first, second = EpochSampler(lengths, batch_size, seed), EpochSampler(lengths, batch_size, seed)
    first.set_epoch(epoch)
    second.set_epoch(epoch)
    torch.manual_seed(1)
    before = list(first)
    torch.manual_seed(2)
    assert list(second) == before


def test_epochs_differ_and_seeds_differ():
    lengths = [i % 7 for i in range(200)]
    orders = set()
    for seed in (0, 1):
        sampler = EpochSampler(lengths, 8, seed)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 4


def test_batches_are_of_like_length_and_not_ordered_by_it():
    lengths = torch.randint(1, 100, (1600,), generator=torch.Generator().manual_seed(0)).tolist()
    ordered = [lengths[i] for i in EpochSampler(lengths, 16, 0)]
    batches = [ordered[start : start + 16] for start in range(0, len(ordered), 16)]
    padding = sum(max(batch) * len(batch) - sum(batch) for batch in batches) / sum(lengths)
    assert padding < 0.05
    longest = [max(batch) for batch in batches]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_an_answer_that_fits_is_left_alone():
    assert fit_answer([1, 2, 3], [4, 5, 6, 7, 0], make_settings(), where="x") == ([4, 5, 6, 7, 0], False)


def test_an_answer_that_does_not_fit_loses_its_end():
    assert fit_answer([1, 2, 3], [4, 5, 6, 7, 8, 0], make_settings(), where="x") == ([4, 5, 6, 7, 8], True)


def test_an_answer_that_does_not_fit_is_an_error_when_asked_for():
    with pytest.raises(InputError, match=r"record 'a'.*9 tokens.*max_tokens 8"):
        fit_answer([1, 2, 3], [4] * 6, make_settings(overlong="error"), where="record 'a'")


def test_a_prompt_without_room_for_an_answer_is_always_an_error():
    with pytest.raises(InputError, match="no room"):
        fit_answer([1] * 8, [4], make_settings(), where="x")


def test_sigterm_outside_of_training_exits_at_once_with_the_status_of_a_terminated_process():
    with pytest.raises(SystemExit) as exit_info, graceful_termination():
        os.kill(os.getpid(), signal.SIGTERM)
    assert exit_info.value.code == EXIT_TERMINATED == 143


def test_sigterm_in_training_waits_for_the_step_and_a_second_one_does_not():
    with graceful_termination() as termination:
        termination.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert termination.requested
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_previous_handler_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    with graceful_termination():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="the defaults of a CPU")
def test_on_a_cpu_nothing_is_bfloat16(tmp_path):
    arguments = training_arguments(make_settings(), folder=TrainingFolder(tmp_path, durable=False), seed=0)
    assert arguments["bf16"] is False
    assert arguments["activation_checkpointing"] is False
    assert weights_dtype(make_settings()) == torch.float32


def test_nothing_is_reported_and_no_nan_is_hidden(tmp_path):
    arguments = training_arguments(make_settings(), folder=TrainingFolder(tmp_path, durable=True), seed=0)
    assert arguments["report_to"] == "none"
    assert arguments["logging_nan_inf_filter"] is False


def test_full_fine_tuning_has_no_adapter():
    assert lora_config(make_settings(parameterisation="full"), task_type="CAUSAL_LM") is None
    assert lora_config(make_settings(), task_type="SEQ_CLS").task_type == "SEQ_CLS"


def test_what_fills_the_last_batch_comes_last_in_every_epoch_and_changes_no_order():
    plain, filled = EpochSampler([3] * 21, 8, 0), EpochSampler([3] * 21, 8, 0, fill=3)
    for epoch in (0, 1):
        plain.set_epoch(epoch)
        filled.set_epoch(epoch)
        assert list(filled) == [*plain, 21, 22, 23]


def test_a_batch_is_dealt_among_processes():
    job = {"nodes": 2, "processes_per_node": 2, "image": "train"}
    for several in ({"processes": 4}, {"trainjob": job}):
        assert make_joint_settings(batch_size=8, **several).shaping == make_joint_settings(batch_size=8).shaping
        with pytest.raises(ValidationError, match=r"batch_size \(6\) must be a multiple of the 4 processes"):
            make_joint_settings(batch_size=6, **several)


def make_joint_settings(**overrides: Any) -> JointTrainingSettings:
    return JointTrainingSettings(**({"epochs": 1, "learning_rate": 1e-3} | overrides))
