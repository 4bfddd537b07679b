"""Depth files of the public data sets: each function turns one file into its numbers as stored, float32 [H, W].

All raise `InputError` with the file's name when it is missing, damaged or holds something else. Sizes in a header are
held against `MAX_PIXELS`, and against the size of the file where the format allows, before memory is taken.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from depth_model.errors import InputError
from depth_model.images import MAX_PIXELS, read_grey16

_PFM_HEADER = re.compile(rb"Pf\s+(\d{1,9})\s+(\d{1,9})\s+(\S{1,32})\r?\n")


def read_png(path: Path, bits: int = 16) -> np.ndarray:
    """A grey picture of 8 or 16 bits, as the whole numbers it stores.

    Raises:
        InputError: also for another number of bits: the wrong one would scale depth without a sign of it.
    """
    values, stored = read_grey16(path)
    if stored != bits:
        raise InputError(f"{path}: has {stored} bits per pixel, where {bits} were expected")
    return values


def read_pfm(path: Path) -> np.ndarray:
    """A grey PFM file: rows from the bottom up, little endian if the scale in the header is negative."""
    with _readable(path, "PFM"), open(path, "rb") as file:
        header = _PFM_HEADER.match(file.read(128))
        if not header:
            raise InputError(f"{path}: not a grey PFM file (it has no header 'Pf', width, height, scale)")
        width, height, scale = int(header[1]), int(header[2]), float(header[3])
        _check(path, (height, width), "f")
        size = file.seek(0, 2) - header.end()
        if size != 4 * width * height:
            raise InputError(f"{path}: {width} x {height} pixels need {4 * width * height} bytes, the file has {size}")
        file.seek(header.end())
        rows = np.fromfile(file, "<f4" if scale < 0 else ">f4").reshape(height, width)
        return np.ascontiguousarray(rows[::-1], np.float32)


def read_npy(path: Path) -> np.ndarray:
    """A NumPy file of numbers; pickled objects are refused."""
    # Of the size in the header, which must not wrap around.
    with _readable(path, "npy"), np.errstate(over="raise"):
        # Mapping a file fails when the file is shorter than its header says, and takes no memory.
        array = np.lib.format.open_memmap(path, mode="r")
        _check(path, array.shape, array.dtype.kind)
        return np.array(array, np.float32)


def read_hdf5(path: Path, key: str) -> np.ndarray:
    """The array `key` of an HDF5 file, which must lie in the file itself. Needs h5py."""
    try:
        import h5py
    except ImportError:
        raise InputError(f'{path}: HDF5 files need h5py; pip install "depth-control[data]"') from None
    with _readable(path, "HDF5"), h5py.File(path, "r") as file:
        # A link, or storage outside, could name any file of the machine.
        if not isinstance(file.get(key, getlink=True), h5py.HardLink) or not isinstance(file[key], h5py.Dataset):
            raise InputError(f"{path}: has no array '{key}'")
        array = file[key]
        if array.external or array.is_virtual:
            raise InputError(f"{path}: the numbers of '{key}' lie in another file")
        _check(path, array.shape, array.dtype.kind)
        if math.prod(array.chunks or ()) > MAX_PIXELS:
            raise InputError(f"{path}: '{key}' is stored in blocks of {array.chunks} numbers, which is too large")
        return array[()].astype(np.float32)


def read_exr(path: Path) -> np.ndarray:
    """The first channel, in the order of their names, of an OpenEXR file. Needs OpenEXR."""
    try:
        import OpenEXR
    except ImportError:
        raise InputError(f'{path}: EXR files need OpenEXR; pip install "depth-control[data]"') from None
    with _readable(path, "OpenEXR"):
        header = OpenEXR.File(str(path), header_only=True).header()
        (left, top), (right, bottom) = (map(int, corner) for corner in header["dataWindow"])
        shape = bottom - top + 1, right - left + 1
        if math.prod(shape) * len(header["channels"]) > MAX_PIXELS:
            raise InputError(f"{path}: {len(header['channels'])} channels of {shape} pixels are too large")
        pixels = next(iter(OpenEXR.File(str(path), separate_channels=True).channels().values())).pixels
        _check(path, pixels.shape, pixels.dtype.kind)
        return pixels.astype(np.float32)


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever a parser raises into one error; they meet damaged files with almost every type there is."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a readable {kind} file ({reason})") from error


def _check(path: Path, shape: Sequence[int], kind: str) -> None:
    if len(shape) != 2 or not 0 < math.prod(shape) <= MAX_PIXELS or kind not in "fiu":
        raise InputError(
            f"{path}: holds an array of shape {tuple(shape)} and kind '{kind}', where numbers [height, width] of at "
            f"most {MAX_PIXELS // 10**6} megapixels were expected"
        )
