"""A depth map with its meaning: the values, what they measure, and which of them count."""

import io
import json
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from depth_model.errors import InputError
from depth_model.images import MAX_PIXELS, read_grey16
from depth_model.point_cloud import encode_glb, match_colours, thinning_mask, unproject

KINDS = ("disparity", "metric")

NEAREST_METRES = 1e-3
"""Metric values are taken as at least this far away wherever they are inverted."""

FARTHEST_POINT = 4.0
"""Where a point cloud puts the farthest point of a map without a scale; the nearest is at 1."""

_NOTE = "depth-control"
_NEAR_CODE, _FAR_CODE = 65535, 1  # 0 marks invalid pixels

# Far to near: lightness rises evenly from 8 to 96 (CIELAB) while the hue turns from blue over red to yellow, so the map
# also reads correctly in grey.
_COLOURS = np.array(
    [
        (0, 23, 56),
        (40, 14, 143),
        (129, 0, 127),
        (187, 1, 117),
        (241, 19, 99),
        (255, 103, 87),
        (255, 158, 99),
        (254, 204, 131),
        (255, 245, 190),
    ],
    dtype=np.float32,
)
_INVALID_COLOUR = (128, 128, 128)


@dataclass(frozen=True, eq=False)
class DepthMap:
    """Depth of one image.

    Raises:
        InputError: values that are not a finite [H, W] array where valid, an unknown kind, negative metres, or a mask
            of another shape.
    """

    values: np.ndarray
    """float32 [H, W]; 0 where not valid."""
    kind: str
    """`disparity` (inverse depth up to scale and shift, larger = nearer) or `metric` (metres, larger = farther)."""
    valid: np.ndarray | None = None
    """bool [H, W], True where the value counts; None when all do."""

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if values.ndim != 2 or not values.size or values.dtype.kind not in "fiu":
            raise InputError(
                f"depth values: a numeric [H, W] array was expected, not {values.dtype} {list(values.shape)}"
            )
        if self.kind not in KINDS:
            raise InputError(f"depth kind {self.kind!r} is unknown; give {' or '.join(KINDS)}")
        values, valid = np.ascontiguousarray(values, dtype=np.float32), self.valid
        if valid is not None:
            valid = np.asarray(valid)
            if valid.shape != values.shape or valid.dtype != bool:
                raise InputError(
                    f"valid mask: bool {list(values.shape)} was expected, not {valid.dtype} {list(valid.shape)}"
                )
            values, valid = np.where(valid, values, np.float32(0)), None if valid.all() else valid
        if not np.isfinite(values).all():
            raise InputError("depth values: NaN or infinity in pixels that count; leave them out with valid=")
        if self.kind == "metric" and values.min() < 0:
            raise InputError(
                "depth values: negative metres; leave such pixels out with valid=, or give kind 'disparity'"
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "valid", valid)

    def nearness(self) -> np.ndarray:
        """Disparity stretched to [0, 1] over the valid pixels, float32 [H, W]: nearest 1, farthest 0.

        Metric maps are inverted first. A flat map gives 0.5, pixels that are not valid 0.
        """
        disparity, far, near = self._disparity_range()
        # Within rounding of flat, stretching would show nothing but noise.
        if near - far <= 1e-6 * max(abs(near), abs(far)):
            result = np.full(disparity.shape, 0.5, np.float32)
        else:
            result = np.clip((disparity - np.float32(far)) / np.float32(near - far), 0, 1)
        return result if self.valid is None else np.where(self.valid, result, np.float32(0))

    def colorize(self) -> Image.Image:
        """Draw the map in colour, RGB of the same size: near is bright yellow, far dark blue, invalid grey."""
        steps = np.linspace(0, 1, 1024)
        anchors = np.linspace(0, 1, len(_COLOURS))
        table = (
            np.stack([np.interp(steps, anchors, channel) for channel in _COLOURS.T], axis=-1).round().astype(np.uint8)
        )
        picture = table[np.round(self.nearness() * np.float32(len(steps) - 1)).astype(np.uint16)]
        if self.valid is not None:
            picture[~self.valid] = _INVALID_COLOUR
        return Image.fromarray(picture)

    def save_color(self, path: str | os.PathLike) -> None:
        """Write `colorize()` to an image file."""
        self.colorize().save(path)

    def save_png(self, path: str | os.PathLike | BinaryIO, effort: int = 6) -> None:
        """Write a 16-bit grey PNG, near = white, from which `load` restores the values to 16-bit precision.

        Codes 1 to 65535 are `nearness()`, 0 is not valid; kind and range stand in the PNG text. `effort` is zlib's, 0
        to 9: 1 takes a fifth of the time of 6, for 4 % more bytes.
        """
        _, far, near = self._disparity_range()
        codes = np.round(self.nearness() * np.float32(_NEAR_CODE - _FAR_CODE)).astype(np.uint16) + np.uint16(_FAR_CODE)
        if self.valid is not None:
            codes[~self.valid] = 0
        text = PngInfo()
        text.add_text(_NOTE, json.dumps({"kind": self.kind, "white_disparity": near, "black_disparity": far}))
        Image.fromarray(codes).save(path, format="PNG", pnginfo=text, compress_level=effort)

    def save_npz(self, path: str | os.PathLike) -> None:
        """Write `values` float32, `kind`, and `valid` unless all pixels are, as a compressed npz. Exact."""
        arrays = {"values": self.values, "kind": np.array(self.kind)}
        if self.valid is not None:
            arrays["valid"] = self.valid
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    def save_glb(
        self,
        path: str | os.PathLike,
        image: Image.Image | None = None,
        field_of_view: float = 55.0,
        most: int = 250_000,
    ) -> None:
        """Write the valid pixels as a coloured point cloud, binary glTF.

        Metric maps are in metres. Disparity has no scale: there the nearest point is put at 1 and the farthest at
        `FARTHEST_POINT`, evenly in inverse distance.

        Args:
            path: the `.glb` file.
            image: the picture that gives the colours, of any size; `colorize()` by default.
            field_of_view: angle of the longer side, degrees, between 1 and 170.
            most: points at most; rows and columns are skipped evenly beyond.

        Raises:
            InputError: no valid pixel, or an angle out of range.
        """
        if not 1 <= field_of_view <= 170:
            raise InputError(f"field_of_view must be from 1 to 170 degrees, not {field_of_view}")
        valid = np.full(self.values.shape, True) if self.valid is None else self.valid
        distance = self.values
        if self.kind == "disparity":
            distance = 1 / (1 / FARTHEST_POINT + self.nearness() * (1 - 1 / FARTHEST_POINT))
        kept = valid & thinning_mask(*valid.shape, most)
        kept = kept if kept.any() else valid
        if not kept.any():
            raise InputError("a depth map without a valid pixel makes no point cloud")
        colours = match_colours(image or self.colorize(), *valid.shape)
        Path(path).write_bytes(encode_glb(unproject(distance, field_of_view)[kept], colours[kept]))

    @classmethod
    def load(cls, path: str | os.PathLike, kind: str | None = None) -> Self:
        """Read a depth map.

        Understood: what `save_npz` and `save_png` write; any npz with `values` or `depth`, and optionally `valid` and
        `kind`; a `.npy` array; a grey image, near = white. Values that are not finite count as not valid.

        Args:
            path: the file.
            kind: what the values are when the file does not say; "disparity" by default. A 16-bit image of kind
                "metric" holds millimetres, 0 = not valid.

        Raises:
            InputError: missing, damaged or too large, no depth in it, or of another kind than `kind`.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        readers = {".npz": _read_npz, ".npy": _read_npy}
        values, valid, stated = readers.get(path.suffix.lower(), _read_image)(path, kind)
        if stated and kind and stated != kind:
            raise InputError(f"{path}: holds a depth map of kind {stated}, not {kind}")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            finite = np.isfinite(values)
            valid = finite if valid is None else valid & finite
        try:
            return cls(values, stated or kind or "disparity", valid)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def from_png(cls, data: bytes, name: str) -> Self:
        """Read the bytes of a PNG that `save_png` wrote; `name` is what messages call it.

        Raises:
            InputError: damaged, or without the text that says what the numbers mean.
        """
        try:
            codes, _ = read_grey16(data)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        note = _read_note(io.BytesIO(data), name)
        if note is None:
            raise InputError(f"{name}: a PNG without the depth map's range in its text")
        values, valid, kind = _from_codes(codes, note)
        return cls(values, kind, valid)

    def _disparity_range(self) -> tuple[np.ndarray, float, float]:
        disparity = self.values if self.kind == "disparity" else 1 / np.maximum(self.values, np.float32(NEAREST_METRES))
        counted = disparity if self.valid is None else disparity[self.valid]
        return (disparity, float(counted.min()), float(counted.max())) if counted.size else (disparity, 0.0, 0.0)


_Content = tuple[np.ndarray, np.ndarray | None, str | None]


def _read_image(path: Path, kind: str | None) -> _Content:
    codes, bits = read_grey16(path)
    note = _read_note(path, str(path))
    if note is None:
        if kind != "metric":
            return codes, None, None
        if bits == 8:
            raise InputError(
                f"{path}: 8 bits cannot hold metres; give a 16-bit image in millimetres, or an npz in metres"
            )
        return (codes / 1000 if bits == 16 else codes), codes > 0, None
    return _from_codes(codes, note)


def _from_codes(codes: np.ndarray, note: tuple[str, float, float]) -> _Content:
    stated, far, near = note
    disparity = far + (codes - _FAR_CODE) / np.float32(_NEAR_CODE - _FAR_CODE) * (near - far)
    valid = codes >= _FAR_CODE
    return (1 / np.maximum(disparity, 1e-9) if stated == "metric" else disparity), valid, stated


def _read_note(file: Path | BinaryIO, name: str) -> tuple[str, float, float] | None:
    with Image.open(file) as image:
        text = image.info.get(_NOTE) if image.format == "PNG" else None
    if text is None:
        return None
    try:
        note = json.loads(text)
        kind, far, near = note["kind"], float(note["black_disparity"]), float(note["white_disparity"])
        if kind not in KINDS or not math.isfinite(far) or not math.isfinite(near):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(f"{name}: the PNG text '{_NOTE}' is damaged; save the depth map again") from None
    return kind, far, near


def _read_npy(path: Path, kind: str | None) -> _Content:
    with open(path, "rb") as file:
        return _read_array(file, path.stat().st_size, str(path)), None, None


def _read_npz(path: Path, kind: str | None) -> _Content:
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for key in ("values", "depth", "valid", "kind"):
                if f"{key}.npy" in archive.namelist():
                    info = archive.getinfo(f"{key}.npy")
                    with archive.open(info) as file:
                        found[key] = _read_array(file, info.file_size, f"{path}: {key}")
    except InputError:
        raise
    except Exception:
        # Damaged archives make zipfile and zlib raise many types.
        raise InputError(f"{path}: not a readable npz file, or damaged") from None
    values = found.get("values", found.get("depth"))
    if values is None:
        raise InputError(f"{path}: has neither 'values' nor 'depth' in it")
    valid, stated = found.get("valid"), found.get("kind")
    if stated is not None and (stated.shape or str(stated) not in KINDS):
        raise InputError(f"{path}: its kind must be {' or '.join(KINDS)}")
    return values, valid, None if stated is None else str(stated)


def _read_array(file: BinaryIO, size: int, name: str) -> np.ndarray:
    """Read one npy stream of `size` bytes; a header of a few bytes could ask for terabytes, so it is checked first."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, _, dtype = headers[np.lib.format.read_magic(file)](file)
        count = math.prod(shape)
        if dtype.kind not in "fiubU" or count > MAX_PIXELS or count * dtype.itemsize != size - file.tell():
            raise InputError(f"{name}: {dtype} {list(shape)} is not a depth array, is too large, or is cut off")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    except InputError:
        raise
    except Exception:
        # Damaged headers and streams make numpy, ast and zlib raise many types.
        raise InputError(f"{name}: not a readable numpy array, or damaged") from None
