"""An unlabelled source in units of work, and the files that a labelled unit consists of.

A tar shard is a unit, whatever its size; of any other source `per_shard` images are. Listing the units of a folder of
shards opens none of them, so that 62,000 take a second and a few megabytes.

In the folder of the labels a unit has `UNIT.tar` (the labels), `UNIT.npy` (`table`: a row for each label),
`UNIT.quarantine.json` (image -> reason, when there are any) and, written last, `UNIT.json` (what the labels are made
of, counts and hashes). A unit is done when that last file is there.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depth_model.data.shards import Member
from depth_model.data.unlabeled import TarShards, Unlabeled, list_shards, locate
from depth_model.errors import InputError

PROVENANCE = "labels.json"
"""In the folder of the labels: what all of them are made of, and the names of all units."""

STATISTICS = ("low", "high", "mean", "deviation", "disagreement")
"""Columns of a table: extremes, mean and standard deviation of the disparity, and how much the map of the mirrored
image differs from it (mean absolute difference / standard deviation; NaN when it was not made)."""


@dataclass(frozen=True)
class Unit:
    """The images of one unit: those of `source` with numbers `indices`."""

    name: str
    source: Unlabeled
    indices: range

    def image(self, i: int) -> str:
        """Name of image `i`: in a shard its member's, else the source's."""
        return self.source.member(i).name if isinstance(self.source, TarShards) else self.source.name(i)

    def row(self, i: int, label: Member, statistics: tuple[float, ...]) -> tuple:
        """The row of image `i` in the unit's table."""
        place = self.source.member(i) if isinstance(self.source, TarShards) else Member("", 0, 0)
        return (self.image(i).encode(), i, place.offset, place.size, label.offset, label.size, *statistics)


class Units:
    """The units of a source in their order.

    Attributes:
        names: of the units; those of shards are their paths without `.tar`.
        source: the images, or None for shards, which are opened one by one.

    Raises:
        InputError: what `unlabeled.locate` or the reader refuses, or a folder without shards.
    """

    def __init__(self, images: str, per_shard: int):
        reader, self.folder = locate(images)
        self.per_shard, self.source, self._shards = per_shard, None, []
        if reader is TarShards:
            self._shards = list_shards(self.folder)
            self.names = [shard[: -len(".tar")] for shard in self._shards]
            if not self.names:
                raise InputError(f"{self.folder}: no .tar shards in it or below it; take images=DIR for loose files")
        else:
            self.source = reader(self.folder)
            self.names = [f"labels-{unit:06d}" for unit in range(-(-len(self.source) // per_shard))]

    def __len__(self) -> int:
        return len(self.names)

    def open(self, number: int) -> Unit:
        """Unit `number` with its images.

        Raises:
            InputError: a shard that cannot be read, is unsafe, or has no images.
        """
        if self.source is None:
            source = TarShards(self.folder, [self._shards[number]])
            return Unit(self.names[number], source, range(len(source)))
        start = number * self.per_shard
        return Unit(self.names[number], self.source, range(start, min(start + self.per_shard, len(self.source))))

    def path(self, number: int) -> Path | None:
        """The shard of unit `number`; None when the source is none of shards."""
        return None if self.source is not None else Path(self.folder, self._shards[number])


def files_of(folder: Path, unit: str) -> dict[str, Path]:
    """The files of a unit: `labels`, `table`, `quarantine`, `done`."""
    kinds = {"labels": ".tar", "table": ".npy", "quarantine": ".quarantine.json", "done": ".json"}
    return {kind: folder / f"{unit}{suffix}" for kind, suffix in kinds.items()}


def done_at(folder: Path, unit: str) -> float | None:
    """When a unit was done, in seconds of the file system's clock; None when it is not. Cheap enough for 62,000."""
    try:
        return os.stat(f"{folder}/{unit}.json").st_mtime
    except FileNotFoundError:
        return None


def make_table(rows: list[tuple]) -> np.ndarray:
    """Rows that `Unit.row` gave, by image, as a structured array."""
    longest = max((len(row[0]) for row in rows), default=1)
    fields = [("name", f"S{longest}"), ("image", "<u8"), ("image_offset", "<u8"), ("image_size", "<u4")]
    fields += [("label_offset", "<u8"), ("label_size", "<u4"), *((name, "<f4") for name in STATISTICS)]
    return np.array(sorted(rows, key=lambda row: row[1]), dtype=fields)


def input_hash(images: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over a line "NAME, tab, SHA-256 of the bytes" for each image of a unit, in order."""
    lines = "".join(f"{name}\t{sha256}\n" for name, sha256 in images)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


@functools.lru_cache(512)
def read_table(path: Path) -> np.ndarray:
    """The table of a unit; its rows are read from the disk when they are asked for.

    Raises:
        InputError: missing, damaged, or not such a table.
    """
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
        if table.dtype.names != make_table([]).dtype.names or table.ndim != 1:
            raise ValueError("other columns")
    except (OSError, ValueError, EOFError) as error:
        # An empty table has nothing to map.
        if isinstance(error, ValueError) and "empty" in str(error):
            return make_table([])
        raise InputError(f"{path}: not a readable table of labels ({error}); label the images again") from error
    return table


def read_json(path: str | os.PathLike) -> dict:
    """A JSON object.

    Raises:
        InputError: missing, damaged, or another kind of content.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError("not an object")
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
