"""What a collection kept and dropped, as counts and as one picture."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from depth_model.errors import InputError
from depth_model.images import open_image

_SAMPLES, _TILE, _LABEL, _LINE = 8, 96, 150, 20
_KEPT, _DROPPED = (30, 90, 160), (200, 90, 40)


class Report:
    """Counts over the rows of a collection (see `depth_model.data.clean`), and a few images of each kind by chance.

    Attributes:
        examined, kept: images. dropped: reason -> images.
    """

    def __init__(self):
        self.examined = self.kept = 0
        self.dropped: Counter[str] = Counter()
        self._sizes: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
        self._samples: dict[str, list[int]] = {}
        self._rng = random.Random(0)

    def count(self, row: dict) -> None:
        """Takes one row."""
        kept, reason = "file" in row, row.get("reason", "kept")
        self.examined += 1
        self.kept += kept
        if not kept:
            self.dropped[reason] += 1
        if "width" in row:
            # Sides by half octaves: 64, 91, 128, ...
            side = max(1, min(row["width"], row["height"]))
            self._sizes[kept][(side * side).bit_length() - 1] += 1
        seen = self.kept if kept else self.dropped[reason]
        chosen = self._samples.setdefault(reason, [])
        if len(chosen) < _SAMPLES:
            chosen.append(row["number"])
        elif (place := self._rng.randrange(seen)) < _SAMPLES:
            chosen[place] = row["number"]

    def draw(self, path: Path, encoded: Callable[[int], bytes]) -> None:
        """Writes counts by reason, sizes, and samples as one PNG.

        Args:
            encoded: bytes of an image by its number.
        """
        kinds = ["kept", *(reason for reason, _ in self.dropped.most_common())]
        counts = {"kept": self.kept, **self.dropped}
        octaves = sorted(self._sizes[True].keys() | self._sizes[False].keys())
        height = _LINE * (len(kinds) + len(octaves) + 4) + (_TILE + 4) * len(kinds)
        sheet = Image.new("RGB", (_LABEL + (_TILE + 4) * _SAMPLES, height), "white")
        canvas, y, width = ImageDraw.Draw(sheet), 4, sheet.width - _LABEL - 90
        canvas.text((4, y), f"{self.kept} of {self.examined} images kept", fill="black")
        for kind in kinds:
            y += _LINE
            colour = _KEPT if kind == "kept" else _DROPPED
            self._bar(canvas, y, kind, [(counts[kind], colour)], max(1, self.examined), width)
        y += 2 * _LINE
        canvas.text((4, y), "shorter side in pixels: kept, dropped", fill="black")
        most = max([1, *(self._sizes[True][o] + self._sizes[False][o] for o in octaves)])
        for octave in octaves:
            y += _LINE
            parts = [(self._sizes[True][octave], _KEPT), (self._sizes[False][octave], _DROPPED)]
            self._bar(canvas, y, f"from {round(2 ** (octave / 2))}", parts, most, width)
        y += 2 * _LINE
        for kind in kinds:
            canvas.text((4, y + _TILE // 2), kind, fill="black")
            for place, number in enumerate(sorted(self._samples.get(kind, ()))):
                sheet.paste(_tile(encoded, number), (_LABEL + place * (_TILE + 4), y))
            y += _TILE + 4
        sheet.save(path, compress_level=1)

    @staticmethod
    def _bar(canvas: ImageDraw.ImageDraw, y: int, name: str, parts: list, most: int, width: int) -> None:
        canvas.text((4, y), name, fill="black")
        x = _LABEL
        for count, colour in parts:
            canvas.rectangle((x, y, x + width * count / most, y + _LINE - 6), fill=colour)
            x += width * count / most
        canvas.text((x + 6, y), str(sum(count for count, _ in parts)), fill="black")


def _tile(encoded: Callable[[int], bytes], number: int) -> Image.Image:
    tile = Image.new("RGB", (_TILE, _TILE), (225, 225, 225))
    try:
        picture = open_image(encoded(number))
        picture.thumbnail((_TILE, _TILE))
        tile.paste(picture, ((_TILE - picture.width) // 2, (_TILE - picture.height) // 2))
    except InputError:
        ImageDraw.Draw(tile).text((20, _TILE // 2 - 6), "no image", fill="grey")
    return tile
