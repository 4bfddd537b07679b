"""Sizes of training images: aspect buckets, and the window of an image that fills one."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from depth_control.conditioning import resize_map

MULTIPLE = 8
"""Sides are multiples of this: what a latent of Stable Diffusion covers, and the ControlNet's embedding with it."""


@dataclass(frozen=True)
class Crop:
    """A window of an upright image, resized to a bucket. All in pixels."""

    top: int
    left: int
    height: int
    width: int
    rows: int
    """Height of the bucket."""
    columns: int
    """Width of the bucket."""

    def image(self, image: Image.Image) -> np.ndarray:
        """The crop of an image, uint8 [rows, columns, 3]."""
        box = (self.left, self.top, self.left + self.width, self.top + self.height)
        return np.array(image.resize((self.columns, self.rows), Image.Resampling.LANCZOS, box=box))

    def map(self, values: np.ndarray) -> np.ndarray:
        """The crop of a map [H, W] of the whole image, float32 [rows, columns]."""
        window = values[self.top : self.top + self.height, self.left : self.left + self.width]
        return resize_map(np.ascontiguousarray(window), self.rows, self.columns)


def aspect_buckets(resolution: int, longest: float = 2.0) -> list[tuple[int, int]]:
    """(height, width) of the buckets, from tall to wide: about `resolution` squared pixels, aspects up to `longest`.

    Sides are multiples of 64, or of about an eighth of a small resolution.
    """
    step = min(64, max(MULTIPLE, resolution // 8 // MULTIPLE * MULTIPLE))
    sides = {round(resolution / step) * step or step}
    sizes = {(side, side) for side in sides}
    for short in range(step, resolution + 1, step):
        long = int(resolution**2 / short) // step * step
        if short < long <= longest * short:
            sizes |= {(short, long), (long, short)}
    return sorted(sizes, key=lambda size: size[1] / size[0])


def nearest_bucket(height: int, width: int, buckets: list[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose aspect is nearest to the image's, as a ratio."""
    return min(buckets, key=lambda size: abs(np.log(width / height * size[0] / size[1])))


def whole_crop(height: int, width: int) -> Crop:
    """The image at its own size, its sides cut in the middle to multiples of `MULTIPLE`."""
    rows, columns = height // MULTIPLE * MULTIPLE, width // MULTIPLE * MULTIPLE
    return Crop((height - rows) // 2, (width - columns) // 2, rows, columns, rows, columns)


def bucket_crop(
    height: int, width: int, bucket: tuple[int, int], least: float = 1.0, rng: np.random.Generator | None = None
) -> Crop:
    """The largest window of the bucket's aspect in the middle of the image, or one at random.

    Args:
        least: of random windows, the smallest share of the largest window's sides. rng: None for the middle.
    """
    rows, columns = bucket
    scale = min(height / rows, width / columns) * (1.0 if rng is None else rng.uniform(least, 1))
    h, w = min(height, max(1, round(rows * scale))), min(width, max(1, round(columns * scale)))
    top, left = (height - h) // 2, (width - w) // 2
    if rng is not None:
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return Crop(top, left, h, w, rows, columns)
