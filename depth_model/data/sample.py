"""How a labelled or a pseudo-labelled image becomes a training sample: crop, mirror, perturb, mix.

Datasets take keys (step, epoch, index) from `order.batches`, and a sample is a pure function of its key and the seed.
The size of a crop depends on the step alone, so that a batch has one size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from depth_model.data.labeled import Pair
from depth_model.data.order import generator
from depth_model.data.perturb import colour_jitter, cutmix_mask, strong_perturbation
from depth_model.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from depth_model.errors import InputError

_MEAN, _STD = np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD)
_SIZE, _LABELED, _PSEUDO, _PARTNER, _REPLACEMENT = 1, 2, 3, 6, 7  # streams of random draws
_TRIES = 32

Content = TypeVar("Content")


class LabeledReader(Protocol):
    """Any labelled set: a length, and pairs by number, which raise InputError when they are damaged."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> Pair: ...


class PseudoReader(Protocol):
    """Images with their pseudo-labels: (RGB image, disparity float32 [h, w] of the same view in any resolution)."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str: ...

    def read(self, i: int) -> tuple[Image.Image, np.ndarray]: ...


@dataclass
class Memory:
    """What was read stays until `limit` bytes are full; then everything else is read again each time."""

    limit: int
    used: int = 0
    held: dict = field(default_factory=dict)

    def get(self, key: int, read: Callable[[], Content], size: Callable[[Content], int]) -> Content:
        """The content of `key`, read at most once if it fits."""
        if key in self.held:
            return self.held[key]
        content = read()
        if self.used + size(content) <= self.limit:
            self.held[key] = content
            self.used += size(content)
        return content


def random_window(
    height: int, width: int, crop: tuple[int, int], least: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random window (top, left, height, width) of an image, of the aspect of `crop` (height, width).

    Args:
        least: the window's share of the largest such window's sides, drawn from [least, 1].
    """
    scale = min(height / crop[0], width / crop[1]) * rng.uniform(least, 1)
    h, w = max(1, round(crop[0] * scale)), max(1, round(crop[1] * scale))
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def random_crop(pair: Pair, height: int, width: int, least: float, rng: np.random.Generator) -> Pair:
    """A `random_window` of a pair, mirrored half of the time and resized to `height` x `width`.

    Depth is taken from the nearest pixel, since averages across an edge lie where nothing is.
    """
    top, left, h, w = random_window(*pair.disparity.shape, (height, width), least, rng)
    window = np.s_[top : top + h, left : left + w]
    image = np.asarray(Image.fromarray(pair.image[window]).resize((width, height), Image.Resampling.BICUBIC))
    rows = (np.arange(height) * h // height + h // (2 * height))[:, None]
    columns = np.arange(width) * w // width + w // (2 * width)
    disparity, valid = pair.disparity[window][rows, columns], pair.valid[window][rows, columns]
    if rng.random() < 0.5:
        image, disparity, valid = image[:, ::-1], disparity[:, ::-1], valid[:, ::-1]
    return Pair(pair.name, image, disparity, valid)


def pixel_values(image: np.ndarray) -> Tensor:
    """Network input float32 [3, H, W] of an image float32 [H, W, 3] in [0, 1]."""
    return _tensor(((image - _MEAN) / _STD).transpose(2, 0, 1))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _first_usable(count: int, index: int, make: Callable[[int], dict]) -> dict:
    """The sample of `index`, or of the first of some others drawn by it that gives one.

    `problem` lists those that did not, one a line: a loader's worker processes can tell of them in no other way. The
    others are drawn from the whole set, since damaged files often lie side by side.

    Raises:
        InputError: none of them can be used.
    """
    problems, rng = [], generator(index, _REPLACEMENT)
    for _ in range(_TRIES):
        try:
            return make(index) | {"problem": "\n".join(problems)}
        except InputError as error:
            problems.append(" ".join(str(error).split()))
        index = int(rng.integers(count))
    raise InputError(f"{_TRIES} training images, one after another, cannot be used; the last: {problems[-1]}")


class LabeledSamples(torch.utils.data.Dataset):
    """Several labelled sets as one, concatenated (V1 section 4.1), each repeated as often as asked.

    A sample has `pixel_values` float32 [3, h, w], `disparity` float32 [h, w] scaled to [0, 1] over its valid pixels (V1
    section 3.1), `valid` bool [h, w], `name`, and `problem`. A damaged pair, or a crop without a valid pixel, is
    replaced by another; `problem` says which were and why.
    """

    def __init__(
        self,
        readers: list[tuple[LabeledReader, int]],
        sizes: list[tuple[int, int]],
        seed: int,
        least_crop: float = 1.0,
        jitter: float = 0.0,
        memory: int = 0,
    ):
        """Concatenate sets.

        Args:
            readers: sets, each with its repeats. sizes: (height, width) of crops, one drawn for each step.
            least_crop: as `random_window`. jitter: strength of `colour_jitter`; the paper only mirrors.
            memory: bytes of decoded pairs that may be kept.
        """
        self.readers = [reader for reader, repeat in readers for _ in range(repeat)]
        self.ends = np.cumsum([len(reader) for reader in self.readers])
        self.sizes, self.seed, self.least_crop, self.jitter = sizes, seed, least_crop, jitter
        self.memory = Memory(memory)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _read(self, index: int) -> Pair:
        which = int(np.searchsorted(self.ends, index, side="right"))
        reader = self.readers[which]
        i = index - int(self.ends[which]) + len(reader)

        def read() -> Pair:
            pair = reader.read(i)
            # Halves the memory; 16 bits are finer than any label.
            scale = max(float(pair.disparity.max()), 1e-12)
            return Pair(pair.name, pair.image, (pair.disparity / scale).astype(np.float16), pair.valid)

        # Repeats of a set are the same object.
        key = (id(reader), i)
        return self.memory.get(key, read, lambda p: p.image.nbytes + p.disparity.nbytes + p.valid.nbytes)

    def _sample(self, index: int, size: tuple[int, int], rng: np.random.Generator) -> dict:
        crop = random_crop(self._read(index), *size, self.least_crop, rng)
        if not crop.valid.any():
            raise InputError(f"{crop.name}: no valid depth in the crop")
        image = colour_jitter(crop.image.astype(np.float32) / 255, self.jitter, rng)
        disparity, valid = crop.disparity.astype(np.float32), crop.valid
        low, high = disparity[valid].min(), disparity[valid].max()
        disparity = np.where(valid, (disparity - low) / max(high - low, 1e-8), 0).astype(np.float32)
        labels = {"disparity": _tensor(disparity), "valid": _tensor(valid)}
        return {"pixel_values": pixel_values(image), **labels, "name": crop.name}

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Tensor | str]:
        step, epoch, index = key
        size = self.sizes[int(generator(self.seed, _SIZE, step).integers(len(self.sizes)))]
        rng = generator(self.seed, _LABELED, epoch, index)
        return _first_usable(len(self), index, lambda i: self._sample(i, size, rng))


class PseudoLabeledSamples(torch.utils.data.Dataset):
    """Images with a teacher's labels, as the student sees them (V1 section 3.2).

    The teacher saw the clean image; crop and mirror are shared, and the student gets the image strongly perturbed and,
    in half of the cases, with a rectangle of another one in it. A sample has `pixel_values` float32 [3, h, w], the
    teacher's disparity of both images `target_a` and `target_b` float32 [h, w], `mask` bool [h, w] (True where a shows,
    everywhere if nothing was mixed), `name` and `problem` as in `LabeledSamples`.
    """

    def __init__(
        self,
        reader: PseudoReader,
        sizes: list[tuple[int, int]],
        seed: int,
        least_crop: float = 1.0,
        perturb: bool = True,
        cutmix: float = 0.5,
    ):
        """Args as in `LabeledSamples`; `cutmix` is the probability of mixing, and without `perturb` nothing is done."""
        self.reader, self.sizes, self.seed, self.least_crop = reader, sizes, seed, least_crop
        self.perturb, self.cutmix = perturb, cutmix if perturb else 0.0

    def __len__(self) -> int:
        return len(self.reader)

    def _crop(self, index: int, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The perturbed image float32 [h, w, 3] in [0, 1] and the clean image's label float32 [h, w]."""
        picture, label = self.reader.read(index)
        top, left, h, w = random_window(picture.height, picture.width, size, self.least_crop, rng)
        box, size = (left, top, left + w, top + h), size[::-1]
        image = np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box))
        sy, sx = label.shape[0] / picture.height, label.shape[1] / picture.width
        scaled = (box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy)
        target = np.array(Image.fromarray(label).resize(size, Image.Resampling.BILINEAR, scaled))
        if rng.random() < 0.5:
            image, target = image[:, ::-1], target[:, ::-1]
        image = image.astype(np.float32) / 255
        return (strong_perturbation(image, rng) if self.perturb else image), target

    def _sample(self, index: int, size: tuple[int, int], epoch: int) -> dict:
        rng = generator(self.seed, _PSEUDO, epoch, index)
        image, target_a = self._crop(index, size, rng)
        target_b, mask = target_a, np.ones(size, dtype=bool)
        if rng.random() < self.cutmix:
            # The partner is perturbed on its own, as in UniMatch.
            other = generator(self.seed, _PARTNER, epoch, index)
            partner, target_b = self._crop(int(other.integers(len(self))), size, other)
            mask = cutmix_mask(*size, rng)
            image = np.where(mask[..., None], image, partner)
        targets = {"target_a": _tensor(target_a), "target_b": _tensor(target_b), "mask": _tensor(mask)}
        return {"pixel_values": pixel_values(image), **targets, "name": self.reader.name(index)}

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Tensor | str]:
        step, epoch, index = key
        size = self.sizes[int(generator(self.seed, _SIZE, step).integers(len(self.sizes)))]
        return _first_usable(len(self), index, lambda i: self._sample(i, size, epoch))
