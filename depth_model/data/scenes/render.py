"""Ray casting of a laid-out scene with Embree: colour, exact planar depth, valid mask and class labels."""

from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from depth_model.data.scenes.materials import MATERIALS
from depth_model.data.scenes.shapes import Mesh

FAR = 500.0  # metres; nothing is placed beyond


@dataclass(frozen=True)
class Part:
    """A mesh in the world: position = `linear` @ unit vertex + `offset` (metres, z up), its class and material."""

    mesh: Mesh
    linear: np.ndarray
    offset: np.ndarray
    label: int
    material: str


@dataclass(frozen=True)
class Camera:
    """A pinhole: `position` [3] in metres, rows of `rotation` right, down, forward, `fov` vertical in radians."""

    position: np.ndarray
    rotation: np.ndarray
    fov: float

    def rays(self, height: int, width: int, offset_x: float = 0.5, offset_y: float = 0.5) -> np.ndarray:
        """Directions float32 [H * W, 3] with unit planar depth through (x + offset_x, y + offset_y) of each pixel."""
        focal = height / 2 / np.tan(self.fov / 2)
        x = (np.arange(width) + offset_x - width / 2) / focal
        y = (np.arange(height) + offset_y - height / 2) / focal
        grid = np.stack([*np.meshgrid(x, y), np.ones((height, width))], -1).reshape(-1, 3)
        return (grid @ self.rotation).astype(np.float32)


@dataclass(frozen=True)
class Light:
    """A named light: sun direction or lamp position, colours in linear light, sky gradient, haze per metre."""

    direction: np.ndarray | None
    lamp: np.ndarray | None
    colour: np.ndarray
    ambient: np.ndarray
    horizon: np.ndarray
    zenith: np.ndarray
    haze: float


class World:
    """The parts as one Embree scene, with what shading needs of each triangle."""

    def __init__(self, parts: list[Part]):
        self.parts = parts
        vertices, faces, normals, owner, count = [], [], [], [], 0
        for index, part in enumerate(parts):
            vertices.append(part.mesh.vertices @ part.linear.T.astype(np.float32) + part.offset.astype(np.float32))
            normals.append(part.mesh.normals @ np.linalg.inv(part.linear).astype(np.float32))
            faces.append(part.mesh.faces + count)
            owner.append(np.full(len(part.mesh.faces), index))
            count += len(part.mesh.vertices)
        self.vertices = np.ascontiguousarray(np.concatenate(vertices), dtype=np.float32)
        self.faces = np.ascontiguousarray(np.concatenate(faces), dtype=np.int32)
        self.normals = np.concatenate(normals)
        self.owner = np.concatenate(owner)
        self.smooth = np.array([part.mesh.smooth for part in parts])
        self.labels = np.array([part.label for part in parts], dtype=np.uint8)
        self.embree = EmbreeScene()
        TriangleMesh(self.embree, self.vertices, self.faces)

    def intersect(self, origins: np.ndarray, directions: np.ndarray) -> dict[str, np.ndarray]:
        """Embree's closest hits: primID int32 [N] (-1 for none), tfar, u, v."""
        return self.embree.run(origins, directions, output=1)

    def occluded(self, origins: np.ndarray, directions: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Whether anything lies within `distance` (in units of the direction's length) of each origin; boolean [N]."""
        return self.embree.run(origins, directions, distance.astype(np.float32), query="OCCLUDED") >= 0

    def surface(self, hit: dict[str, np.ndarray], ids: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Unit normals [N, 3] of the hits `ids`, facing the viewer."""
        triangle = self.faces[hit["primID"][ids]]
        a, b, c = (self.vertices[triangle[:, i]] for i in range(3))
        normal = np.cross(b - a, c - a)
        smooth = self.smooth[self.owner[hit["primID"][ids]]]
        if smooth.any():
            u, v = hit["u"][ids][smooth, None], hit["v"][ids][smooth, None]
            na, nb, nc = (self.normals[triangle[smooth, i]] for i in range(3))
            normal[smooth] = (1 - u - v) * na + u * nb + v * nc
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        return np.where((normal * directions).sum(1, keepdims=True) > 0, -normal, normal)


def _albedo(world: World, owner: np.ndarray, position: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Albedo [N, 3] and (specular, exponent, metal) [N, 3] of each hit, computed material by material."""
    albedo, gloss = np.zeros_like(position), np.zeros_like(position)
    names = np.array([part.material for part in world.parts])[owner]
    for name in np.unique(names):
        chosen = names == name
        which = owner[chosen]
        offsets = np.float32([part.offset for part in world.parts])[which]
        seeds = np.float32([(7.3 * i, 3.1 * i, 5.7 * i) for i in range(len(world.parts))])[which]
        material = MATERIALS[name]
        albedo[chosen] = material.albedo(position[chosen] - offsets + seeds, normal[chosen])
        gloss[chosen] = (material.specular, material.exponent, material.metal)
    return albedo, gloss


def _sky(light: Light, directions: np.ndarray) -> np.ndarray:
    up = np.clip(directions[:, 2:3] / np.linalg.norm(directions, axis=1, keepdims=True), 0, 1) ** 0.6
    colour = light.horizon + (light.zenith - light.horizon) * up
    if light.direction is not None:
        glow = np.clip(
            (directions @ light.direction)[:, None] / np.linalg.norm(directions, axis=1, keepdims=True), 0, 1
        )
        colour = colour + light.colour * (0.12 * glow**8 + 0.6 * glow**400)
    return colour.astype(np.float32)


def shade(world: World, light: Light, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Linear colour [N, 3] seen along rays from `origin`: diffuse with one shadow ray, Blinn-Phong, haze, sky."""
    origins = np.broadcast_to(origin.astype(np.float32), directions.shape).copy()
    hit = world.intersect(origins, directions)
    ids = np.flatnonzero(hit["primID"] >= 0)
    colour = _sky(light, directions)
    if not len(ids):
        return colour
    rays, distance = directions[ids], hit["tfar"][ids, None]
    position = origins[ids] + rays * distance
    normal = world.surface(hit, ids, rays)
    albedo, gloss = _albedo(world, world.owner[hit["primID"][ids]], position, normal)

    if light.lamp is not None:
        to_light = light.lamp.astype(np.float32) - position
        reach = np.linalg.norm(to_light, axis=1, keepdims=True)
        towards, falloff = to_light / reach, 9.0 / (4.0 + reach**2)
    else:
        towards = np.broadcast_to(light.direction.astype(np.float32), position.shape)
        reach, falloff = np.full((len(ids), 1), FAR, np.float32), 1.0
    start = position + normal * 2e-3
    lit = ~world.occluded(start, np.ascontiguousarray(towards, dtype=np.float32), reach[:, 0] - 5e-3)[:, None]
    sun = light.colour * falloff * lit
    diffuse = np.clip((normal * towards).sum(1, keepdims=True), 0, None)
    ambient = light.ambient * (0.7 + 0.3 * normal[:, 2:3])

    view = -rays / np.linalg.norm(rays, axis=1, keepdims=True)
    half = towards + view
    half = half / np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-6)
    strength, exponent, metal = gloss[:, :1], gloss[:, 1:2], gloss[:, 2:]
    highlight = strength * np.clip((normal * half).sum(1, keepdims=True), 0, None) ** exponent
    mirror = _sky(light, 2 * (normal * view).sum(1, keepdims=True) * normal - view) if metal.any() else 0.0

    surface = albedo * (ambient + sun * diffuse) * (1 - 0.5 * metal) + sun * highlight + metal * albedo * mirror
    fog = 1 - np.exp(-light.haze * distance)
    colour[ids] = surface + (light.horizon - surface) * fog
    return colour


def render(world: World, light: Light, camera: Camera, height: int, width: int) -> dict[str, np.ndarray]:
    """The picture of a scene.

    Returns image uint8 [H, W, 3] (2 x 2 samples a pixel, sRGB-like gamma), depth float32 [H, W] (planar z in metres
    through the pixel's centre, 0 where not valid), valid bool [H, W] (False is sky), labels uint8 [H, W] (0 is sky).
    """
    rays = camera.rays(height, width)
    hit = world.intersect(np.broadcast_to(camera.position.astype(np.float32), rays.shape).copy(), rays)
    valid = hit["primID"] >= 0
    depth = np.where(valid, hit["tfar"], 0).astype(np.float32)
    labels = np.where(valid, world.labels[world.owner[np.maximum(hit["primID"], 0)]], 0).astype(np.uint8)
    colour = sum(
        np.clip(shade(world, light, camera.position, camera.rays(height, width, x, y)), 0, 1)
        for x in (0.25, 0.75)
        for y in (0.25, 0.75)
    )
    image = np.rint(255 * (colour / 4) ** (1 / 2.2)).astype(np.uint8)
    return {
        "image": image.reshape(height, width, 3),
        "depth": depth.reshape(height, width),
        "valid": valid.reshape(height, width),
        "labels": labels.reshape(height, width),
    }
