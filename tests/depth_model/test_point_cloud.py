"""Point clouds: what a reader of glTF finds in them."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from depth_model import DepthMap
from depth_model.errors import InputError


def read_glb(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N, 3] and colours [N, 4] of a file with one mesh of points."""
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    tree = json.loads(data[20 : 20 + size])
    binary_size, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert kind == b"BIN\0" and binary_size % 4 == 0
    binary = data[28 + size :]
    assert len(binary) == binary_size == tree["buffers"][0]["byteLength"]
    primitive = tree["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0
    arrays = []
    for name, dtype, width in (("POSITION", "<f4", 3), ("COLOR_0", np.uint8, 4)):
        accessor = tree["accessors"][primitive["attributes"][name]]
        view = tree["bufferViews"][accessor["bufferView"]]
        part = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        arrays.append(np.frombuffer(part, dtype).reshape(accessor["count"], width))
    bounds = tree["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_allclose(arrays[0].min(axis=0), bounds["min"], rtol=1e-6)
    np.testing.assert_allclose(arrays[0].max(axis=0), bounds["max"], rtol=1e-6)
    return arrays[0], arrays[1]


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), angle=st.floats(5, 150))
def test_metric_points_project_back_to_their_pixels(tmp_path_factory, rows, columns, angle):
    path = tmp_path_factory.mktemp("glb") / "cloud.glb"
    metres = np.random.default_rng(rows * 13 + columns).uniform(0.5, 9, (rows, columns)).astype(np.float32)
    DepthMap(metres, "metric").save_glb(path, field_of_view=angle)
    points, _ = read_glb(path.read_bytes())
    np.testing.assert_allclose(-points[:, 2], metres.ravel(), rtol=1e-6)
    focal = max(rows, columns) / 2 / np.tan(np.radians(angle) / 2)
    column = points[:, 0] / -points[:, 2] * focal + columns / 2 - 0.5
    row = rows / 2 - 0.5 - points[:, 1] / -points[:, 2] * focal
    grid = np.mgrid[0:rows, 0:columns].reshape(2, -1)
    np.testing.assert_allclose(column, grid[1], atol=1e-3)
    np.testing.assert_allclose(row, grid[0], atol=1e-3)


def test_invalid_pixels_are_left_out_and_colours_are_the_photos(tmp_path):
    values = np.ones((4, 6), np.float32)
    valid = np.zeros((4, 6), bool)
    valid[1, 2] = valid[3, 5] = True
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[1, 2], pixels[3, 5] = (255, 0, 0), (0, 255, 0)
    DepthMap(values, "metric", valid).save_glb(tmp_path / "a.glb", Image.fromarray(pixels))
    points, colours = read_glb((tmp_path / "a.glb").read_bytes())
    assert len(points) == 2
    assert colours.tolist() == [[255, 0, 0, 255], [0, 255, 0, 255]]


def test_disparity_runs_from_one_to_the_farthest_point(tmp_path):
    DepthMap(np.array([[1.0, 2.0, 3.0]], np.float32), "disparity").save_glb(tmp_path / "a.glb")
    points, _ = read_glb((tmp_path / "a.glb").read_bytes())
    distance = -points[:, 2]
    assert distance[2] == pytest.approx(1) and distance[0] > distance[1] > distance[2]
    inverse = 1 / distance
    assert inverse[1] == pytest.approx((inverse[0] + inverse[2]) / 2)


def test_large_maps_are_thinned(tmp_path):
    DepthMap(np.ones((300, 400), np.float32), "disparity").save_glb(tmp_path / "a.glb", most=1000)
    points, _ = read_glb((tmp_path / "a.glb").read_bytes())
    assert 500 < len(points) <= 1000


@pytest.mark.parametrize("angle", [0, 180, float("nan")])
def test_impossible_angles_are_refused(tmp_path, angle):
    with pytest.raises(InputError, match="field_of_view"):
        DepthMap(np.ones((2, 2), np.float32), "disparity").save_glb(tmp_path / "a.glb", field_of_view=angle)


def test_a_map_without_valid_pixels_is_refused(tmp_path):
    with pytest.raises(InputError, match="valid"):
        DepthMap(np.ones((2, 2)), "disparity", np.zeros((2, 2), bool)).save_glb(tmp_path / "a.glb")
