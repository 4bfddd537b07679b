"""Perturbations of images, float32 [H, W, 3] in [0, 1]: what makes the student's task hard (V1 section 3.2).

The paper names colour jitter, Gaussian blur and CutMix and leaves their parameters open; these are UniMatch's
(2208.09910), of the same first author, to which the authors point for the CutMix box.
"""

import math

import numpy as np
from PIL import Image, ImageFilter

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


def gaussian_blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur with a standard deviation of `radius` pixels, computed in 8 bits."""
    picture = Image.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / np.float32(255)


def strong_perturbation(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colour jitter of strength 0.5 in 80 % of the cases, then blur with a radius of U(0.1, 2) pixels in 50 %."""
    if rng.random() < 0.8:
        image = colour_jitter(image, 0.5, rng)
    if rng.random() < 0.5:
        image = gaussian_blur(image, rng.uniform(0.1, 2))
    return image


def cutmix_mask(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """M of V1 section 3.2, eq. 5, boolean [height, width]: False inside one rectangle, where the other image shows.

    The rectangle covers U(0.02, 0.4) of the image at an aspect of U(0.3, 1 / 0.3), drawn anew until it fits.
    """
    while True:
        area, aspect = rng.uniform(0.02, 0.4) * height * width, rng.uniform(0.3, 1 / 0.3)
        h, w = int(math.sqrt(area * aspect)), int(math.sqrt(area / aspect))
        top, left = int(rng.integers(height)), int(rng.integers(width))
        if top + h <= height and left + w <= width:
            break
    mask = np.ones((height, width), dtype=bool)
    mask[top : top + h, left : left + w] = False
    return mask
