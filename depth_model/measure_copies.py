"""How many copies `collect` finds, and what it takes for a copy that is none.

    depth-control measure-copies --images images=photos

Copies of some images are encoded again, halved, cropped, brightened or darkened, or all of it at once, and mixed with
the originals. They are looked for twice: as near-duplicates of images kept before, and as copies of evaluation images.
"""

import io
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageEnhance

from depth_model.config import run_module
from depth_model.data.clean import EXCLUDED, read_rows
from depth_model.data.unlabeled import open_unlabeled
from depth_model.engine import collect
from depth_model.errors import InputError
from depth_model.images import open_image


@dataclass(frozen=True)
class Config:
    """Looks for changed copies among the images of a folder; nothing is kept."""

    images: str = ""
    """Images as NAME=DIR."""
    copies: int = 1000
    """Images that are copied, at most half of all; each kind of change gets a fifth of them."""
    near_duplicate: float = collect.Config.near_duplicate
    """As for `collect`."""
    seed: int = 0
    """Which images are copied, and how much is changed."""


def _crop(picture: Image.Image, rng: random.Random) -> Image.Image:
    width, height = picture.size
    left, top, right, bottom = (rng.uniform(0, 0.03) for _ in range(4))
    box = (width * left, height * top, width * (1 - right), height * (1 - bottom))
    return picture.crop(tuple(map(round, box)))


def _halve(picture: Image.Image, rng: random.Random) -> Image.Image:
    return picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)), Image.Resampling.BICUBIC)


def _brighten(picture: Image.Image, rng: random.Random) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(rng.uniform(0.8, 1.2))


Change = tuple[Callable[[Image.Image, random.Random], Image.Image], ...]
CHANGES: dict[str, tuple[Change, int]] = {
    "encoded again, JPEG quality 50 to 95": ((), 50),
    "half the size": ((_halve,), 95),
    "cropped by up to 3 % a side": ((_crop,), 95),
    "up to 20 % brighter or darker": ((_brighten,), 95),
    "all four": ((_halve, _crop, _brighten), 50),
}
"""Steps of each change, and the least JPEG quality after them."""


def changed(picture: Image.Image, change: str, rng: random.Random) -> bytes:
    """The JPEG of a changed copy."""
    steps, least = CHANGES[change]
    for step in steps:
        picture = step(picture, rng)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=rng.randint(least, 95))
    return file.getvalue()


def main(config: Config) -> dict[str, float]:
    """Prints two tables; returns the shares of copies found and of other images dropped, by the reason of `collect`.

    Raises:
        InputError: too few images, or settings out of range.
    """
    if not config.images:
        raise InputError("--images is missing: give NAME=DIR, such as images=photos")
    if config.copies < len(CHANGES):
        raise InputError(f"--copies must be at least {len(CHANGES)}, one for each kind of change")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        kept, copied, copies = (Path(folder, name) for name in ("kept/other", "kept/copied", "copies"))
        kinds = _prepare(config, kept, copied, copies)
        searches = {
            "near-duplicate": {"images": (f"images={kept.parent}", f"images={copies}")},
            "evaluation": {"images": (f"images={kept}", f"images={copies}"), "evaluation": (str(copied),)},
        }
        for reason, sources in searches.items():
            out = Path(folder, reason)
            manifest = collect.main(collect.Config(**sources, out=out, near_duplicate=config.near_duplicate))
            results |= _tell(out, reason, kinds, manifest["examined"] - len(kinds))
    return results


def _prepare(config: Config, kept: Path, copied: Path, copies: Path) -> dict[str, str]:
    """Writes originals, those that are copied, and copies; the kind of each copy by its file's name."""
    source = open_unlabeled(config.images)
    if len(source) < 2 * len(CHANGES):
        raise InputError(f"--images {config.images}: at least {2 * len(CHANGES)} images are needed")
    for folder in (kept, copied, copies):
        folder.mkdir(parents=True)
    rng, kinds = random.Random(config.seed), {}
    chosen = set(rng.sample(range(len(source)), min(config.copies, len(source) // 2)))
    for i in range(len(source)):
        name, data = f"{i:09d}.jpg", source.encoded(i)
        if i in chosen:
            try:
                picture = open_image(data)
            except InputError:
                continue
            kinds[name] = list(CHANGES)[len(kinds) % len(CHANGES)]
            (copies / name).write_bytes(changed(picture, kinds[name], rng))
        ((copied if i in chosen else kept) / name).write_bytes(data)
    return kinds


def _tell(out: Path, reason: str, kinds: dict[str, str], originals: int) -> dict[str, float]:
    """Prints what one collection found, and returns it as shares."""
    found, elsewhere, false = Counter(), Counter(), 0
    for row in read_rows(out / EXCLUDED):
        if row["set"] == 0:
            false += row["reason"] == reason
        else:
            (found if row["reason"] == reason else elsewhere)[kinds[row["name"]]] += 1
    looked = Counter(kinds.values())
    looked.subtract(elsewhere)
    print(f"\n| {reason} | found |\n|---|---|")
    for kind in CHANGES:
        others = f" ({elsewhere[kind]} more were dropped for another reason)" if elsewhere[kind] else ""
        print(f"| {kind} | {found[kind]} of {looked[kind]}{others} |")
    print(f"\nDropped without being a copy: {false} of {originals}.\n")
    return {reason: found.total() / max(1, looked.total()), f"false {reason}": false / originals}


if __name__ == "__main__":
    run_module(Config, main, "depth_model.measure_copies")
