"""Losses: invariances, masks, hand-computed values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depth_model.losses import (
    affine_invariant_loss,
    cutmix_affine_invariant_loss,
    cutmix_gradient_matching_loss,
    discard_largest,
    feature_alignment_loss,
    gradient_matching_loss,
    least_squares_loss,
    silog_loss,
)

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


# ---- the largest losses left out


def test_discarding_leaves_out_the_largest_of_each_image():
    loss = torch.arange(20.0).view(2, 2, 5)
    kept = discard_largest(loss, everywhere(loss), 0.1)
    assert kept.flatten(1).sum(1).tolist() == [9, 9] and not kept[0, 1, 4] and not kept[1, 1, 4]
    counted = everywhere(loss)
    counted[1] = False
    counted[0, 1] = False
    assert discard_largest(loss, counted, 0.2).flatten(1).sum(1).tolist() == [4, 0]
    assert torch.equal(discard_largest(torch.zeros_like(loss), counted, 0.1), counted), "ties stay"


def test_an_outlier_is_forgiven_when_discarded():
    target = maps(0, 1, 10, 10)
    spoilt = target.clone()
    spoilt[0, 4, 4] += 50
    full, trimmed = (affine_invariant_loss(target, spoilt, everywhere(target), discard) for discard in (0.0, 0.1))
    assert trimmed < 0.8 * full
    assert affine_invariant_loss(2 * target + 1, target, everywhere(target), 0.1).item() == pytest.approx(0, abs=1e-5)


# ---- CutMix


def box(*size: int) -> torch.Tensor:
    inside = torch.zeros(size, dtype=torch.bool)
    inside[:, 2:6, 3:8] = True
    return inside


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), a=st.floats(0.01, 100), b=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_two_sides_of_another_scale_and_shift_cost_nothing(seed, a, b, shift):
    target_a, target_b, inside = maps(seed), maps(seed + 1), box(2, 9, 11)
    mixed = torch.where(inside, a * (target_a + shift), b * (target_b - shift))
    assert cutmix_affine_invariant_loss(mixed, target_a, target_b, inside).item() == pytest.approx(0, abs=1e-4)


def test_cutmix_is_the_area_weighted_sum_of_its_regions():
    prediction, a, b, inside = maps(0), maps(1), maps(2), box(2, 9, 11)
    area = inside.float().mean().item()
    parts = affine_invariant_loss(prediction, a, inside), affine_invariant_loss(prediction, b, ~inside)
    expected = area * parts[0] + (1 - area) * parts[1]
    torch.testing.assert_close(cutmix_affine_invariant_loss(prediction, a, b, inside), expected)
    valid = mask(5)
    plain = cutmix_affine_invariant_loss(prediction, a, b, everywhere(a), valid, valid)
    torch.testing.assert_close(plain, affine_invariant_loss(prediction, a, valid))


def test_gradients_are_matched_within_regions_only():
    a, b, inside = maps(1), maps(2), box(2, 9, 11)
    mixed = torch.where(inside, 3 * a + 1, 0.5 * b - 2)
    assert cutmix_gradient_matching_loss(mixed, a, b, inside).item() == pytest.approx(0, abs=1e-5)
    plain = cutmix_gradient_matching_loss(maps(0), a, b, everywhere(a))
    torch.testing.assert_close(plain, gradient_matching_loss(maps(0), a, everywhere(a)))


def test_cutmix_ignores_what_is_hidden_or_not_valid():
    a, b, inside, valid = maps(1), maps(2), box(2, 9, 11), mask(3)
    prediction = maps(0).requires_grad_()
    clean = cutmix_affine_invariant_loss(prediction, a, b, inside, valid, valid)
    nan = torch.tensor(torch.nan)
    spoilt_a, spoilt_b = a.where(inside & valid, nan), b.where(~inside & valid, nan)
    assert torch.equal(cutmix_affine_invariant_loss(prediction, spoilt_a, spoilt_b, inside, valid, valid), clean)
    clean.backward()
    assert (prediction.grad[~valid] == 0).all()


@pytest.mark.parametrize("discard", [0.0, 0.1])
def test_a_flat_region_contributes_nothing_and_breaks_nothing(discard):
    prediction, a, b, inside = maps(0).requires_grad_(), maps(1), torch.zeros(2, 9, 11), box(2, 9, 11)
    value = cutmix_affine_invariant_loss(prediction, a, b, inside, None, None, discard)
    value.backward()
    assert value > 0 and prediction.grad.isfinite().all() and (prediction.grad[~inside] == 0).all()
    nothing = cutmix_affine_invariant_loss(prediction, a, b, inside, torch.zeros_like(inside), None, discard)
    assert nothing == 0


# ---- least squares


def test_least_squares_is_the_error_of_the_best_fit():
    prediction, target, valid = maps(0, 1), maps(1, 1), mask(2, 1)
    p, t = prediction[valid], target[valid]
    design = torch.stack([p, torch.ones_like(p)], 1)
    fit = design @ torch.linalg.lstsq(design, t[:, None]).solution
    expected = (fit[:, 0] - t).square().mean() / 2
    torch.testing.assert_close(least_squares_loss(prediction, target, valid), expected)
    assert least_squares_loss(3 - 2 * target, target, valid).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("case", ["constant", "nothing valid"])
def test_least_squares_of_a_degenerate_image(case):
    target, valid = maps(1, 1), mask(2, 1)
    prediction = torch.full_like(target, 0.3).requires_grad_() if case == "constant" else maps(0, 1).requires_grad_()
    valid = valid & (case == "constant")
    value = least_squares_loss(prediction, target.where(valid, torch.tensor(torch.nan)), valid)
    value.backward()
    assert value.isfinite() and prediction.grad.isfinite().all() and (value > 0) == (case == "constant")


# ---- feature alignment


def features(seed: int) -> torch.Tensor:
    return torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(seed))


def test_identical_features_cost_exactly_nothing():
    student = features(0).requires_grad_()
    value = feature_alignment_loss(student, 3 * student.detach())
    value.backward()
    assert value == 0 and (student.grad == 0).all()


def test_one_distant_patch_among_good_ones_still_has_a_gradient():
    student = features(0)
    frozen = student.clone()
    frozen[1, 2] *= -1
    student.requires_grad_()
    value = feature_alignment_loss(student, frozen)
    assert value.item() == pytest.approx(2 / 6 / 2), "cosine -1 in one patch of six in one image of two"
    frozen[1, 2] += 0.3
    feature_alignment_loss(student, frozen).backward()
    assert student.grad[1, 2].abs().sum() > 0 and student.grad.abs().sum() == student.grad[1, 2].abs().sum()


def test_the_tolerance_is_a_cosine_above_which_nothing_counts():
    student, frozen = torch.tensor([[[1.0, 0]]]), torch.tensor([[[0.8, 0.6]]])
    assert feature_alignment_loss(student, frozen, 0.85).item() == pytest.approx(0.2)
    assert feature_alignment_loss(student, frozen, 0.75) == 0


# ---- metric


def test_silog_by_hand_and_its_masks():
    target, valid = torch.tensor([[[1.0, 1.0, 5.0]]]), torch.tensor([[[True, True, False]]])
    prediction = torch.tensor([[[torch.e**-1, torch.e**-3, -7.0]]]).requires_grad_()
    # g = 1 and 3: mean of squares 5, squared mean 4.
    value = silog_loss(prediction, target, valid)
    assert value.item() == pytest.approx((5 - 0.5 * 4) ** 0.5, rel=1e-5)
    value.backward()
    assert prediction.grad[0, 0, 2] == 0 and prediction.grad.isfinite().all()
    assert silog_loss(prediction, target, torch.zeros_like(valid)) == 0


def test_silog_of_a_perfect_prediction_is_zero_with_a_finite_gradient():
    prediction = (1 + maps(0)).requires_grad_()
    value = silog_loss(prediction, prediction.detach(), everywhere(prediction))
    value.backward()
    assert value == 0 and prediction.grad.isfinite().all()
