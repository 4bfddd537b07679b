"""Preprocessing against the published sizes and hand-computed resizing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from depth_model.data.transforms import IMAGENET_MEAN, IMAGENET_STD, network_size, preprocess


# (height, width) of the image and of the published network input, lower bound 518.
@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ((480, 640), (518, 686)),
        ((375, 1242), (518, 1722)),
        ((376, 1241), (518, 1708)),
        ((352, 1216), (518, 1792)),
        ((436, 1024), (518, 1218)),
        ((768, 1024), (518, 686)),
        ((4032, 6048), (518, 770)),
        ((1216, 1936), (518, 826)),
        ((540, 960), (518, 924)),
        ((384, 512), (518, 686)),
        ((1, 1), (518, 518)),
        ((10, 1000), (518, 2072)),
        ((5000, 1), (2072, 518)),
    ],
)
def test_published_network_sizes(image, expected):
    assert network_size(*image, 518) == expected


@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(14, 600))
def test_network_size_is_bounded(height, width, lower_bound):
    sides = network_size(height, width, lower_bound)
    assert all(side % 14 == 0 and side >= lower_bound for side in sides)
    assert min(sides) < lower_bound + 14 and max(sides) <= 4 * min(sides)
    if max(height, width) <= 3.5 * min(height, width):
        assert (
            abs(np.log(sides[1] / sides[0] * height / width))
            < np.log((lower_bound + 14) / lower_bound) + 14 / lower_bound
        )


def test_resize_has_the_golden_values_of_opencv_cubic():
    # 28 columns to 14: each output lies halfway between two pixels, whose four taps at a = -0.75 are
    # -0.09375, 0.59375, 0.59375, -0.09375. Worked out by hand for one bright column.
    row = np.zeros((28, 28, 3), np.uint8)
    row[:, 10] = 255
    pixels = preprocess(Image.fromarray(row), 14, mean=(0, 0, 0), std=(1, 1, 1))
    expected = np.zeros(14)
    expected[[4, 5]] = -0.09375, 0.59375
    np.testing.assert_allclose(pixels[0, 0, 7], expected, atol=1e-6)
    # The border is replicated: the first output of a bright first column takes two of its taps from it.
    row = np.zeros((28, 28, 3), np.uint8)
    row[:, 0] = 255
    pixels = preprocess(Image.fromarray(row), 14, mean=(0, 0, 0), std=(1, 1, 1))
    np.testing.assert_allclose(pixels[0, 0, 7, :2], (0.59375 - 0.09375, 0), atol=1e-6)


def test_enlarging_has_the_golden_values_of_opencv_cubic():
    # 14 columns to 28: outputs lie a quarter of a pixel off; taps at distances 1.25, 0.25, 0.75, 1.75.
    row = np.zeros((14, 14, 3), np.uint8)
    row[:, 6] = 255
    pixels = preprocess(Image.fromarray(row), 28, mean=(0, 0, 0), std=(1, 1, 1))
    far, near, middle, edge = -0.10546875, 0.87890625, 0.26171875, -0.03515625
    np.testing.assert_allclose(pixels[0, 0, 9, 9:17], (edge, far, middle, near, near, middle, far, edge), atol=1e-6)


def test_normalisation_is_imagenet():
    pixels = preprocess(Image.new("RGB", (40, 30), (124, 116, 104)), 28)
    assert pixels.shape == (1, 3, 28, 42) and pixels.dtype == torch.float32
    expected = (np.array([124, 116, 104]) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(pixels.mean((0, 2, 3)), expected, atol=1e-5)


def test_antialias_averages_what_the_published_resize_misses():
    stripes = np.zeros((560, 560, 3), np.uint8)
    stripes[:, ::8] = 255
    image = Image.fromarray(stripes)
    filtered = preprocess(image, 14, mean=(0, 0, 0), std=(1, 1, 1), antialias=True)
    published = preprocess(image, 14, mean=(0, 0, 0), std=(1, 1, 1))
    assert filtered.std() < 0.02 and abs(filtered.mean() - 1 / 8) < 0.02
    assert (published - 1 / 8).abs().max() > 0.1
