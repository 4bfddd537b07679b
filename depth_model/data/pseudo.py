"""Images with their pseudo-labels: an unlabelled source, and the label shards that `label` made of it."""

import json
from array import array
from pathlib import Path

import numpy as np
from PIL import Image

from depth_model.data.shards import Member, index_shard, read_member
from depth_model.data.unlabeled import Unlabeled
from depth_model.depth_map import DepthMap
from depth_model.errors import InputError
from depth_model.images import open_image


class PseudoLabeled:
    """The images of a source that have a label, in the source's order; nothing is extracted.

    Costs 24 bytes for each image, and the headers of the label shards are read once.

    Raises:
        InputError: no labels, or labels of another source.
    """

    def __init__(self, source: Unlabeled, folder: Path):
        self.source, self.shards = source, sorted(folder.glob("labels-*.tar"))
        try:
            made_by = json.loads((folder / "labels.json").read_text())
            images, per_shard = int(made_by["images"]), int(made_by["per_shard"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder}: no labels there ({error}); make them with depth-control label") from error
        if images != len(source):
            raise InputError(f"{folder}: labels of {images} images, the source has {len(source)}; label them again")
        self._index, self._shard, self._offset, self._size = array("Q"), array("I"), array("Q"), array("I")
        for number, shard in enumerate(self.shards):
            start = int(shard.stem.rpartition("-")[2]) * per_shard
            unit = {f"{source.name(i)}.png": i for i in range(start, min(start + per_shard, images))}
            for member in index_shard(shard):
                if member.name in unit:
                    self._index.append(unit[member.name])
                    self._shard.append(number)
                    self._offset.append(member.offset)
                    self._size.append(member.size)
        if not len(self):
            raise InputError(
                f"{folder}: no label belongs to an image of the source; give the images that were labelled"
            )

    def __len__(self) -> int:
        return len(self._index)

    def name(self, i: int) -> str:
        """The image's name in its source."""
        return self.source.name(self._index[i])

    def read(self, i: int) -> tuple[Image.Image, np.ndarray]:
        """The image, and the teacher's disparity of it, float32 [h, w] at the network's resolution.

        Raises:
            InputError: an image or label that cannot be read.
        """
        shard, name = self.shards[self._shard[i]], f"{self.name(i)}.png"
        label = DepthMap.from_png(read_member(shard, Member(name, self._offset[i], self._size[i])), f"{shard}: {name}")
        return open_image(self.source.encoded(self._index[i])), label.values
