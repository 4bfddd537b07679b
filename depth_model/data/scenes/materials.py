"""Procedural materials, as functions of the position on an object.

A material maps positions [N, 3] (metres, in the object's own frame) and normals [N, 3] to an albedo [N, 3] in linear
light, and has a specular strength and exponent. All patterns come from one fixed tile of value noise, so they are
deterministic.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_TILE = np.random.default_rng(20240119).random((32, 32, 32), dtype=np.float32)


def noise(position: np.ndarray, scale: float) -> np.ndarray:
    """Trilinear value noise in [0, 1] at positions [N, 3], features about 1 / `scale` metres wide; period 32 cells."""
    p = position * np.float32(scale)
    cell = np.floor(p)
    f = p - cell
    f = f * f * (3 - 2 * f)
    i = cell.astype(np.int32) & 31
    j = (i + 1) & 31
    x0, y0, z0, x1, y1, z1 = i[:, 0], i[:, 1], i[:, 2], j[:, 0], j[:, 1], j[:, 2]
    fx, fy, fz = f[:, 0], f[:, 1], f[:, 2]
    low = _lerp(_lerp(_TILE[x0, y0, z0], _TILE[x1, y0, z0], fx), _lerp(_TILE[x0, y1, z0], _TILE[x1, y1, z0], fx), fy)
    high = _lerp(_lerp(_TILE[x0, y0, z1], _TILE[x1, y0, z1], fx), _lerp(_TILE[x0, y1, z1], _TILE[x1, y1, z1], fx), fy)
    return _lerp(low, high, fz)


def _lerp(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    return a + (b - a) * t


def _blend(a: tuple, b: tuple, t: np.ndarray) -> np.ndarray:
    return np.float32(a) + (np.float32(b) - np.float32(a)) * t[:, None]


def _flat_axes(position: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two coordinates along a surface: the axis nearest to the normal is left out; v is upward on walls."""
    axis = np.abs(normal).argmax(1)
    u = np.where(axis == 0, position[:, 1], position[:, 0])
    v = np.where(axis == 2, position[:, 1], position[:, 2])
    return u, v


def _clay(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    return _blend((0.42, 0.10, 0.05), (0.60, 0.19, 0.10), noise(p, 2.5))


def _marble(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    vein = np.abs(np.sin(3 * p[:, 0] + 2 * p[:, 1] + 3 * p[:, 2] + 6 * noise(p, 1.5)))
    return _blend((0.35, 0.36, 0.40), (0.86, 0.86, 0.84), np.minimum(1, vein * 3))


def _gold(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    return _blend((0.70, 0.42, 0.06), (0.95, 0.66, 0.14), noise(p, 1.2))


def _oak(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    ring = np.sin(26 * np.hypot(p[:, 1] + 0.4, p[:, 0] * 0.15 + 0.3) + 5 * noise(p, 1.5))
    return _blend((0.22, 0.11, 0.04), (0.46, 0.27, 0.11), 0.5 + 0.5 * ring)


def _grass(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    return _blend((0.04, 0.16, 0.02), (0.22, 0.42, 0.07), 0.5 * noise(p, 1.2) + 0.5 * noise(p, 14))


def _ice(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    crack = np.abs(noise(p, 2.0) - 0.5) * 5
    return _blend((0.75, 0.90, 0.97), (0.22, 0.52, 0.80), np.minimum(1, crack))


def _stone(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    return _blend((0.012, 0.012, 0.014), (0.085, 0.085, 0.09), noise(p, 5) ** 2)


def _brick(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    u, v = _flat_axes(p, n)
    row = np.floor(v / 0.16)
    along = u / 0.42 + 0.5 * (row % 2)
    mortar = (v / 0.16 - row < 0.14) | (along - np.floor(along) < 0.06)
    tone = noise(np.stack([np.floor(along), row, np.zeros_like(row)], 1).astype(np.float32) + np.float32(0.37), 1.0)
    return np.where(
        mortar[:, None], np.float32((0.55, 0.52, 0.47)), _blend((0.36, 0.09, 0.04), (0.62, 0.22, 0.12), tone)
    )


def _checkerboard(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    q = np.floor((p + np.float32(0.001)) / np.float32(0.4)).sum(1) % 2
    return _blend((0.03, 0.03, 0.03), (0.85, 0.85, 0.85), q)


def _plastic(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.float32((0.90, 0.22, 0.45)), p.shape)


def _concrete(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    return _blend((0.24, 0.24, 0.24), (0.40, 0.40, 0.39), 0.6 * noise(p, 1.1) + 0.4 * noise(p, 9))


def _sand(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    return _blend((0.56, 0.43, 0.20), (0.74, 0.62, 0.36), 0.7 * noise(p, 1.5) + 0.3 * noise(p, 18))


@dataclass(frozen=True)
class Material:
    """Albedo in linear light as a function of position and normal [N, 3], and how the surface shines.

    `specular` is the strength of the highlight and `exponent` its Blinn-Phong sharpness; `metal` in [0, 1] is the share
    of diffuse light given up for a mirror image of the sky.
    """

    albedo: Callable[[np.ndarray, np.ndarray], np.ndarray]
    specular: float = 0.0
    exponent: float = 20.0
    metal: float = 0.0


MATERIALS: dict[str, Material] = {
    "red clay": Material(_clay),
    "white marble": Material(_marble, 0.25, 40),
    "gold": Material(_gold, 0.9, 30, metal=0.6),
    "oak wood": Material(_oak, 0.05, 15),
    "green grass": Material(_grass),
    "blue ice": Material(_ice, 0.5, 60, metal=0.15),
    "black stone": Material(_stone, 0.15, 25),
    "brick": Material(_brick),
    "checkerboard": Material(_checkerboard, 0.1, 40),
    "pink plastic": Material(_plastic, 0.5, 50),
    "grey concrete": Material(_concrete),
    "yellow sand": Material(_sand),
}
