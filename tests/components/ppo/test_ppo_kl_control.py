"""KL estimators and controllers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from components.ppo.kl_control import KLController, sequence_k1, sequence_k3
from components.ppo.settings import KLSettings, PPOSettings


def _make_controller(*, episodes: int = 100, **settings: object) -> KLController:
    return KLController.start(KLSettings.model_validate(settings), episodes_per_step=episodes)


def test_controller_follows_a_hand_written_trace() -> None:
    """target 4, horizon 1000, 100 episodes: error e moves the coefficient by a factor 1 + 0.1 e, |e| <= 0.2.

    kl 8:   e = min(1, 0.2) = 0.2      0.15 * 1.02    = 0.153
    kl 4.4: e = 0.1                    0.153 * 1.01   = 0.15453
    kl 0:   e = max(-1, -0.2) = -0.2   0.15453 * 0.98 = 0.1514394
    kl 4:   e = 0                      unchanged
    """
    controller = _make_controller(target_nats=4.0, init_coef=0.15, horizon_episodes=1000.0)

    trace = []
    for kl in (8.0, 4.4, 0.0, 4.0):
        controller.update(kl, episodes=100)
        trace.append(controller.coef)

    assert trace == pytest.approx([0.153, 0.15453, 0.1514394, 0.1514394])


def test_without_a_horizon_a_full_error_moves_the_coefficient_by_gain_times_clip() -> None:
    controller = _make_controller(episodes=64, init_coef=1.0, step_gain=0.2)

    controller.update(1000.0, episodes=64)

    assert controller.coef == pytest.approx(1.0 + 0.2 * 0.2)


def test_fixed_control_never_moves_and_control_off_costs_nothing() -> None:
    fixed, off = _make_controller(control="fixed", init_coef=0.3), _make_controller(control="off")

    for controller in (fixed, off):
        controller.update(1000.0, episodes=64)

    assert fixed.coef == 0.3
    assert off.coef == 0.0


@given(
    kls=st.lists(st.floats(-100, 1e6), max_size=50),
    step_gain=st.floats(0.01, 5),
    error_clip=st.floats(0.01, 3),
)
def test_coefficient_stays_positive_under_all_settings_that_are_accepted(
    kls: list[float], step_gain: float, error_clip: float
) -> None:
    assume(abs(step_gain * error_clip - 1.0) > 1e-6)
    kl_settings = KLSettings(step_gain=step_gain, error_clip=error_clip)
    if step_gain * error_clip > 1.0:
        with pytest.raises(ValueError, match="off the coefficient"):
            PPOSettings(kl=kl_settings)
        return
    settings = PPOSettings(kl=kl_settings)
    controller = KLController.start(settings.kl, episodes_per_step=64)

    for kl in kls:
        controller.update(kl, episodes=64)

    assert controller.coef > 0


def test_only_kl_above_the_ceiling_exceeds_it() -> None:
    controller = _make_controller(ceiling_nats=10.0)

    assert not controller.exceeds_ceiling(10.0)
    assert controller.exceeds_ceiling(10.01)
    assert not _make_controller().exceeds_ceiling(1e9)


def test_both_estimators_are_unbiased_for_a_known_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.4, 0.4, 0.2]).log()
    true_kl = float((policy.exp() * (policy - reference)).sum())
    tokens = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=generator)
    log_ratio = (policy - reference)[tokens].view(-1, 2)
    mask = torch.ones_like(log_ratio, dtype=torch.bool)

    assert float(sequence_k1(log_ratio, mask).mean()) == pytest.approx(2 * true_kl, rel=0.02)
    assert float(sequence_k3(log_ratio, mask).mean()) == pytest.approx(2 * true_kl, rel=0.02)
    assert bool((sequence_k3(log_ratio, mask) >= 0).all())


def test_kl_of_a_sequence_ignores_padding() -> None:
    log_ratio = torch.tensor([[0.5, 0.25, 99.0]])
    mask = torch.tensor([[True, True, False]])

    assert sequence_k1(log_ratio, mask).tolist() == [0.75]
    assert float(sequence_k3(log_ratio, mask)) == pytest.approx(
        (torch.exp(torch.tensor(-0.5)) - 1 + 0.5 + torch.exp(torch.tensor(-0.25)) - 1 + 0.25).item()
    )
