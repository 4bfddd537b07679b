"""Depth to ControlNet condition: the one place where it happens, for training, inference and the app.

Depth ControlNets for Stable Diffusion read inverse depth, near = 1, in [0, 1]. Everything here is float; 8 or 16 bits
appear only when a file is written.
"""

import math
import os
from typing import Any

import numpy as np
from PIL import Image

from depth_model import DepthMap
from depth_model.errors import InputError
from depth_model.images import read_grey16

LARGEST = 1e30
"""Disparity or metres beyond this are somebody's infinity, and would overflow."""


def to_control(
    depth: Any,
    near: float = 0.0,
    far: float = 1.0,
    gamma: float = 1.0,
    invert: bool = False,
    *,
    depth_kind: str | None = None,
) -> np.ndarray:
    """Turn a depth map into a ControlNet condition.

    The map's valid disparity runs from its maximum (position 0, nearest) to its minimum (position 1, farthest). The
    window `near`..`far` of those positions becomes 1..0, anything outside is clipped, and `gamma` is applied as
    `control ** gamma`. `invert` comes last and gives the exact complement, `1 - control`.

    Args:
        depth: `DepthMap`, a file that holds one, array or tensor [H, W], or a grey PIL image of 8, 16 or 32 bits. Where
            the kind is not stated it is disparity (near bright, any scale) unless `depth_kind` says otherwise.
        near: Position that becomes 1. Below 0, the nearest point stays under 1.
        far: Position that becomes 0, above `near`. Above 1, the farthest point stays over 0.
        gamma: Exponent, above 0; values over 1 darken the middle distance.
        invert: Make far bright, for networks trained that way.
        depth_kind: "disparity", or "metric" (metres, larger = farther; turned into disparity 1 / d first).

    Returns:
        float32 [H, W] in [0, 1], near = 1. Invalid pixels (masked out, NaN, infinite, metres <= 0) get what the
        farthest point gets: 0, or 1 with `invert`. Where all valid pixels are equally far they are 0.5.

    Raises:
        InputError: Not a depth map, an unknown or contradictory kind, or parameters out of range.
    """
    check_window(near, far, gamma)
    depth = as_depth_map(depth, depth_kind)
    valid = np.full(depth.values.shape, True) if depth.valid is None else depth.valid
    position = 1.0 - depth.nearness()[valid]
    control = np.zeros(depth.values.shape, np.float32)
    if position.size and position.min() == position.max():
        control[valid] = 0.5
    else:
        control[valid] = np.clip((far - position) / (far - near), 0.0, 1.0) ** gamma
    return 1.0 - control if invert else control


def check_window(near: float, far: float, gamma: float, prefix: str = "") -> None:
    """Check the parameters of `to_control`.

    Args:
        near: See `to_control`.
        far: See `to_control`.
        gamma: See `to_control`.
        prefix: Put before the names in messages, "--" for command line flags.

    Raises:
        InputError: A parameter is not finite, `near >= far`, or `gamma <= 0`.
    """
    for name, value in (("near", near), ("far", far), ("gamma", gamma)):
        if not math.isfinite(value):
            raise InputError(f"{prefix}{name} must be a finite number, not {value}")
    if near >= far:
        raise InputError(f"{prefix}near ({near}) must be less than {prefix}far ({far}): 0 is the nearest point")
    if gamma <= 0:
        raise InputError(f"{prefix}gamma must be above 0, not {gamma}")


def as_depth_map(depth: Any, depth_kind: str | None = None) -> DepthMap:
    """Wrap whatever holds depth in a `DepthMap`.

    Args:
        depth: As in `to_control`.
        depth_kind: As in `to_control`. A 16-bit image of kind "metric" holds millimetres.

    Returns:
        The map at its own scale; what cannot be a distance (NaN, infinity, metres <= 0) is not valid.

    Raises:
        InputError: Not a depth map, or an unknown or contradictory kind.
    """
    if depth_kind not in (None, "disparity", "metric"):
        raise InputError(f"depth_kind must be 'disparity' or 'metric', not {depth_kind!r}")
    if isinstance(depth, str | os.PathLike):
        depth = DepthMap.load(depth, depth_kind)
    if isinstance(depth, DepthMap):
        values, kind, valid = depth.values, depth.kind, depth.valid
        if depth_kind not in (None, kind):
            raise InputError(f"depth_kind is '{depth_kind}', but the depth map says that it is '{kind}'")
    else:
        values, kind, valid = _to_array(depth, depth_kind), depth_kind or "disparity", None
    usable = np.abs(values) <= LARGEST
    if kind == "metric":
        usable &= values > 0
    return DepthMap(values, kind, usable if valid is None else usable & valid)


def resize_map(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a map in float, bilinear, averaging when it shrinks.

    Args:
        values: float32 [H, W], finite.
        height: Rows wanted.
        width: Columns wanted.

    Returns:
        float32 [height, width], within the range of `values`.
    """
    if values.shape == (height, width):
        return values
    resized = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
    return np.clip(resized, values.min(), values.max())


def _to_array(depth: Any, depth_kind: str | None) -> np.ndarray:
    """float32 [H, W] as given; NaN and infinity may be in it."""
    if isinstance(depth, Image.Image):
        values, bits = read_grey16(depth)
        if depth_kind == "metric" and bits == 8:
            raise InputError("depth: 8 bits cannot hold metres; give a 16-bit image in millimetres, or an array")
        return values / 1000 if depth_kind == "metric" and bits == 16 else values
    if hasattr(depth, "detach"):
        depth = depth.detach().cpu().float()
    try:
        values = np.asarray(depth)
    except ValueError:
        values = np.empty(0, object)
    if values.dtype.kind not in "iuf" or not values.size:
        raise InputError(f"depth must be a DepthMap, an array [H, W] or a grey image, not {type(depth).__name__}")
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2:
        raise InputError(f"depth must have the shape [H, W], not {list(values.shape)}")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
