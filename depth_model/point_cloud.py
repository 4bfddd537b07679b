"""A depth map as a coloured point cloud in binary glTF 2.0, which browsers and 3D programs open."""

import json
import math
import struct

import numpy as np
from PIL import Image

_MAGIC, _VERSION, _JSON, _BINARY = b"glTF", 2, b"JSON", b"BIN\0"
_FLOAT, _UNSIGNED_BYTE, _POINTS = 5126, 5121, 0
_ARRAY_BUFFER = 34962
_LEVELS = np.arange(256) / 255
_LINEAR = np.round(255 * np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4)).astype(
    np.uint8
)


def unproject(distance: np.ndarray, field_of_view: float) -> np.ndarray:
    """Pinhole back-projection.

    Args:
        distance: float [H, W], depth along the viewing axis.
        field_of_view: Angle of the longer side, degrees.

    Returns:
        float32 [H, W, 3]: x right, y up, z towards the viewer, the camera at the origin (glTF's axes).
    """
    rows, columns = distance.shape
    focal = max(rows, columns) / 2 / math.tan(math.radians(field_of_view) / 2)
    x = (np.arange(columns) + 0.5 - columns / 2) / focal
    y = (rows / 2 - np.arange(rows) - 0.5) / focal
    return np.stack([x[None] * distance, y[:, None] * distance, -distance], axis=-1).astype(np.float32)


def encode_glb(points: np.ndarray, colours: np.ndarray) -> bytes:
    """One glTF mesh of points.

    Args:
        points: float32 [N, 3], N at least 1.
        colours: uint8 [N, 3], RGB as in picture files (sRGB); glTF stores them linear.

    Returns:
        The bytes of a `.glb` file; the same input gives the same bytes.
    """
    # Vertex attributes must start at multiples of 4 bytes, so colours carry an alpha.
    rgba = np.concatenate([_LINEAR[colours], np.full((len(colours), 1), 255, np.uint8)], axis=1)
    buffers = points.astype("<f4").tobytes(), rgba.tobytes()
    lengths = [len(buffer) for buffer in buffers]
    header = {
        "asset": {"version": "2.0", "generator": "depth-control"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": _POINTS, "material": 0}]}],
        # Points have no normals: lit, they would all be white or black.
        "materials": [{"extensions": {"KHR_materials_unlit": {}}}],
        "extensionsUsed": ["KHR_materials_unlit"],
        "buffers": [{"byteLength": sum(lengths)}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": lengths[0], "target": _ARRAY_BUFFER},
            {"buffer": 0, "byteOffset": lengths[0], "byteLength": lengths[1], "target": _ARRAY_BUFFER},
        ],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": _FLOAT,
                "count": len(points),
                "type": "VEC3",
                "min": points.min(axis=0).tolist(),
                "max": points.max(axis=0).tolist(),
            },
            {
                "bufferView": 1,
                "componentType": _UNSIGNED_BYTE,
                "normalized": True,
                "count": len(points),
                "type": "VEC4",
            },
        ],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = b"".join(
        struct.pack("<I4s", len(c), kind) + c for c, kind in ((text, _JSON), (b"".join(buffers), _BINARY))
    )
    return struct.pack("<4sII", _MAGIC, _VERSION, 12 + len(chunks)) + chunks


def thinning_mask(rows: int, columns: int, most: int) -> np.ndarray:
    """bool [rows, columns], True on every k-th row and column, with the least k that leaves at most `most` pixels."""
    step = math.ceil(math.sqrt(rows * columns / most))
    while math.ceil(rows / step) * math.ceil(columns / step) > max(most, 1):
        step += 1
    mask = np.full((rows, columns), False)
    mask[::step, ::step] = True
    return mask


def match_colours(image: Image.Image, rows: int, columns: int) -> np.ndarray:
    """The image's colours at a map's size, uint8 [rows, columns, 3]."""
    return np.asarray(image.convert("RGB").resize((columns, rows), Image.Resampling.BILINEAR))
