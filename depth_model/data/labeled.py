"""Labelled images: folders in the RGB-D pair format, and how a pair becomes a training sample."""

import json
import zipfile
import zlib
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from depth_model.data.order import generator
from depth_model.data.perturb import colour_jitter
from depth_model.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from depth_model.errors import InputError
from depth_model.images import open_image

_MEAN, _STD = np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD)


@dataclass(frozen=True)
class Pair:
    """One labelled image: RGB uint8 [H, W, 3], disparity float32 [H, W] (larger = nearer, sky 0), valid bool [H, W]."""

    name: str
    image: np.ndarray
    disparity: np.ndarray
    valid: np.ndarray


@dataclass
class PairFolder:
    """A folder of `NAME.jpg|png` beside `NAME.npz` with an `index.json` (DESIGN: the RGB-D pair format).

    Raises:
        InputError: no readable index, or a row without the fields `file`, `depth_file` and `kind`.
    """

    folder: Path
    scenes: bool = False
    """Where not valid is sky, which is infinitely far: disparity 0 and valid (V1 section 4.1)."""
    source: str = ""
    """Only rows whose `source` is this; empty for all."""
    rows: list[dict] = field(init=False)

    def __post_init__(self):
        index = Path(self.folder) / "index.json"
        try:
            self.rows = json.loads(index.read_text())
        except OSError as error:
            raise InputError(f"{index}: cannot be read ({error.strerror}); a pair folder needs this file") from error
        except ValueError as error:
            raise InputError(f"{index}: not JSON ({error})") from error
        if not isinstance(self.rows, list) or not all(isinstance(row, dict) for row in self.rows):
            raise InputError(f"{index}: must be a list with an object for each pair")
        for i, row in enumerate(self.rows):
            if missing := {"file", "depth_file", "kind"} - row.keys():
                raise InputError(f"{index}: row {i} lacks {', '.join(sorted(missing))}")
            if row["kind"] not in ("depth", "disparity"):
                raise InputError(f"{index}: row {i} has kind {row['kind']!r}; it must be depth or disparity")
        if self.source:
            self.rows = [row for row in self.rows if row.get("source") == self.source]
        if not self.rows:
            raise InputError(f"{index}: lists no pairs{f' of source {self.source}' if self.source else ''}")

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> "PairFolder":
        """The same folder with only the pairs from `start` to before `stop`."""
        part = copy(self)
        part.rows = self.rows[max(0, start) : max(0, stop)]
        return part

    def read(self, i: int) -> Pair:
        """Pair number `i`.

        Raises:
            InputError: an image or array that is missing, damaged, or of another size than its partner.
        """
        row = self.rows[i]
        image = np.asarray(open_image(Path(self.folder) / row["file"]))
        path = Path(self.folder) / row["depth_file"]
        try:
            with np.load(path, allow_pickle=False) as arrays:
                depth, valid = arrays["depth"].astype(np.float32), arrays["valid"].astype(bool)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: not a readable depth file ({error})") from error
        if depth.shape != image.shape[:2] or valid.shape != depth.shape:
            raise InputError(f"{path}: depth is {depth.shape}, the image is {image.shape[:2]}")
        valid &= np.isfinite(depth) & (depth > 0)
        disparity = np.where(valid, depth if row["kind"] == "disparity" else 1 / np.where(valid, depth, 1), 0)
        return Pair(row["file"], image, disparity.astype(np.float32), np.ones_like(valid) if self.scenes else valid)

    def depth(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Metres float32 [H, W] and the valid mask of pair `i`, which must be of kind depth."""
        pair = self.read(i)
        return 1 / np.where(pair.disparity > 0, pair.disparity, 1), pair.valid & (pair.disparity > 0)


def random_crop(pair: Pair, height: int, width: int, least: float, rng: np.random.Generator) -> Pair:
    """A random window of the aspect `width` / `height`, mirrored half of the time and resized to that size.

    Args:
        least: the window's share of the largest such window's sides, drawn from [least, 1].
    """
    h, w = pair.disparity.shape
    scale = min(h / height, w / width) * rng.uniform(least, 1)
    ch, cw = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = rng.integers(h - ch + 1), rng.integers(w - cw + 1)
    window = np.s_[top : top + ch, left : left + cw]
    image = np.asarray(Image.fromarray(pair.image[window]).resize((width, height), Image.Resampling.BICUBIC))
    rows = (np.arange(height) * ch // height + ch // (2 * height))[:, None]
    columns = np.arange(width) * cw // width + cw // (2 * width)
    disparity, valid = pair.disparity[window][rows, columns], pair.valid[window][rows, columns]
    if rng.random() < 0.5:
        image, disparity, valid = image[:, ::-1], disparity[:, ::-1], valid[:, ::-1]
    return Pair(pair.name, image, disparity, valid)


class LabeledSamples(torch.utils.data.Dataset):
    """Several folders as one set, each repeated as often as asked; keys are (step, epoch, index) from `order.batches`.

    A sample is a dictionary: pixel_values float32 [3, h, w], disparity float32 [h, w] scaled to [0, 1] over its valid
    pixels (V1 section 3.1), valid bool [h, w], and problem, empty as a rule. Height and width depend on the step
    alone, so that a batch has one size. A pair that cannot be read is replaced by an all-invalid sample, which
    contributes nothing, and its `problem` says why (a loader's worker processes can tell in no other way).
    """

    def __init__(
        self,
        folders: list[tuple[PairFolder, int]],
        sizes: list[tuple[int, int]],
        seed: int,
        least_crop: float,
        jitter: float,
    ):
        self.entries = [(folder, i) for folder, repeat in folders for _ in range(repeat) for i in range(len(folder))]
        self.sizes, self.seed, self.least_crop, self.jitter = sizes, seed, least_crop, jitter
        self.memory: dict[tuple[int, int], Pair] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def _read(self, index: int) -> Pair:
        folder, i = self.entries[index]
        key = (id(folder), i)
        if key not in self.memory:
            pair = folder.read(i)
            self.memory[key] = Pair(pair.name, pair.image, pair.disparity.astype(np.float16), pair.valid)
        return self.memory[key]

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, torch.Tensor | str]:
        step, epoch, index = key
        height, width = self.sizes[int(generator(self.seed, 1, step).integers(len(self.sizes)))]
        rng = generator(self.seed, 2, epoch, index)
        try:
            pair = self._read(index)
        except InputError as error:
            blank = torch.zeros(height, width)
            pixels = torch.zeros(3, height, width)
            return {"pixel_values": pixels, "disparity": blank, "valid": blank.bool(), "problem": str(error)}
        crop = random_crop(pair, height, width, self.least_crop, rng)
        image = colour_jitter(crop.image.astype(np.float32) / 255, self.jitter, rng)
        disparity, valid = crop.disparity.astype(np.float32), crop.valid
        if valid.any():
            low, high = disparity[valid].min(), disparity[valid].max()
            disparity = np.where(valid, (disparity - low) / max(high - low, 1e-8), 0)
        return {
            "pixel_values": torch.from_numpy(np.ascontiguousarray(((image - _MEAN) / _STD).transpose(2, 0, 1))),
            "disparity": torch.from_numpy(np.ascontiguousarray(disparity, dtype=np.float32)),
            "valid": torch.from_numpy(np.ascontiguousarray(valid)),
            "problem": "",
        }
