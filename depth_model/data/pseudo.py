"""Images with their pseudo-labels: an unlabelled source, and the label shards that `label` made of it."""

from pathlib import Path

import numpy as np
from PIL import Image

from depth_model.data.shards import Member, read_member
from depth_model.data.units import PROVENANCE, Units, done_at, files_of, read_json, read_table
from depth_model.depth_map import DepthMap
from depth_model.errors import InputError
from depth_model.images import open_image


class PseudoLabeled:
    """The images that have a label, by unit and then in the source's order; nothing is extracted.

    Shards are read by offset, images and labels alike. At the start a small file is read for each unit; after that
    the memory holds 8 bytes for a unit and the names of the units, however many images they have.

    Args:
        images: NAME=DIR, just as it was given to `label`.
        folder: the folder of the labels; units that are not done are left out.
        most_disagreement: labels whose `disagreement` is larger are left out (8 bytes of memory for each other label).

    Raises:
        InputError: no labels, labels of other images, or of no mirrored ones when `most_disagreement` is given.
    """

    def __init__(self, images: str, folder: Path, most_disagreement: float | None = None):
        self.folder = folder
        try:
            made_by = read_json(folder / PROVENANCE)
        except InputError as error:
            raise InputError(f"{folder}: no labels there ({error}); make them with depth-control label") from error
        self.units = Units(images, made_by.get("per_shard", 1))
        if self.units.source is not None and made_by.get("images") != len(self.units.source):
            raise InputError(
                f"{folder}: labels of {made_by.get('images')} images, the source has {len(self.units.source)}; "
                "label them again"
            )
        counts = [self._count(number) for number in range(len(self.units))]
        self._ends = np.cumsum(counts)
        self._kept = None if most_disagreement is None else self._agreeing(most_disagreement)
        if not len(self):
            raise InputError(f"{folder}: no label belongs to an image of {images}; give the images that were labelled")

    def _count(self, number: int) -> int:
        if done_at(self.folder, self.units.names[number]) is None:
            return 0
        done = files_of(self.folder, self.units.names[number])["done"]
        entry, shard = read_json(done), self.units.path(number)
        if shard is not None and entry.get("input_bytes") != shard.stat().st_size:
            raise InputError(f"{shard}: has changed since it was labelled; remove {done} and label it again")
        return int(entry.get("labelled", 0))

    def _agreeing(self, most: float) -> np.ndarray:
        kept = []
        for number in range(len(self.units)):
            end = int(self._ends[number])
            start = int(self._ends[number - 1]) if number else 0
            if end == start:
                continue
            disagreement = read_table(files_of(self.folder, self.units.names[number])["table"])["disagreement"]
            if np.isnan(disagreement).any():
                raise InputError(f"{self.folder}: labels made without --flip have no disagreement to choose by")
            kept.append(start + np.flatnonzero(disagreement <= most))
        return np.concatenate(kept) if kept else np.empty(0, np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._kept is None else len(self._kept)

    def _row(self, i: int) -> tuple[int, np.void]:
        """Number of the unit of sample `i`, and its row there."""
        i = int(range(int(self._ends[-1]))[i] if self._kept is None else self._kept[i])
        number = int(np.searchsorted(self._ends, i, side="right"))
        table = read_table(files_of(self.folder, self.units.names[number])["table"])
        return number, table[i - (int(self._ends[number - 1]) if number else 0)]

    def name(self, i: int) -> str:
        """The image's name: in a shard `UNIT/MEMBER`, else the source's."""
        number, row = self._row(i)
        name = row["name"].decode()
        return name if self.units.source is not None else f"{self.units.names[number]}/{name}"

    def read(self, i: int) -> tuple[Image.Image, np.ndarray]:
        """The image, and the teacher's disparity of it, float32 [h, w] at the network's resolution.

        Raises:
            InputError: an image or label that cannot be read.
        """
        number, row = self._row(i)
        name, shard = row["name"].decode(), self.units.path(number)
        labels = files_of(self.folder, self.units.names[number])["labels"]
        member = Member(f"{name}.png", int(row["label_offset"]), int(row["label_size"]))
        label = DepthMap.from_png(read_member(labels, member), f"{labels}: {member.name}")
        if shard is not None:
            data = read_member(shard, Member(name, int(row["image_offset"]), int(row["image_size"])))
            return open_image(data), label.values
        if (found := self.units.source.name(int(row["image"]))) != name:
            raise InputError(f"{labels}: its label of {name} would go to {found}; label the images again")
        return open_image(self.units.source.encoded(int(row["image"]))), label.values
