"""The optimizer's groups and the learning rate's course, which is that of the 2023 code."""

import pytest
import torch
from torch import nn

from open_flamingo.instruction_tuning.optim import make_optimizer, make_scheduler

RATE = 1e-3
WARMUP = 5
STEPS = 25
NAMES = ["perceiver.latents", "lm.0.gated_cross_attn_layer.attn_gate", "lm.0.gated_cross_attn_layer.ff.1.weight", "wte"]


def parameters() -> list[tuple[str, nn.Parameter]]:
    """One parameter for each of NAMES."""
    return [(name, nn.Parameter(torch.ones(2))) for name in NAMES]


def optimizer_of(named, **changes) -> torch.optim.AdamW:
    settings = {"learning_rate": RATE, "weight_decay": 0.1, "learning_rates": {}} | changes
    return make_optimizer(named, **settings)


def groups(named, **changes) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay by name."""
    by_id = {id(parameter): name for name, parameter in named}
    return {
        by_id[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer_of(named, **changes).param_groups
        for parameter in group["params"]
    }


def rates(schedule: str) -> list[float]:
    """The learning rate before step 1, and after each step."""
    optimizer = optimizer_of(parameters())
    scheduler = make_scheduler(optimizer, schedule, warmup_steps=WARMUP, total_steps=STEPS)
    course = [scheduler.get_last_lr()[0]]
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        course.append(scheduler.get_last_lr()[0])
    return course


def test_weight_decay_is_on_the_gated_cross_attention_only():
    assert groups(parameters()) == {
        NAMES[0]: (RATE, 0.0),
        NAMES[1]: (RATE, 0.1),
        NAMES[2]: (RATE, 0.1),
        NAMES[3]: (RATE, 0.0),
    }


def test_learning_rates_are_set_by_fragments_of_names():
    found = groups(parameters(), learning_rates={"attn_gate": 0.05, "perceiver": 0.5})
    assert found == {NAMES[0]: (0.5, 0.0), NAMES[1]: (0.05, 0.1), NAMES[2]: (RATE, 0.1), NAMES[3]: (RATE, 0.0)}


def test_frozen_parameters_are_left_out():
    named = parameters()
    named[0][1].requires_grad_(False)
    assert set(groups(named)) == set(NAMES[1:])


def test_nothing_to_train_is_refused():
    named = [(name, parameter.requires_grad_(False)) for name, parameter in parameters()]
    with pytest.raises(ValueError, match="nothing to train"):
        optimizer_of(named)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_warm_up_is_the_recorded_one(schedule):
    assert rates(schedule)[: WARMUP + 1] == pytest.approx([0.0002 * step for step in range(WARMUP + 1)])


def test_a_constant_rate_stays_at_its_peak():
    assert rates("constant")[WARMUP:] == [RATE] * (STEPS - WARMUP + 1)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_falling_rate_ends_at_zero_by_way_of_the_half(schedule):
    course = rates(schedule)[WARMUP:]
    assert course == sorted(course, reverse=True)
    assert course[len(course) // 2] == pytest.approx(RATE / 2)
    assert course[-1] == pytest.approx(0, abs=1e-9)


def test_without_a_warm_up_the_first_step_has_the_peak_rate():
    scheduler = make_scheduler(optimizer_of(parameters()), "constant", warmup_steps=0, total_steps=STEPS)
    assert scheduler.get_last_lr() == [RATE] * 2


def test_each_group_keeps_its_own_peak():
    optimizer = optimizer_of(parameters(), learning_rates={"attn_gate": 0.05})
    scheduler = make_scheduler(optimizer, "constant", warmup_steps=2, total_steps=STEPS)
    optimizer.step()
    scheduler.step()
    assert sorted(set(scheduler.get_last_lr())) == pytest.approx([RATE / 2, 0.025])
