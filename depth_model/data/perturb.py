"""Colour perturbations of images, float32 [H, W, 3] in [0, 1]."""

import numpy as np

_LUMA = np.float32((0.299, 0.587, 0.114))


def colour_jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation scaled by factors from U(1 - strength, 1 + strength), clipped to [0, 1]."""
    if strength <= 0:
        return image
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    image = image * brightness
    mean = (image @ _LUMA).mean()
    image = mean + (image - mean) * contrast
    grey = (image @ _LUMA)[..., None]
    return np.clip(grey + (image - grey) * saturation, 0, 1)
