"""Depth files: exact numbers from files in their true formats, and one clear error for every damaged file."""

import io
import struct
import sys

import h5py
import numpy as np
import OpenEXR
import pytest
from PIL import Image

from depth_model.data.formats import read_exr, read_hdf5, read_npy, read_pfm, read_png
from depth_model.errors import InputError

DEPTH = np.random.default_rng(0).uniform(0.5, 90, (20, 30)).astype(np.float32)


def read_depth(path):
    return read_hdf5(path, "depth")


def write_exr(path, **channels):
    OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, channels).write(str(path))


def write_hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array)


def write_pfm(path, values=DEPTH, header=b"Pf\n30 20\n-1.000000\n"):
    path.write_bytes(header + values[::-1].astype("<f4").tobytes())


WRITERS = {
    "pfm": (read_pfm, write_pfm),
    "npy": (read_npy, lambda path: np.save(path, DEPTH)),
    "h5": (read_depth, lambda path: write_hdf5(path, depth=DEPTH)),
    "exr": (read_exr, lambda path: write_exr(path, G=DEPTH)),
    "png": (read_png, lambda path: Image.fromarray((DEPTH * 700).astype(np.uint16)).save(path)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_numbers_are_exact(kind, tmp_path):
    read, write = WRITERS[kind]
    write(tmp_path / f"a.{kind}")
    values = read(tmp_path / f"a.{kind}")
    assert values.dtype == np.float32 and values.flags.c_contiguous
    np.testing.assert_array_equal(values, (DEPTH * 700).astype(np.uint16) if kind == "png" else DEPTH)


def test_pfm_of_big_endian_and_its_first_row_is_the_last_stored(tmp_path):
    (tmp_path / "a.pfm").write_bytes(b"Pf\n2 2\n1\n" + struct.pack(">4f", 1, 2, 3, 4))
    np.testing.assert_array_equal(read_pfm(tmp_path / "a.pfm"), [[3, 4], [1, 2]])


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"PF\n30 20\n-1\n", "not a grey PFM"),
        (b"", "not a grey PFM"),
        (b"Pf\n30 20\nnear\n", "not a readable PFM"),
        (b"Pf\n30 21\n-1\n", "need 2520 bytes, the file has 2400"),
        (b"Pf\n999999999 999999999\n-1\n", "at most 100 megapixels"),
        (b"Pf\n0 20\n-1\n", "array of shape"),
    ],
)
def test_a_wrong_pfm_header(header, said, tmp_path):
    write_pfm(tmp_path / "a.pfm", header=header)
    with pytest.raises(InputError, match=rf"a\.pfm.*{said}"):
        read_pfm(tmp_path / "a.pfm")


@pytest.mark.parametrize("name", ["G", "R", "Y", "depth.V"])
def test_exr_takes_the_channel_there_is(name, tmp_path):
    write_exr(tmp_path / "a.exr", **{name: DEPTH})
    np.testing.assert_array_equal(read_exr(tmp_path / "a.exr"), DEPTH)


def test_exr_takes_the_first_of_several_channels_and_half_floats(tmp_path):
    write_exr(tmp_path / "a.exr", R=DEPTH, B=DEPTH + 1, G=DEPTH + 2)
    np.testing.assert_array_equal(read_exr(tmp_path / "a.exr"), DEPTH + 1)
    write_exr(tmp_path / "half.exr", Y=DEPTH.astype(np.float16))
    np.testing.assert_array_equal(read_exr(tmp_path / "half.exr"), DEPTH.astype(np.float16))


def test_png_of_another_depth_of_bits_is_refused(tmp_path):
    grey = np.arange(600, dtype=np.uint8).reshape(20, 30)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_png(tmp_path / "a.png", bits=8), grey)
    with pytest.raises(InputError, match=r"a\.png: has 8 bits per pixel, where 16 were expected"):
        read_png(tmp_path / "a.png")


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("how", ["missing", "empty", "foreign", "folder", "short", "shorter", "an eighth short"])
def test_damaged_files_are_named(kind, how, tmp_path):
    read, write = WRITERS[kind]
    path = tmp_path / f"a.{kind}"
    if how == "folder":
        path.mkdir()
    elif how == "foreign":
        path.write_bytes(b"<html>not found</html>" * 40)
    elif how != "missing":
        write(path)
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[: {"empty": 0, "short": size // 2, "shorter": 40}.get(how, size * 7 // 8)])
    with pytest.raises(InputError, match=rf"a\.{kind}"):
        read(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_no_damaged_byte_gives_another_kind_of_error(kind, tmp_path):
    read, write = WRITERS[kind]
    path = tmp_path / f"a.{kind}"
    write(path)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(60):
        damaged = bytearray(whole)
        for position in rng.integers(min(len(whole), 400), size=3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read(path).ndim == 2
        except InputError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused


def npy(header):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(2400)


def test_npy_of_other_things_is_refused(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (20, 30), }"))
    assert (read_npy(path) == 0).all()
    for shape in ("(60000, 60000)", "(9223372036854775807, 9223372036854775807)", "(20, 31)"):
        path.write_bytes(npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"))
        with pytest.raises(InputError, match=r"a\.npy"):
            read_npy(path)
    archive = io.BytesIO()
    np.savez(archive, depth=DEPTH)
    path.write_bytes(archive.getvalue())
    with pytest.raises(InputError, match=r"a\.npy: not a readable npy file"):
        read_npy(path)
    for array in (DEPTH[..., None], DEPTH[0], np.array([["far"]]), DEPTH.astype(complex), np.array([[{}]], object)):
        np.save(path, array)
        with pytest.raises(InputError, match=r"a\.npy"):
            read_npy(path)


def test_hdf5_of_other_things_is_refused(tmp_path):
    path, secret = tmp_path / "a.h5", tmp_path / "secret"
    write_hdf5(path, dataset=DEPTH)
    with pytest.raises(InputError, match=r"a\.h5: has no array 'depth'"):
        read_depth(path)
    write_hdf5(path, depth=np.zeros((2, 2, 2)))
    with pytest.raises(InputError, match=r"a\.h5: holds an array of shape \(2, 2, 2\)"):
        read_depth(path)
    with h5py.File(path, "w") as file:
        file.create_group("depth")
    with pytest.raises(InputError, match="has no array"):
        read_depth(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("depth", (10**6, 10**6), "f4", chunks=(10, 10))
    with pytest.raises(InputError, match="at most 100 megapixels"):
        read_depth(path)
    # A file must not make us read another.
    secret.write_bytes(DEPTH.tobytes())
    with h5py.File(path, "w") as file:
        file.create_dataset("depth", DEPTH.shape, "f4", external=[(str(secret), 0, DEPTH.nbytes)])
    with pytest.raises(InputError, match="lie in another file"):
        read_depth(path)
    write_hdf5(secret, depth=DEPTH)
    with h5py.File(path, "w") as file:
        file["depth"] = h5py.ExternalLink(str(secret), "depth")
    with pytest.raises(InputError, match="has no array"):
        read_depth(path)


def test_exr_with_an_absurd_header_is_refused(tmp_path):
    path = tmp_path / "a.exr"
    write_exr(path, G=DEPTH)
    header = bytearray(path.read_bytes())
    window = header.index(b"dataWindow\0box2i\0") + len(b"dataWindow\0box2i\0") + 4
    for size in (9_999, 99_999, 2**30):
        header[window : window + 16] = struct.pack("<4i", 0, 0, size, size)
        path.write_bytes(header)
        with pytest.raises(InputError, match=r"a\.exr"):
            read_exr(path)


@pytest.mark.parametrize(("module", "kind"), [("h5py", "h5"), ("OpenEXR", "exr")])
def test_a_missing_library_is_named_with_its_remedy(module, kind, tmp_path, monkeypatch):
    read, write = WRITERS[kind]
    write(tmp_path / f"a.{kind}")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{module}; pip install \"depth-control\[data\]\""):
        read(tmp_path / f"a.{kind}")
