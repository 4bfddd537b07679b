"""Colour perturbations."""

import numpy as np
import pytest

from depth_model.data.perturb import colour_jitter, cutmix_mask, gaussian_blur, rotate_hue, strong_perturbation

LUMA = np.float32((0.299, 0.587, 0.114))


@pytest.fixture
def image():
    return np.random.default_rng(0).random((6, 5, 3)).astype(np.float32)


@pytest.mark.parametrize("turns", [0.1, -0.4, 1 / 3, 0.5])
def test_a_turned_hue_keeps_luma_and_greys_and_turns_back(image, turns):
    turned = rotate_hue(image, turns)
    np.testing.assert_allclose(turned @ LUMA, image @ LUMA, atol=1e-6)
    np.testing.assert_allclose(rotate_hue(turned, -turns), image, atol=1e-5)
    np.testing.assert_allclose(rotate_hue(np.full((1, 1, 3), 0.4, np.float32), turns), 0.4, atol=1e-6)
    assert np.abs(turned - image).max() > 0.1


def test_a_third_of_the_circle_turns_red_to_green():
    assert rotate_hue(np.float32([[[1, 0, 0]]]), 1 / 3).argmax() == 1


def test_jitter_is_a_function_of_its_draws_within_the_range(image):
    one, again, other = (colour_jitter(image, 0.5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert one.dtype == np.float32 and one.min() >= 0 and one.max() <= 1
    assert colour_jitter(image, 0, np.random.default_rng(1)) is image


def test_blur_keeps_the_mean_and_lowers_the_contrast(image):
    large = np.kron(image, np.ones((8, 8, 1), np.float32))
    blurred = gaussian_blur(large, 3.0)
    assert blurred.shape == large.shape and blurred.dtype == np.float32
    assert blurred.mean() == pytest.approx(large.mean(), abs=0.03) and blurred.std() < 0.8 * large.std()


def test_strong_perturbations_vary_and_come_from_the_draws_alone(image):
    results = [strong_perturbation(image, np.random.default_rng(seed)) for seed in range(60)]
    assert np.array_equal(results[7], strong_perturbation(image, np.random.default_rng(7)))
    untouched = sum(np.array_equal(result, image) for result in results)
    assert 1 <= untouched <= 15, "neither jitter nor blur in a tenth of the cases"
    assert all(result.dtype == np.float32 and 0 <= result.min() and result.max() <= 1 for result in results)


@pytest.mark.parametrize("size", [(28, 28), (28, 140), (518, 518)])
def test_the_cutmix_box_is_one_rectangle_of_the_stated_sizes(size):
    shares = []
    for seed in range(100):
        hidden = ~cutmix_mask(*size, np.random.default_rng(seed))
        rows, columns = hidden.any(1), hidden.any(0)
        assert hidden.sum() == rows.sum() * columns.sum(), "a full rectangle"
        assert (
            np.diff(np.flatnonzero(rows)).max(initial=1) == 1 and np.diff(np.flatnonzero(columns)).max(initial=1) == 1
        )
        shares.append(hidden.mean())
    assert max(shares) <= 0.4 and min(shares) > 0 and 0.05 < np.mean(shares) < 0.25
