"""Labelled images: what a pair is, and folders in the RGB-D pair format."""

import json
import zipfile
import zlib
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from depth_model.errors import InputError
from depth_model.images import open_image


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

    def labels(self, i: int) -> np.ndarray:
        """The class labels uint8 [H, W] of pair `i`, which `depth-control scenes` writes.

        Raises:
            InputError: there are none, or the file is damaged.
        """
        path = Path(self.folder) / self.rows[i]["depth_file"]
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return arrays["labels"].astype(np.uint8)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: no readable class labels ({error})") from error
