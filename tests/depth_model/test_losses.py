"""Losses: invariances, masks, hand-computed values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depth_model.losses import affine_invariant_loss, gradient_matching_loss

LOSSES = [affine_invariant_loss, gradient_matching_loss]
by_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


def maps(seed: int, batch: int = 2, height: int = 9, width: int = 11) -> torch.Tensor:
    return torch.rand(batch, height, width, generator=torch.Generator().manual_seed(seed))


def everywhere(values: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def mask(seed: int, *size: int) -> torch.Tensor:
    valid = maps(seed + 1, *size) < 0.7
    valid[:, 0, :3] = True
    return valid


@by_loss
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_an_affine_copy_costs_nothing(loss, seed, scale, shift):
    disparity, valid = maps(seed), mask(seed)
    assert loss(scale * disparity + shift * scale, disparity, valid).item() == pytest.approx(0, abs=1e-4)


@by_loss
def test_another_map_and_a_mirrored_sign_cost_something(loss):
    disparity = maps(0)
    assert loss(maps(1), disparity, everywhere(disparity)) > 0.1
    assert loss(-disparity, disparity, everywhere(disparity)) > 0.5


@by_loss
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), junk=st.sampled_from([0.0, -1e30, 1e30, float("inf"), -float("inf"), float("nan")]))
def test_values_that_are_not_valid_never_matter(loss, seed, junk):
    target, valid = maps(seed), mask(seed)
    prediction = maps(seed + 2).requires_grad_()
    clean = loss(prediction, target, valid)
    spoilt = prediction.detach().where(valid, torch.tensor(junk)).requires_grad_()
    dirty = loss(spoilt, target.where(valid, torch.tensor(junk)), valid)
    assert torch.equal(clean, dirty)
    for value, leaf in ((clean, prediction), (dirty, spoilt)):
        value.backward()
        assert leaf.grad.isfinite().all() and (leaf.grad[~valid] == 0).all()
    assert torch.equal(prediction.grad, spoilt.grad)


@by_loss
@pytest.mark.parametrize("case", ["nothing valid", "constant target", "constant prediction", "one pixel"])
def test_a_degenerate_image_has_a_finite_gradient(loss, case):
    target, prediction, valid = maps(0), maps(1), everywhere(maps(0))
    match case:
        case "nothing valid":
            valid[0] = False
        case "constant target":
            target[0] = 3.7
        case "constant prediction":
            prediction[0] = 0.1
        case "one pixel":
            valid[0] = False
            valid[0, 2, 2] = True
    prediction.requires_grad_()
    value = loss(prediction, target, valid)
    value.backward()
    assert value.isfinite() and prediction.grad.isfinite().all()
    if case != "constant prediction":
        assert value == loss(prediction[1:], target[1:], valid[1:]) / 2 and (prediction.grad[0] == 0).all()


@by_loss
def test_the_mean_is_over_the_images_of_the_batch(loss):
    prediction, target, valid = maps(0, 3), maps(1, 3), mask(2, 3)
    valid[1] = False
    single = [loss(prediction[i : i + 1], target[i : i + 1], valid[i : i + 1]) for i in range(3)]
    assert single[1] == 0
    torch.testing.assert_close(loss(prediction, target, valid), sum(single) / 3)


def test_affine_invariant_loss_by_hand():
    # Medians 2 and 1; mean absolute deviations (2 + 1 + 0 + 1 + 6) / 5 = 2 and (1 + 0 + 0 + 1 + 3) / 5 = 1.
    target = torch.tensor([[[0.0, 1, 2, 3, 8]]])
    prediction = torch.tensor([[[0.0, 1, 1, 2, 4]]])
    # Normalised: (-1, -0.5, 0, 0.5, 3) and (-1, 0, 0, 1, 3), which differ by 0.5 at two of five pixels.
    assert affine_invariant_loss(prediction, target, everywhere(target)).item() == pytest.approx(0.2)


def test_gradient_matching_loss_by_hand():
    # On the row above the residual is (0, 0.5, 0, 0.5, 0): four differences of 0.5 over five pixels. At stride 2 it is
    # (0, 0, 0), at stride 4 (0, 0).
    target = torch.tensor([[[0.0, 1, 2, 3, 8]]])
    prediction = torch.tensor([[[0.0, 1, 1, 2, 4]]])
    assert gradient_matching_loss(prediction, target, everywhere(target)).item() == pytest.approx(0.4)
    columns = (prediction.mT, target.mT, everywhere(target).mT)
    assert gradient_matching_loss(*columns).item() == pytest.approx(0.4)


def test_gradient_matching_counts_only_pairs_of_valid_pixels():
    # The last of six pixels is not valid, so the step to it does not count, nor does it in the number of pixels.
    target = torch.tensor([[[0.0, 1, 2, 3, 8, 5]]])
    prediction = torch.tensor([[[0.0, 1, 1, 2, 4, 9]]])
    valid = torch.tensor([[[True] * 5 + [False]]])
    assert gradient_matching_loss(prediction, target, valid, scales=1).item() == pytest.approx(0.4)


def test_more_scales_see_coarser_structure():
    target = maps(0, 1, 32, 32)
    values = [gradient_matching_loss(maps(1, 1, 32, 32), target, everywhere(target), scales) for scales in (1, 2, 4)]
    assert 0 < values[0] < values[1] < values[2]


@by_loss
def test_descending_the_gradient_lowers_the_loss(loss):
    target, prediction = maps(0), maps(1).requires_grad_()
    before = loss(prediction, target, everywhere(target))
    before.backward()
    assert loss(prediction.detach() - 0.1 * prediction.grad, target, everywhere(target)) < before
