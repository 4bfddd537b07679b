"""Depth maps: meaning, files, colours."""

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from depth_model import DepthMap
from depth_model.errors import InputError


def ramp(height=6, width=40):
    return np.linspace(0.4, 7.5, height * width, dtype=np.float32).reshape(height, width)


def holes():
    valid = np.ones((6, 40), bool)
    valid[2, 3:9] = False
    return valid


def test_nearness_of_disparity_and_of_metres():
    values = ramp()
    near = DepthMap(values, "disparity").nearness()
    assert near.dtype == np.float32 and near.min() == 0 and near.max() == 1
    np.testing.assert_allclose(near, (values - 0.4) / 7.1, atol=1e-6)
    from_metres = DepthMap(1 / values, "metric").nearness()
    np.testing.assert_allclose(from_metres, near, atol=1e-5)
    metres = DepthMap(values, "metric").nearness()
    assert metres[0, 0] == 1 and metres[-1, -1] == 0


@pytest.mark.parametrize("kind", ["disparity", "metric"])
def test_flat_map_is_half_near(kind):
    np.testing.assert_array_equal(DepthMap(np.full((3, 4), 2.0), kind).nearness(), 0.5)
    assert DepthMap(np.zeros((1, 1)), kind).nearness() == 0.5


def test_invalid_pixels_do_not_stretch_the_range():
    values, valid = ramp(), holes()
    values[~valid] = np.nan
    depth = DepthMap(values, "disparity", valid)
    near = depth.nearness()
    assert (near[~valid] == 0).all() and near.max() == 1 and np.isfinite(depth.values).all()
    nothing = DepthMap(values, "metric", np.zeros_like(valid))
    assert (nothing.nearness() == 0).all()


@pytest.mark.parametrize(
    ("values", "kind", "valid", "reason"),
    [
        (np.zeros((2, 3, 1)), "disparity", None, r"\[2, 3, 1\]"),
        (np.zeros((0, 3)), "disparity", None, r"\[0, 3\]"),
        (np.array([["a"]]), "disparity", None, "numeric"),
        (np.zeros((2, 3)), "inverse", None, "inverse"),
        (np.full((2, 3), np.nan), "disparity", None, "NaN"),
        (np.full((2, 3), -1.0), "metric", None, "negative"),
        (np.zeros((2, 3)), "disparity", np.ones((3, 2), bool), "mask"),
        (np.zeros((2, 3)), "disparity", np.ones((2, 3)), "mask"),
    ],
)
def test_wrong_maps_are_refused(values, kind, valid, reason):
    with pytest.raises(InputError, match=reason):
        DepthMap(values, kind, valid)


@pytest.mark.parametrize("kind", ["disparity", "metric"])
@pytest.mark.parametrize("masked", [False, True])
def test_npz_round_trip_is_exact(tmp_path, kind, masked):
    depth = DepthMap(ramp(), kind, holes() if masked else None)
    depth.save_npz(tmp_path / "d.npz")
    stored = np.load(tmp_path / "d.npz")
    assert stored["values"].dtype == np.float32 and str(stored["kind"]) == kind
    again = DepthMap.load(tmp_path / "d.npz")
    np.testing.assert_array_equal(again.values, depth.values)
    assert again.kind == kind
    assert (again.valid is None) != masked
    if masked:
        np.testing.assert_array_equal(again.valid, holes())


@pytest.mark.parametrize("kind", ["disparity", "metric"])
@pytest.mark.parametrize("masked", [False, True])
def test_png_round_trip_keeps_sixteen_bits(tmp_path, kind, masked):
    depth = DepthMap(ramp(), kind, holes() if masked else None)
    depth.save_png(tmp_path / "d.png")
    with Image.open(tmp_path / "d.png") as image:
        assert image.mode == "I;16"
        codes = np.asarray(image)
    assert codes.max() == 65535
    np.testing.assert_allclose(codes / 65535, depth.nearness(), atol=1.6 / 65535)
    again = DepthMap.load(tmp_path / "d.png")
    assert again.kind == kind
    inverted = (lambda d: 1 / np.maximum(d.values, 1e-3)) if kind == "metric" else (lambda d: d.values)
    counted = holes() if masked else np.ones((6, 40), bool)
    span = np.ptp(inverted(depth)[counted])
    np.testing.assert_allclose(inverted(again)[counted], inverted(depth)[counted], atol=span / 65000)
    assert (again.valid is None) != masked


@pytest.mark.parametrize("depth", [DepthMap(np.full((3, 4), 2.5), "metric"), DepthMap(np.zeros((1, 1)), "disparity")])
def test_flat_map_survives_png(tmp_path, depth):
    depth.save_png(tmp_path / "flat.png")
    np.testing.assert_allclose(DepthMap.load(tmp_path / "flat.png").values, depth.values)


def test_files_of_others(tmp_path):
    codes = np.linspace(0, 9000, 60).astype(np.uint16).reshape(6, 10)
    Image.fromarray(codes).save(tmp_path / "mm.png")
    as_metres = DepthMap.load(tmp_path / "mm.png", "metric")
    np.testing.assert_allclose(as_metres.values, codes / 1000)
    assert not as_metres.valid[0, 0] and as_metres.valid[1:].all()
    assert DepthMap.load(tmp_path / "mm.png").kind == "disparity"

    Image.fromarray(codes.astype(np.uint8)).save(tmp_path / "eight.png")
    np.testing.assert_array_equal(DepthMap.load(tmp_path / "eight.png").values, codes.astype(np.uint8))
    with pytest.raises(InputError, match="8 bits"):
        DepthMap.load(tmp_path / "eight.png", "metric")

    metres = np.where(codes == 0, np.inf, codes).astype(np.float64)
    np.save(tmp_path / "raw.npy", metres)
    loaded = DepthMap.load(tmp_path / "raw.npy", "metric")
    assert loaded.kind == "metric" and not loaded.valid[0, 0]
    np.savez(tmp_path / "pair.npz", depth=codes.astype(np.float16), valid=codes > 100)
    loaded = DepthMap.load(tmp_path / "pair.npz", "metric")
    np.testing.assert_array_equal(loaded.valid, codes > 100)


def test_stated_kind_wins_over_a_wrong_request(tmp_path):
    DepthMap(ramp(), "metric").save_npz(tmp_path / "d.npz")
    with pytest.raises(InputError, match="metric, not disparity"):
        DepthMap.load(tmp_path / "d.npz", "disparity")


def bad_files():
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**21)})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("values.npy", header.getvalue() + b"few bytes")
    objects = io.BytesIO()
    np.savez(objects, values=np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    other = io.BytesIO()
    np.savez(other, picture=np.zeros((2, 2)))
    damaged = io.BytesIO()
    text = PngInfo()
    text.add_text("depth-control", json.dumps({"kind": "metric", "white_disparity": "x"}))
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(damaged, "PNG", pnginfo=text)
    return {
        "terabytes.npy": header.getvalue(),
        "terabytes.npz": archive.getvalue(),
        "objects.npz": objects.getvalue(),
        "other.npz": other.getvalue(),
        "text.npz": b"no archive",
        "empty.npy": b"",
        "note.png": damaged.getvalue(),
        "text.png": b"no image",
    }


@pytest.mark.parametrize("name", bad_files())
def test_bad_files_are_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(bad_files()[name])
    with pytest.raises(InputError) as caught:
        DepthMap.load(path)
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        DepthMap.load(tmp_path / f"absent-{name}")


def good_npz():
    file = io.BytesIO()
    np.savez_compressed(file, values=ramp(), kind=np.array("metric"), valid=holes())
    return file.getvalue()


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=12))
def test_damaged_npz_either_loads_or_is_refused(tmp_path_factory, changes):
    data = bytearray(good_npz())
    for position, value in changes:
        data[position % len(data)] = value
    path = tmp_path_factory.mktemp("fuzz") / "d.npz"
    path.write_bytes(data)
    try:
        DepthMap.load(path)
    except InputError:
        pass


def test_colours_brighten_towards_the_viewer(tmp_path):
    depth = DepthMap(np.linspace(0, 1, 512)[None], "disparity")
    picture = depth.colorize()
    assert (picture.mode, picture.size) == ("RGB", (512, 1))
    luma = np.asarray(picture, dtype=np.float32)[0] @ (0.2126, 0.7152, 0.0722)
    assert luma[-1] - luma[0] > 180 and (np.diff(luma) > -2).all() and (np.diff(luma[::16]) > 0).all()
    depth.save_color(tmp_path / "c.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "c.png")), np.asarray(picture))
    masked = DepthMap(ramp(), "disparity", holes()).colorize()
    assert masked.getpixel((3, 2)) == (128, 128, 128)
