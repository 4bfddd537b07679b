"""Steps over one image: each says why the image is dropped, or nothing. Order them as you like; `STEPS` is ours."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from depth_model.data.unlabeled import ImageTree
from depth_model.engine.duplicates import FINE, dissimilarity, distances, hash_codes, square
from depth_model.errors import InputError
from depth_model.images import open_grey, read_size

SIDE = 192
"""Short side, in pixels, at which pictures are looked at."""

# Wider than for near-duplicates: a training image too few costs nothing, an evaluation image in the training set much.
_RADIUS, _DISSIMILAR = 84, 0.12


@dataclass(frozen=True)
class Limits:
    """What an image must be."""

    least_side: int = 96
    """Pixels of the shorter side."""
    most_megapixels: float = 50.0
    """Larger images are not decoded."""
    most_aspect: float = 4.0
    """Longer side / shorter side; beyond 4 the network would see it squeezed."""
    least_sharpness: float = 1.5
    """Standard deviation of the Laplacian, in grey levels at 192 pixels of the shorter side."""
    near_duplicate: float = 0.025
    """Two images are copies when registration leaves less of their variance unexplained; 0 keeps copies."""


@dataclass(eq=False)
class Record:
    """An image on its way through the steps, with what they found."""

    data: bytes
    limits: Limits
    evaluation: "Evaluation | None" = None
    width: int = 0
    height: int = 0
    format: str = ""
    grey: Image.Image | None = None
    codes: np.ndarray = field(default_factory=lambda: np.empty((0, 4), np.uint64))


@dataclass(frozen=True)
class Drop:
    """Why an image is dropped: a word that is counted, and what there is to say."""

    reason: str
    detail: str


def header(record: Record) -> Drop | None:
    """An image of a known format."""
    try:
        record.width, record.height, record.format = read_size(record.data)
    except InputError as error:
        return Drop("not an image", str(error))
    return None


def size(record: Record) -> Drop | None:
    """Neither too small nor too large."""
    short, long = sorted((record.width, record.height))
    if short < max(1, record.limits.least_side):
        return Drop("small", f"{record.width} x {record.height}")
    if short * long > record.limits.most_megapixels * 1e6:
        return Drop("large", f"{record.width} x {record.height}")
    return None


def aspect(record: Record) -> Drop | None:
    """Not too long."""
    short, long = sorted((record.width, record.height))
    return Drop("aspect", f"{record.width} x {record.height}") if long > record.limits.most_aspect * short else None


def decodable(record: Record) -> Drop | None:
    """Not damaged."""
    try:
        grey = open_grey(record.data, SIDE)
    except InputError as error:
        return Drop("damaged", str(error))
    scale = SIDE / min(grey.size)
    if scale < 1:
        grey = grey.resize((round(grey.width * scale), round(grey.height * scale)), Image.Resampling.BILINEAR)
    record.grey = grey
    return None


def sharp(record: Record) -> Drop | None:
    """Neither blurred nor empty."""
    found = sharpness(record.grey)
    return Drop("blurred", f"sharpness {found:.2f}") if found < record.limits.least_sharpness else None


def sharpness(grey: Image.Image) -> float:
    """Standard deviation of the Laplacian of a grey picture, in grey levels."""
    picture = np.asarray(grey, dtype=np.int16)
    middle = picture[1:-1, 1:-1]
    laplacian = picture[:-2, 1:-1] + picture[2:, 1:-1] + picture[1:-1, :-2] + picture[1:-1, 2:] - 4 * middle
    return float(laplacian.std()) if laplacian.size else 0.0


def hashed(record: Record) -> Drop | None:
    """Drops nothing; computes the perceptual hash."""
    record.codes = hash_codes(record.grey)
    return None


def unevaluated(record: Record) -> Drop | None:
    """None of the images that models are measured on."""
    name = record.evaluation.match(record) if record.evaluation else None
    return Drop("evaluation", f"a copy of {name}") if name else None


STEPS: list[Callable[[Record], Drop | None]] = [header, size, aspect, decodable, sharp, hashed, unevaluated]
"""What `collect` does with each image, in any order of the images; near-duplicates are found after it, in order."""


def examine(record: Record) -> Drop | None:
    """The first reason to drop an image."""
    return next(filter(None, (step(record) for step in STEPS)), None)


class Evaluation:
    """The images of folders that models are measured on; no training image may be a copy of one.

    Raises:
        InputError: a folder without images, or one that cannot be read.
    """

    def __init__(self, folders: list[str]):
        self._names, codes, self._pictures = [], [np.empty((0, 4), np.uint64)], []
        for folder in folders:
            tree = ImageTree(folder)
            for i in range(len(tree)):
                try:
                    grey = open_grey(tree.encoded(i), SIDE)
                except InputError:
                    # What cannot be read is not measured on.
                    continue
                self._names.append(f"{folder}/{tree.name(i)}")
                codes.append(hash_codes(grey)[:1])
                self._pictures.append(square(grey, FINE).astype(np.uint8))
        self._codes = np.concatenate(codes)

    def match(self, record: Record) -> str | None:
        """The evaluation image that an image is a copy of."""
        apart = distances(self._codes, record.codes)
        for number in np.flatnonzero(apart <= _RADIUS):
            picture = self._pictures[number].astype(np.float32)
            if dissimilarity(picture, square(record.grey, FINE)) < _DISSIMILAR:
                return self._names[number]
        return None
