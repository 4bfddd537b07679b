"""What the training loops share."""

import pytest
import torch
from torch import nn

from depth_model.errors import InputError
from depth_model.training import Ema, frozen_difference, learning_rate_factor, parameter_groups, same_data


def test_plain_linear_decay():
    assert [learning_rate_factor(step, 4) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def test_warm_up_then_flat_then_cool_down():
    factors = [learning_rate_factor(step, 100, warmup=10, cooldown=0.2) for step in range(101)]
    assert factors[0] == 0.1 and factors[4] == 0.5 and factors[9:81] == [1] * 72
    assert factors[90] == pytest.approx(0.5) and factors[100] == 0
    assert all(0 <= factor <= 1 for factor in factors)


def test_warm_up_longer_than_the_run_stays_in_range():
    assert all(0 <= learning_rate_factor(step, 5, warmup=50) <= 1 for step in range(6))


def test_matrices_are_decayed_and_vectors_are_not():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = parameter_groups([(0.1, model[0].parameters()), (0.2, model[1].parameters())], model, 0.05)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        id(model[0].weight): (0.1, 0.05),
        id(model[0].bias): (0.1, 0.0),
        id(model[1].weight): (0.2, 0.05),
        id(model[1].bias): (0.2, 0.0),
    }
    assert all(group["initial_lr"] == group["lr"] for group in groups)


def test_a_parameter_that_is_missing_or_doubled_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="exactly one optimiser group"):
        parameter_groups([(0.1, model[0].parameters())], model, 0.0)
    with pytest.raises(ValueError, match="exactly one optimiser group"):
        parameter_groups([(0.1, model.parameters()), (0.2, model[1].parameters())], model, 0.0)
    model[1].requires_grad_(False)
    assert len(parameter_groups([(0.1, model.parameters())], model, 0.0)) == 2


def test_the_average_follows_the_weights():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(model, decay=0.5)
    nn.init.ones_(model.weight)
    averages = []
    for step in (0, 1, 100):
        ema.update(model, step)
        averages.append(ema.tensors["weight"].item())
    # Decays 1 / 10, 2 / 11 and then 0.5 of a rest of 1.
    assert averages == pytest.approx([1 - 0.1, 1 - 0.1 * 2 / 11, 1 - 0.1 * 2 / 11 / 2])
    assert model.weight.item() == 1
    ema.load_into(model)
    assert model.weight.item() == pytest.approx(averages[-1])


def test_other_settings_are_refused_by_name():
    saved = {"lr": 0.1, "sizes": (1, 2), "out": "a", "seed": 0}
    frozen_difference(saved, {"lr": 0.1, "sizes": [1, 2], "out": "b", "seed": 0}, free=("out",))
    with pytest.raises(InputError, match="lr: the run was started with 0.1, now it is 0.2"):
        frozen_difference(saved, saved | {"lr": 0.2}, free=("out",))
    with pytest.raises(InputError, match="lr: .* 0.1, now it is 0.2; seed: .* 0, now it is 1"):
        frozen_difference(saved, saved | {"lr": 0.2, "seed": 1}, free=())
    with pytest.raises(InputError, match="clip"):
        frozen_difference(saved, saved | {"clip": 1.0}, free=())


def test_weights_stay_where_the_average_was_taken():
    model = nn.BatchNorm1d(2)
    assert set(Ema(model, 0.9).tensors) == {"weight", "bias"}
    assert torch.equal(Ema(model, 0.9).tensors["weight"], model.weight)


def test_without_an_average_the_weights_stay():
    model = nn.Linear(1, 1)
    ema, before = Ema(model, 0.0), model.weight.item()
    ema.update(model, 0)
    ema.load_into(model)
    assert not ema.tensors and model.weight.item() == before


def test_sets_of_another_size_are_refused():
    assert same_data({}, {"labelled": 6}) == same_data({"labelled": 6}, {"labelled": 6}) == {"labelled": 6}
    with pytest.raises(InputError, match="started with 6 labelled images, now there are 7"):
        same_data({"labelled": 6}, {"labelled": 7})
