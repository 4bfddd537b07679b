"""Colour perturbations of images, float32 [H, W, 3] in [0, 1]."""

import math

import numpy as np

_LUMA = np.float32((0.299, 0.587, 0.114))


def rotate_hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Hues turned about the grey axis at constant luma; not clipped. `turns` 1 is a full circle."""
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    # Rotation about (1, 1, 1), then shifted along it so that luma stays.
    axis = np.full((3, 3), (1 - cos) / 3) + sin / math.sqrt(3) * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    rotation = (axis + cos * np.eye(3)).astype(np.float32)
    return image @ (rotation.T + np.outer(_LUMA - rotation.T @ _LUMA, np.ones(3, np.float32)))


def colour_jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation scaled by factors from U(1 - strength, 1 + strength), hue turned by up to
    strength / 2 of the circle either way, clipped to [0, 1]. Strength 0.5 is UniMatch's jitter."""
    if strength <= 0:
        return image
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    image = image * brightness
    mean = (image @ _LUMA).mean()
    image = mean + (image - mean) * contrast
    grey = (image @ _LUMA)[..., None]
    image = grey + (image - grey) * saturation
    return np.clip(rotate_hue(image, rng.uniform(-strength, strength) / 2), 0, 1)
