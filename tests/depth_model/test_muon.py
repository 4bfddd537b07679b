"""The optimiser for networks that start from random weights."""

import pytest
import torch
from torch import nn

from depth_model.checkpoint import load_optimizer_tensors, optimizer_tensors
from depth_model.muon import Muon, muon_groups, orthogonalise
from depth_model.training import parameter_groups


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (32, 288)])
def test_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    result = orthogonalise(left @ torch.logspace(1, -1, min(shape)).diag() @ right)
    values = torch.linalg.svdvals(result)
    assert 0.6 < values.min() and values.max() < 1.25
    # The directions stay: in the basis of the matrix the result is diagonal.
    inner = left.T @ result @ right.T
    assert (inner - inner.diag().diag()).abs().max() < 1e-3


def test_scale_and_transposition_do_not_matter():
    torch.manual_seed(0)
    matrix = torch.randn(20, 50)
    torch.testing.assert_close(orthogonalise(1e-4 * matrix), orthogonalise(matrix), atol=1e-4, rtol=0)
    torch.testing.assert_close(orthogonalise(matrix.T), orthogonalise(matrix).T, atol=1e-5, rtol=0)
    assert orthogonalise(torch.zeros(3, 4)).abs().max() == 0


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 8))


def optimizer_for(model: nn.Module, lr: float = 0.01) -> Muon:
    return Muon(muon_groups(parameter_groups([(lr, model.parameters())], model, 0.1), model))


def test_weights_of_layers_are_orthogonalised_and_nothing_else():
    model = network()
    groups = muon_groups(parameter_groups([(0.01, model.parameters())], model, 0.1), model)
    chosen = {id(p) for group in groups if group["orthogonal"] for p in group["params"]}
    assert chosen == {id(model[1].weight), id(model[4].weight)}
    everything = [id(p) for group in groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())


def step(model: nn.Module, optimizer: Muon, seed: int) -> float:
    words = torch.randint(10, (32,), generator=torch.Generator().manual_seed(seed))
    target = nn.functional.one_hot(words % 8, 8).float()
    loss = (model(words) - target).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_it_learns_and_goes_on_bit_for_bit():
    model = network()
    optimizer = optimizer_for(model)
    losses = [step(model, optimizer, i) for i in range(60)]
    assert losses[-1] < 0.1 * losses[0]
    other = network()
    other.load_state_dict(model.state_dict())
    resumed = optimizer_for(other)
    load_optimizer_tensors(resumed, {name: value.clone() for name, value in optimizer_tensors(optimizer).items()})
    for i in range(60, 63):
        assert step(model, optimizer, i) == step(other, resumed, i)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_vectors_move_as_under_adamw():
    mine, stock = nn.LayerNorm(8), nn.LayerNorm(8)
    optimizers = [
        optimizer_for(mine),
        torch.optim.AdamW(parameter_groups([(0.01, stock.parameters())], stock, 0.1), betas=(0.9, 0.99)),
    ]
    for seed in range(5):
        values = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        for model, optimizer in zip((mine, stock), optimizers, strict=True):
            optimizer.zero_grad()
            (model(values) ** 3).mean().backward()
            optimizer.step()
    torch.testing.assert_close(mine.weight, stock.weight)
    torch.testing.assert_close(mine.bias, stock.bias)
