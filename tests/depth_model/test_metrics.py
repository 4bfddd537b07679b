"""Metrics by hand, and the alignment against numpy."""

import numpy as np
import pytest

from depth_model.metrics import align_least_squares, depth_metrics, relative_depth_metrics

ALL = np.ones((1, 4), bool)


def test_metrics_by_hand():
    target, prediction = np.array([[1.0, 2.0, 4.0, 8.0]]), np.array([[1.0, 2.5, 2.0, 16.0]])
    log = np.log([1, 1.25, 0.5, 2])
    expected = {
        "abs_rel": (0 + 0.25 + 0.5 + 1) / 4,
        "sq_rel": (0 + 0.125 + 1 + 8) / 4,
        "rmse": np.sqrt((0 + 0.25 + 4 + 64) / 4),
        "rmse_log": np.sqrt((log**2).mean()),
        "log10": np.abs(log).mean() / np.log(10),
        "silog": 100 * log.std(),
        # The ratios are 1, 1.25, 2, 2: 1.25 itself is outside, and 1.25^3 = 1.953 still below 2.
        "delta1": 0.25,
        "delta2": 0.5,
        "delta3": 0.5,
    }
    assert depth_metrics(prediction, target, ALL) == pytest.approx(expected)


def test_a_perfect_prediction():
    depth = np.random.default_rng(0).uniform(1, 9, (5, 7))
    numbers = depth_metrics(depth, depth, depth > 0)
    assert all(numbers[name] == (1 if name.startswith("delta") else 0) for name in numbers)


def test_only_valid_pixels_count():
    target, prediction = np.array([[1.0, 2.0, np.nan, 0.0]]), np.array([[1.0, 2.0, 5.0, np.inf]])
    assert depth_metrics(prediction, target, np.array([[True, True, False, False]]))["rmse"] == 0


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_depths_that_cannot_be_measured(wrong):
    good, bad = np.full((1, 4), 2.0), np.array([[2.0, 2.0, wrong, 2.0]])
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="positive and finite"):
            depth_metrics(*pair, ALL)
    with pytest.raises(ValueError, match="no valid pixel"):
        depth_metrics(good, good, ~ALL)


@pytest.mark.parametrize("seed", range(5))
def test_alignment_is_the_least_squares_fit(seed):
    rng = np.random.default_rng(seed)
    prediction, target = rng.normal(size=(2, 20, 30)).astype(np.float32)
    valid = rng.random((20, 30)) < 0.6
    matrix = np.stack([prediction[valid], np.ones(valid.sum())], 1)
    expected = np.linalg.lstsq(matrix, target[valid], rcond=None)[0]
    prediction[~valid], target[~valid] = np.nan, np.inf
    np.testing.assert_allclose(align_least_squares(prediction, target, valid), expected, rtol=1e-5, atol=1e-7)


def test_alignment_undoes_an_affine_change():
    target = np.random.default_rng(0).random((6, 6))
    assert align_least_squares(200 * target - 30, target, target >= 0) == pytest.approx((1 / 200, 30 / 200))


def test_alignment_without_information():
    target = np.array([[1.0, 2.0, 3.0, 6.0]])
    assert align_least_squares(np.full((1, 4), 7.0), target, ALL) == (0, 3)
    assert align_least_squares(target, target, np.array([[False, False, False, True]])) == (0, 6)
    assert align_least_squares(target, target, ~ALL) == (0, 0)


def test_relative_metrics_ignore_scale_and_shift_of_the_disparity():
    depth = np.random.default_rng(1).uniform(0.5, 9, (8, 9))
    numbers = relative_depth_metrics(40 / depth + 3, depth, depth > 0)
    assert numbers["abs_rel"] == pytest.approx(0, abs=1e-9) and numbers["delta1"] == 1


def test_relative_metrics_measure_only_the_range_and_floor_the_prediction():
    depth = np.array([[1.0, 2.0, 5.0, 20.0]])
    disparity = np.array([[1.0, 0.5, 0.2, 99.0]])
    assert relative_depth_metrics(disparity, depth, ALL)["abs_rel"] == pytest.approx(0, abs=1e-9)
    # 1 / (s d + t) falls below the floor of 1 / 10 m at the last pixel; without the floor it would be negative.
    floored = relative_depth_metrics(np.array([[1.0, 1.0, 1.0, -9.0]]), np.array([[1.0, 1.0, 1.0, 9.9]]), ALL)
    assert np.isfinite(floored["abs_rel"])
    with pytest.raises(ValueError, match="no valid pixel"):
        relative_depth_metrics(disparity, np.full((1, 4), 11.0), ALL)
