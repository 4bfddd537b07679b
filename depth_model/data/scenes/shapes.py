"""Triangle meshes of the things that stand in a procedural scene.

Every shape is a unit mesh: it stands on z = 0, is centred on the z axis and fits a 1 x 1 x 1 box, z up. A layout
scales, turns and moves it. `smooth` shapes are shaded with interpolated vertex normals.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import trimesh


@dataclass(frozen=True)
class Mesh:
    """Vertices float32 [V, 3], faces int32 [F, 3], vertex normals float32 [V, 3], and whether to shade smoothly."""

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    smooth: bool


def _mesh(mesh: trimesh.Trimesh, smooth: bool, fit: bool = True) -> Mesh:
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    if fit:
        low, high = vertices.min(0), vertices.max(0)
        vertices = (vertices - [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]) / np.maximum(high - low, 1e-6)
    faces = np.asarray(mesh.faces, dtype=np.int32)
    normals = _vertex_normals(vertices, faces) if smooth else np.zeros_like(vertices)
    return Mesh(vertices.astype(np.float32), faces, normals.astype(np.float32), smooth)


def _vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted means of the normals of the faces around each vertex (trimesh's own needs scipy)."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], np.cross(b - a, c - a))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _boxes(*boxes: tuple[float, float, float, float, float, float]) -> Mesh:
    """A union of axis-aligned boxes, each given as x0, y0, z0, x1, y1, z1."""
    parts = []
    for x0, y0, z0, x1, y1, z1 in boxes:
        part = trimesh.creation.box((x1 - x0, y1 - y0, z1 - z0))
        part.apply_translation(((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2))
        parts.append(part)
    return _mesh(trimesh.util.concatenate(parts), smooth=False)


def _turned(profile: list[tuple[float, float]]) -> Mesh:
    """A solid of revolution from (radius, height) points, bottom to top."""
    return _mesh(trimesh.creation.revolve(np.array(profile), sections=28), smooth=True)


def _rock(variant: int) -> Mesh:
    rng = np.random.default_rng(variant)
    ball = trimesh.creation.icosphere(subdivisions=2)
    directions = rng.normal(size=(6, 3))
    bumps = np.tanh(ball.vertices @ directions.T * 2) @ rng.uniform(-0.12, 0.12, 6)
    ball.vertices *= (1 + bumps + rng.uniform(-0.04, 0.04, len(bumps)))[:, None]
    return _mesh(ball, smooth=False)


def _tree(variant: int) -> Mesh:
    trunk = trimesh.creation.cylinder(radius=0.06, height=0.5, sections=10)
    trunk.apply_translation((0, 0, 0.25))
    parts = [trunk]
    if variant % 2:
        for level in range(3):
            cone = trimesh.creation.cone(radius=0.42 - 0.1 * level, height=0.4, sections=16)
            cone.apply_translation((0, 0, 0.3 + 0.22 * level))
            parts.append(cone)
    else:
        rng = np.random.default_rng(variant)
        for _ in range(6):
            ball = trimesh.creation.icosphere(subdivisions=2, radius=rng.uniform(0.16, 0.28))
            ball.apply_translation((*rng.uniform(-0.22, 0.22, 2), rng.uniform(0.55, 0.85)))
            parts.append(ball)
    return _mesh(trimesh.util.concatenate(parts), smooth=False)


def _stairs(variant: int) -> Mesh:
    steps = 4 + variant % 4
    return _boxes(*[(0, i / steps, 0, 1, (i + 1) / steps, (i + 1) / steps) for i in range(steps)])


def _shelf(variant: int) -> Mesh:
    boards = 3 + variant % 3
    levels = [(0, 0, i / boards * 0.97, 1, 1, i / boards * 0.97 + 0.03) for i in range(boards + 1)]
    back = [(0, 0.93, 0, 1, 1, 1)] if variant % 2 else []
    return _boxes((0, 0, 0, 0.05, 1, 1), (0.95, 0, 0, 1, 1, 1), *levels, *back)


def _table(variant: int) -> Mesh:
    leg = 0.05 + 0.04 * (variant % 2)
    corners = [(x, y) for x in (0.03, 0.97 - leg) for y in (0.03, 0.97 - leg)]
    return _boxes((0, 0, 0.92, 1, 1, 1), *[(x, y, 0, x + leg, y + leg, 0.93) for x, y in corners])


def _seat(variant: int) -> Mesh:
    if variant % 3 == 0:  # a chair
        legs = [(x, y, 0, x + 0.1, y + 0.1, 0.46) for x in (0, 0.9) for y in (0, 0.9)]
        return _boxes(*legs, (0, 0, 0.44, 1, 1, 0.52), (0, 0.88, 0.5, 1, 1, 1))
    if variant % 3 == 1:  # a sofa
        return _boxes(
            (0, 0, 0, 1, 1, 0.45), (0, 0.75, 0.4, 1, 1, 1), (0, 0, 0.4, 0.14, 1, 0.7), (0.86, 0, 0.4, 1, 1, 0.7)
        )
    return _boxes(
        (0, 0, 0, 1, 1, 0.55),
        (0, 0.93, 0, 1, 1, 1),
        (0.08, 0.68, 0.55, 0.46, 0.92, 0.7),
        (0.54, 0.68, 0.55, 0.92, 0.92, 0.7),
    )


_ARCH = [(0, 0, 0, 0.22, 1, 0.8), (0.78, 0, 0, 1, 1, 0.8), (0, 0, 0.78, 1, 1, 1)]
_VASES = [
    [(0, 0), (0.3, 0), (0.5, 0.35), (0.42, 0.6), (0.2, 0.8), (0.3, 1.0), (0, 1.0)],
    [(0, 0), (0.25, 0), (0.28, 0.1), (0.08, 0.2), (0.08, 0.55), (0.5, 1.0), (0, 0.9)],
    [(0, 0), (0.45, 0), (0.5, 0.2), (0.5, 0.6), (0.2, 0.75), (0.18, 1.0), (0, 1.0)],
]


@lru_cache(maxsize=256)
def shape(kind: str, variant: int = 0) -> Mesh:
    """The unit mesh of `kind`, one of `KINDS`; `variant` picks among its forms."""
    create = trimesh.creation
    match kind:
        case "box" if variant % 6 == 5:
            return _mesh(create.cylinder(radius=1, height=1, sections=6), smooth=False)  # a hexagonal prism
        case "box" if variant % 6 == 4:
            vertices = np.array(
                [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (1, 1, 1)], dtype=float
            )  # a wedge
            faces = [(0, 2, 1), (0, 3, 2), (0, 1, 5), (0, 5, 4), (3, 4, 5), (3, 5, 2), (0, 4, 3), (1, 2, 5)]
            return _mesh(trimesh.Trimesh(vertices, faces, process=False), smooth=False)
        case "box":
            return _mesh(create.box((1, 1, 1)), smooth=False)
        case "ball":
            return _mesh(create.icosphere(subdivisions=3), smooth=True)
        case "column":
            return _mesh(create.cylinder(radius=1, height=1, sections=28), smooth=False)
        case "cone":
            return _mesh(create.cone(radius=1, height=1, sections=4 if variant % 4 == 3 else 28), smooth=False)
        case "ring":
            ring = create.torus(
                major_radius=1, minor_radius=0.18 + 0.08 * (variant % 3), major_sections=32, minor_sections=14
            )
            if variant % 2:
                ring.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, (1, 0, 0)))
            return _mesh(ring, smooth=True)
        case "rock":
            return _rock(variant % 12)
        case "capsule":
            return _mesh(create.capsule(height=1.2, radius=0.5, count=(20, 20)), smooth=True)
        case "vase":
            return _turned(_VASES[variant % 3])
        case "arch":
            return _boxes(*_ARCH)
        case "tree":
            return _tree(variant % 8)
        case "stairs":
            return _stairs(variant)
        case "shelf":
            return _shelf(variant)
        case "table":
            return _table(variant)
        case "seat":
            return _seat(variant)
    raise ValueError(f"unknown shape {kind!r}")


KINDS = (
    "box", "ball", "column", "cone", "ring", "rock", "capsule",
    "vase", "arch", "tree", "stairs", "shelf", "table", "seat",
)  # fmt: skip


def heightfield(heights: np.ndarray, extent: float) -> Mesh:
    """A terrain: heights float [N, N] in metres over a square of side 2 * `extent` metres, centred on the origin."""
    n = len(heights)
    x, y = np.meshgrid(np.linspace(-extent, extent, n), np.linspace(-extent, extent, n), indexing="xy")
    vertices = np.stack([x.ravel(), y.ravel(), heights.ravel()], 1)
    corner = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    faces = np.concatenate(
        [np.stack([corner, corner + 1, corner + n], 1), np.stack([corner + 1, corner + n + 1, corner + n], 1)]
    )
    return _mesh(trimesh.Trimesh(vertices, faces, process=False), smooth=True, fit=False)
