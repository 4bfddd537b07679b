import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from depth_control import to_control
from depth_control.conditioning import resize_map
from depth_model import DepthMap
from depth_model.errors import InputError

RAMP = np.linspace(0.0, 10.0, 21, dtype=np.float32).reshape(3, 7)
ANY_FLOAT = st.floats(width=32, allow_nan=True, allow_infinity=True)


def test_disparity_runs_from_far_0_to_near_1():
    control = to_control(RAMP)
    assert control.dtype == np.float32
    np.testing.assert_allclose(control, RAMP / 10, atol=1e-6)


def test_window_gamma_and_invert_follow_their_definition():
    position = 1 - RAMP / 10
    expected = np.clip((0.75 - position) / 0.5, 0, 1) ** 2
    np.testing.assert_allclose(to_control(RAMP, near=0.25, far=0.75, gamma=2.0), expected, atol=1e-5)
    inverted = to_control(RAMP, near=0.25, far=0.75, gamma=2.0, invert=True)
    np.testing.assert_allclose(inverted, 1 - expected, atol=1e-5)


def test_metres_become_disparity():
    metres = np.array([[1.0, 2.0, 4.0]], np.float32)
    expected = [[1.0, 1 / 3, 0.0]]
    np.testing.assert_allclose(to_control(metres, depth_kind="metric"), expected, atol=1e-6)
    np.testing.assert_allclose(to_control(DepthMap(metres, "metric")), expected, atol=1e-6)


@pytest.mark.parametrize("invert", [False, True])
def test_invalid_counts_as_farthest(invert):
    metres = np.array([[1.0, 4.0, 0.0, -1.0, np.nan, np.inf, -np.inf]], np.float32)
    control = to_control(metres, depth_kind="metric", invert=invert)
    far = float(invert)
    assert control.tolist() == [[1 - far, far, far, far, far, far, far]]
    masked = DepthMap(np.array([[9.0, 1.0, 2.0]]), "disparity", np.array([[False, True, True]]))
    assert to_control(masked, invert=invert).tolist() == [[far, far, 1 - far]]


def test_flat_map_is_one_half_whatever_the_window():
    flat = np.full((4, 5), 3.3)
    for options in ({}, {"gamma": 3.0}, {"near": 0.9}, {"invert": True}):
        assert (to_control(flat, **options) == 0.5).all()


def test_nothing_valid_is_all_far():
    assert (to_control(np.full((2, 2), np.nan)) == 0).all()


def test_sixteen_bits_survive():
    codes = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert len(np.unique(to_control(Image.fromarray(codes)))) == 65536
    np.testing.assert_array_equal(to_control(Image.fromarray(codes)), to_control(codes))


def test_every_holder_of_depth_gives_the_same(tmp_path):
    expected = to_control(RAMP)
    DepthMap(RAMP, "disparity").save_npz(tmp_path / "depth.npz")
    grey = Image.fromarray(np.round(RAMP * 25.5).astype(np.uint8))
    for depth in (DepthMap(RAMP, "disparity"), torch.from_numpy(RAMP), RAMP[None], tmp_path / "depth.npz"):
        np.testing.assert_array_equal(to_control(depth), expected)
    for picture in (grey, grey.convert("RGB"), grey.convert("RGBA")):
        np.testing.assert_allclose(to_control(picture), expected, atol=1 / 255)


@given(
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=ANY_FLOAT),
    st.sampled_from(["disparity", "metric"]),
    st.booleans(),
)
def test_always_finite_and_in_range(depth, kind, invert):
    control = to_control(depth, near=0.1, far=0.8, gamma=0.7, invert=invert, depth_kind=kind)
    assert control.shape == depth.shape and control.dtype == np.float32
    assert ((control >= 0) & (control <= 1)).all()


@given(st.floats(0.01, 1e3), st.floats(-1e3, 1e3))
def test_scale_and_shift_of_disparity_do_not_matter(scale, shift):
    depth = RAMP.astype(np.float64)
    np.testing.assert_allclose(to_control(depth * scale + shift), to_control(depth), atol=2e-2 if scale < 1 else 1e-2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"near": np.nan}, "near"),
        ({"far": np.inf}, "far"),
        ({"near": 0.6, "far": 0.6}, "near"),
        ({"gamma": 0.0}, "gamma"),
        ({"depth_kind": "metres"}, "metres"),
    ],
)
def test_wrong_parameters_are_named(options, named):
    with pytest.raises(InputError, match=named):
        to_control(RAMP, **options)


@pytest.mark.parametrize(
    "depth", [None, np.zeros((0, 3)), np.zeros(3), np.zeros((4, 4, 3)), np.array([["a"]]), [[1], [1, 2]], "no.png"]
)
def test_what_is_not_depth_is_refused(depth):
    with pytest.raises(InputError):
        to_control(depth)


def test_coloured_picture_and_contradictory_kind_are_refused():
    with pytest.raises(InputError, match="colour"):
        to_control(DepthMap(RAMP, "disparity").colorize())
    with pytest.raises(InputError, match="metric"):
        to_control(DepthMap(RAMP, "disparity"), depth_kind="metric")


def test_resize_keeps_float_steps_and_averages():
    ramp = np.repeat(np.linspace(0, 1, 1024, dtype=np.float32)[None], 64, axis=0)
    small = resize_map(ramp, 16, 512)
    assert small.shape == (16, 512) and len(np.unique(small[0])) == 512
    np.testing.assert_allclose(small.mean(), 0.5, atol=1e-3)
    assert resize_map(ramp, 64, 1024) is ramp
