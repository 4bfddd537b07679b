"""Colour perturbations."""

import numpy as np
import pytest

from depth_model.data.perturb import colour_jitter, rotate_hue

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
