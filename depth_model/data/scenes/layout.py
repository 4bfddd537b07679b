"""What stands where: rooms, plains and hills with their furniture, camera and light, drawn from one generator."""

from dataclasses import dataclass

import numpy as np

from depth_model.data.scenes.materials import MATERIALS
from depth_model.data.scenes.render import Camera, Light, Part
from depth_model.data.scenes.shapes import KINDS, heightfield, shape

CLASSES = ("sky", "ground", "wall", "ceiling", *KINDS)
GROUNDS = ("room", "hills", "plain")
LIGHTS = ("noon", "sunset", "night", "fog", "indoor")

_SOLIDS = ("box", "ball", "column", "cone", "ring", "rock", "capsule", "vase", "arch", "stairs")
_WIDE_OPEN = (*_SOLIDS, "tree", "tree", "rock", "column", "box", "table")


@dataclass(frozen=True)
class Layout:
    """A scene before it is rendered: its parts, camera and light, and the words that describe it."""

    parts: list[Part]
    camera: Camera
    light: Light
    ground: str
    ground_material: str
    shape_materials: tuple[str, ...]
    light_name: str


def _yaw(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([(c, -s, 0), (s, c, 0), (0, 0, 1)])


def _tumble(rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def _place(
    kind: str, rng: np.random.Generator, size: tuple[float, float, float], at, material: str, yaw: float | None = None
) -> Part:
    """A shape of `size` metres standing at `at` [3], turned by `yaw` (any when None) and sometimes tumbled over."""
    linear = _yaw(rng.uniform(0, 2 * np.pi) if yaw is None else yaw) @ np.diag(size)
    offset = np.asarray(at, dtype=float)
    if yaw is None and kind in ("box", "rock", "ring", "capsule", "column", "cone") and rng.random() < 0.25:
        linear = _tumble(rng) @ linear
        offset = offset - [0, 0, min(0.0, float((shape(kind).vertices @ linear.T)[:, 2].min()))]
    return Part(shape(kind, int(rng.integers(24))), linear, offset, CLASSES.index(kind), material)


def _proportions(kind: str, rng: np.random.Generator, scale: float) -> tuple[float, float, float]:
    """Plausible extents in metres for a free-standing shape whose height is about `scale`."""
    squash = rng.uniform(0.75, 1.3)
    match kind:
        case "column" | "tree" | "vase":
            width = scale * rng.uniform(0.22, 0.55)
            return width, width, scale * 1.4
        case "ball" | "ring":
            return scale, scale * (1 if kind == "ball" else 0.35), scale
        case "capsule":
            return scale * 0.55, scale * 0.55, scale
        case "arch" | "stairs" | "shelf":
            return scale * rng.uniform(0.7, 1.2), scale * rng.uniform(0.3, 0.8), scale * 1.2
        case "table":
            return scale * rng.uniform(1.2, 2.2), scale * rng.uniform(0.8, 1.4), scale
        case _:
            return scale * rng.uniform(0.5, 1.3), scale * rng.uniform(0.5, 1.3), scale * squash


def _look(position: np.ndarray, yaw: float, pitch: float, roll: float, fov: float) -> Camera:
    forward = np.array([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    return Camera(position, np.stack([c * right + s * down, c * down - s * right, forward]), fov)


def _room(rng: np.random.Generator, ground: str, pick) -> tuple[list[Part], Camera, float]:
    """A furnished room: pieces along the walls, pieces in the middle, small things on tables, frames on the walls."""
    half_x, half_y, height = rng.uniform(1.4, 4.0), rng.uniform(1.4, 4.5), rng.uniform(2.2, 3.4)
    slab = np.diag
    parts = [
        Part(shape("box"), slab((2 * half_x + 1, 2 * half_y + 1, 0.2)), np.array([0, 0, -0.2]), 1, ground),
        Part(shape("box"), slab((2 * half_x + 1, 2 * half_y + 1, 0.2)), np.array([0, 0, height]), 3, ground),
    ]
    walls = [(half_x, 0.0, np.pi / 2), (-half_x, 0.0, -np.pi / 2), (0.0, half_y, np.pi), (0.0, -half_y, 0.0)]
    for x, y, _ in walls:
        extent = (0.2, 2 * half_y + 0.4, height) if x else (2 * half_x + 0.4, 0.2, height)
        parts.append(
            Part(shape("box"), slab(extent), np.array([x + 0.1 * np.sign(x), y + 0.1 * np.sign(y), 0]), 2, ground)
        )
    for x, y, yaw in walls:
        length = half_y if x else half_x
        for _ in range(rng.integers(0, 4)):
            kind = str(
                rng.choice(["shelf", "shelf", "table", "seat", "seat", "box", "box", "column", "stairs", "arch"])
            )
            depth = rng.uniform(0.3, 0.7) if kind in ("shelf", "arch") else rng.uniform(0.5, 1.1)
            size = (
                rng.uniform(0.5, 2.0),
                depth,
                rng.uniform(0.6, 2.1) if kind in ("shelf", "box", "arch", "column") else rng.uniform(0.6, 1.1),
            )
            along = rng.uniform(-length + 0.4, length - 0.4)
            gap = depth / 2 + 0.02
            at = (x - np.sign(x) * gap, along, 0) if x else (along, y - np.sign(y) * gap, 0)
            parts.append(_place(kind, rng, size, at, pick(), yaw=yaw + np.pi))
            if rng.random() < 0.5 and kind in ("table", "box", "shelf"):
                parts.append(_small_thing(rng, at, size[2], pick()))
        if rng.random() < 0.5:  # a board on the wall: a picture, a cupboard or a window sill
            size = (rng.uniform(0.4, 1.5), rng.uniform(0.05, 0.35), rng.uniform(0.3, 1.0))
            along, up = rng.uniform(-length + 0.5, length - 0.5), rng.uniform(1.0, max(1.05, height - 1.1))
            at = (x - np.sign(x) * size[1] / 2, along, up) if x else (along, y - np.sign(y) * size[1] / 2, up)
            parts.append(_place("box", rng, size, at, pick(), yaw=yaw))
    for _ in range(rng.integers(1, 7)):
        kind = str(rng.choice([*_SOLIDS, "table", "table", "seat", "seat", "box"]))
        size = _proportions(kind, rng, rng.uniform(0.35, 1.3))
        at = (rng.uniform(-half_x + 0.5, half_x - 0.5), rng.uniform(-half_y + 0.5, half_y - 0.5), 0)
        parts.append(_place(kind, rng, size, at, pick(), yaw=None))
        if kind in ("table", "box") and rng.random() < 0.7:
            parts.append(_small_thing(rng, at, size[2], pick()))
    corner = np.array(
        [rng.choice([-1, 1]) * half_x * rng.uniform(0.3, 0.85), rng.choice([-1, 1]) * half_y * rng.uniform(0.3, 0.85)]
    )
    target = -corner * rng.uniform(0, 1.2) + rng.normal(size=2) * 0.4
    yaw = np.arctan2(target[1] - corner[1], target[0] - corner[0])
    eye = np.array([*corner, rng.uniform(0.8, 1.9)])
    camera = _look(
        eye, yaw, np.radians(rng.normal(-10, 9)), np.radians(rng.normal(0, 3)), np.radians(rng.uniform(42, 65))
    )
    return parts, camera, height


def _small_thing(rng: np.random.Generator, at, top: float, material: str) -> Part:
    kind = str(rng.choice(["ball", "vase", "box", "cone", "capsule", "ring", "rock"]))
    scale = rng.uniform(0.12, 0.4)
    position = (at[0] + rng.uniform(-0.15, 0.15), at[1] + rng.uniform(-0.15, 0.15), top)
    return _place(kind, rng, _proportions(kind, rng, scale), position, material, yaw=rng.uniform(0, 2 * np.pi))


def _terrain(rng: np.random.Generator, ground: str) -> np.ndarray:
    """Heights [81, 81] in metres over 120 x 120 m: nearly flat plains, or hills as a sum of plane waves."""
    axis = np.linspace(-60, 60, 81)
    x, y = np.meshgrid(axis, axis)
    heights = np.zeros_like(x)
    amplitude = rng.uniform(1.5, 4.0) if ground == "hills" else rng.uniform(0, 0.15)
    for _ in range(9):
        length, angle = rng.uniform(9, 45), rng.uniform(0, 2 * np.pi)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / length + rng.uniform(0, 2 * np.pi))
        heights += amplitude * wave * length / 90
    return heights


def _open_air(rng: np.random.Generator, ground: str, material: str, pick) -> tuple[list[Part], Camera]:
    """A terrain with shapes at all distances in front of the camera, some of them in groups."""
    heights = _terrain(rng, ground)
    parts = [Part(heightfield(heights, 60.0), np.eye(3), np.zeros(3), 1, material)]

    def height_at(x: float, y: float) -> float:
        i, j = np.clip(np.rint((np.array([y, x]) + 60) / 1.5).astype(int), 0, 80)
        return float(heights[i, j])

    for _ in range(rng.integers(5, 20)):
        distance = np.exp(rng.uniform(np.log(2.0), np.log(28.0)))
        angle = rng.uniform(-0.55, 0.55)
        x, y = distance * np.cos(angle), distance * np.sin(angle)
        kind = str(rng.choice(_WIDE_OPEN))
        size = _proportions(kind, rng, rng.uniform(0.35, 1.3) * (0.5 + 0.16 * distance))
        base = (x, y, height_at(x, y) - 0.05 * size[2])
        parts.append(_place(kind, rng, size, base, pick()))
        if rng.random() < 0.25:
            top = _place(str(rng.choice(_SOLIDS)), rng, tuple(0.6 * s for s in size), (x, y, base[2] + size[2]), pick())
            parts.append(top)
    eye = np.array([0.0, 0.0, height_at(0, 0) + rng.uniform(0.8, 3.0)])
    camera = _look(
        eye,
        rng.normal(0, 0.05),
        np.radians(rng.normal(-6, 6)),
        np.radians(rng.normal(0, 3)),
        np.radians(rng.uniform(42, 65)),
    )
    return parts, camera


def _light(rng: np.random.Generator, name: str, ground: str, height: float) -> Light:
    colours = {  # sun or lamp, ambient, horizon, zenith, haze per metre
        "noon": ((1.9, 1.8, 1.6), (0.42, 0.48, 0.56), (0.62, 0.76, 0.92), (0.12, 0.32, 0.80), 0.002),
        "sunset": ((2.1, 0.95, 0.32), (0.34, 0.22, 0.26), (0.95, 0.42, 0.16), (0.22, 0.16, 0.42), 0.006),
        "night": ((0.20, 0.26, 0.46), (0.045, 0.06, 0.13), (0.03, 0.045, 0.11), (0.004, 0.007, 0.03), 0.004),
        "fog": ((0.15, 0.15, 0.15), (0.50, 0.52, 0.54), (0.60, 0.62, 0.64), (0.60, 0.62, 0.64), 0.09),
        "indoor": ((1.7, 1.35, 0.95), (0.40, 0.34, 0.27), (0.60, 0.50, 0.38), (0.45, 0.38, 0.30), 0.0),
    }
    sun, ambient, horizon, zenith, haze = colours[name]
    direction = lamp = None
    if ground == "room":
        high = height - rng.uniform(0.15, 0.5) if name in ("indoor", "noon") else rng.uniform(1.0, 1.8)
        lamp = np.array([*rng.uniform(-1.0, 1.0, 2), high])
        haze = {"fog": 0.11}.get(name, 0.0)
    else:
        elevation = {"sunset": rng.uniform(8, 20), "noon": rng.uniform(45, 75)}.get(name, rng.uniform(30, 60))
        azimuth = rng.uniform(0, 2 * np.pi)
        e = np.radians(elevation)
        direction = np.array([np.cos(e) * np.cos(azimuth), np.cos(e) * np.sin(azimuth), np.sin(e)])
    array = [np.float32(c) for c in (sun, ambient, horizon, zenith)]
    return Light(direction, lamp, *array, haze)


def draw_layout(rng: np.random.Generator) -> Layout:
    """One random scene. Its words and its geometry come from the same generator, so (seed, index) decides all of it."""
    names = list(MATERIALS)
    ground = str(rng.choice(GROUNDS, p=[0.5, 0.3, 0.2]))
    ground_material = str(rng.choice(names))
    count = 2 if rng.random() < 0.15 else 1
    shape_materials = tuple(str(name) for name in rng.choice(names, count, replace=False))
    if rng.random() < 0.15:
        shape_materials = (ground_material,)
    outdoor = LIGHTS[:4]
    light_name = str(
        rng.choice(LIGHTS, p=[0.2, 0.2, 0.15, 0.1, 0.35])
        if ground == "room"
        else rng.choice(outdoor, p=[0.35, 0.3, 0.2, 0.15])
    )

    def pick() -> str:
        return str(rng.choice(shape_materials))

    height = 3.0
    if ground == "room":
        parts, camera, height = _room(rng, ground_material, pick)
    else:
        parts, camera = _open_air(rng, ground, ground_material, pick)
    light = _light(rng, light_name, ground, height)
    return Layout(parts, camera, light, ground, ground_material, shape_materials, light_name)
