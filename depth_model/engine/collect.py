"""Clean shards from image folders, tar shards and lists, with an account of every image that was dropped.

    depth-control collect --images images=photos sa1b=data/SA-1B list=more.txt --evaluation data/nyu --out runs/clean

Images go through `filters.STEPS` in threads and are compared with those kept before in one order, so the result depends
on images and settings alone. A shard is complete when its index is there; the same command goes on after the last one.
`depth_model.data.clean` says what the files hold; at the end there are also `excluded.jsonl`, the images that were
dropped and why, and `collect.png`, counts, sizes and samples.
"""

import hashlib
import io
import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from tqdm import tqdm

from depth_model.config import run_module
from depth_model.data.clean import EXCLUDED, MANIFEST, SETTINGS, index_files, read_rows, shard_file
from depth_model.data.shards import ShardWriter, sweep, write_file
from depth_model.data.units import read_json
from depth_model.data.unlabeled import open_unlabeled
from depth_model.engine.duplicates import FINE, HashIndex, dissimilarity, square
from depth_model.engine.filters import SIDE, Drop, Evaluation, Limits, Record, examine
from depth_model.engine.pool import ahead
from depth_model.engine.report import Report
from depth_model.errors import InputError, RunError
from depth_model.images import open_grey, open_image

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_CANDIDATES = 4


@dataclass(frozen=True, kw_only=True)
class Config(Limits):
    """Collects and filters images."""

    images: tuple[str, ...] = ()
    """Images as NAME=DIR, one or several: images=DIR for a folder tree, tar=DIR for shards, list=FILE for a text file
    with a path a line, lmdb=DIR, or a set of the paper such as sa1b=DIR."""
    evaluation: tuple[str, ...] = ()
    """Folders that models are measured on; copies of their images are dropped."""
    out: Path = Path("runs/clean")
    """Folder of the clean shards."""
    per_shard: int = 1000
    """Images in a shard."""
    threads: int = 0
    """Threads that decode and filter; 0 for as many as there are processors."""


class Sources:
    """Several sources as one: images by number, in the order in which they were given."""

    def __init__(self, specs: tuple[str, ...]):
        self.sets = [open_unlabeled(spec) for spec in specs]
        self.ends = list(accumulate(len(source) for source in self.sets))

    def __len__(self) -> int:
        return self.ends[-1]

    def place(self, number: int) -> tuple[int, int]:
        """Which set image `number` is in, and its number there."""
        which = bisect_right(self.ends, number)
        return which, number - (self.ends[which - 1] if which else 0)

    def name(self, number: int) -> str:
        """The image's name in its set."""
        which, i = self.place(number)
        return self.sets[which].name(i)

    def encoded(self, number: int) -> bytes:
        """Its bytes."""
        which, i = self.place(number)
        return self.sets[which].encoded(i)


class Kept:
    """The images kept so far, which later ones must not be copies of."""

    def __init__(self, sources: Sources, limit: float):
        self._sources, self._limit = sources, limit
        self._index, self._numbers = HashIndex(), array("Q")

    def add(self, number: int, code: np.ndarray) -> None:
        """Image `number` was kept; `code` is its hash [4]."""
        self._index.add(code)
        self._numbers.append(number)

    def copied(self, record: Record) -> int | None:
        """The kept image that an image is a copy of."""
        if not self._limit:
            return None
        for found in self._index.find(record.codes)[:_CANDIDATES]:
            number = self._numbers[found]
            try:
                other = square(open_grey(self._sources.encoded(number), SIDE), FINE)
            except InputError:
                continue
            if dissimilarity(other, square(record.grey, FINE)) < self._limit:
                return number
        return None


def _stored(record: Record) -> tuple[str, bytes]:
    """Suffix and bytes under which an image is kept: its own where the format is a usual one, else PNG."""
    if record.format in _SUFFIXES:
        return _SUFFIXES[record.format], record.data
    file = io.BytesIO()
    open_image(record.data).save(file, "PNG")
    return "png", file.getvalue()


def _claim(config: Config, sources: Sources) -> None:
    """Writes the settings, or checks that what is there was collected with the same."""
    free = ("out", "threads")
    settings = json.loads(json.dumps({name: v for name, v in asdict(config).items() if name not in free}))
    settings["counts"] = [len(source) for source in sources.sets]
    file = config.out / SETTINGS
    if file.exists():
        found = read_json(file)
        if differing := [name for name in settings if found.get(name) != settings[name]]:
            raise InputError(
                f"--out {config.out} was collected with other {', '.join(differing)} (see {file}); take another folder"
            )
        return
    config.out.mkdir(parents=True, exist_ok=True)
    write_file(file, json.dumps(settings, indent=1).encode())


def _examined(
    config: Config, sources: Sources, first: int, bar: tqdm
) -> Iterator[tuple[int, Record | None, Drop | None]]:
    """Each image from number `first` on, with the reason to drop it when there is one."""
    evaluation = Evaluation(list(config.evaluation)) if config.evaluation else None
    limits = Limits(**{name: getattr(config, name) for name in Limits.__dataclass_fields__})

    def look(number: int) -> tuple[int, Record | None, Drop | None]:
        try:
            record = Record(sources.encoded(number), limits, evaluation)
        except InputError as error:
            return number, None, Drop("unreadable", str(error))
        return number, record, examine(record)

    threads = config.threads or os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for item in ahead(pool, look, range(first, len(sources)), 4 * threads):
            bar.update()
            yield item


def _fill(
    images: Iterator[tuple[int, Record | None, Drop | None]], config: Config, sources: Sources, kept: Kept, shard: int
) -> bool:
    """Writes one shard and its index; False when the images have come to their end."""
    file, rows, held = shard_file(config.out, shard), [], 0
    with ShardWriter(file) as writer:
        for number, record, drop in images:
            row = {"number": number, "set": sources.place(number)[0], "name": sources.name(number)}
            if record is not None:
                row |= {"width": record.width, "height": record.height}
            if drop is None and (original := kept.copied(record)) is not None:
                drop = Drop("near-duplicate", f"of image {original}, {sources.name(original)}")
            if drop is None:
                suffix, data = _stored(record)
                member = writer.add(f"{number:09d}.{suffix}", data)
                row |= {"file": member.name, "offset": member.offset, "size": member.size}
                row |= {"sha256": hashlib.sha256(data).hexdigest(), "code": record.codes[0].tobytes().hex()}
                kept.add(number, record.codes[0])
                held += 1
            else:
                row |= {"reason": drop.reason, "detail": drop.detail}
            rows.append(row)
            if held == config.per_shard:
                break
    if not held:
        file.unlink()
    if rows:
        index = file.with_suffix(".jsonl")
        write_file(index, "".join(json.dumps(row) + "\n" for row in rows).encode())
        sweep(file)
        sweep(index)
    return held == config.per_shard


def _finish(config: Config, sources: Sources) -> dict:
    """The exclusion list, the picture and the manifest, all from the indexes."""
    report, partial = Report(), config.out / f"{EXCLUDED}.part"
    with partial.open("w", encoding="utf-8") as excluded:
        for index in index_files(config.out):
            for row in read_rows(index):
                report.count(row)
                if "reason" in row:
                    excluded.write(json.dumps(row) + "\n")
    os.replace(partial, config.out / EXCLUDED)
    report.draw(config.out / "collect.png", sources.encoded)
    manifest = {"examined": report.examined, "kept": report.kept, "dropped": dict(sorted(report.dropped.items()))}
    manifest["shards"] = sum(shard_file(config.out, i).exists() for i in range(len(index_files(config.out))))
    write_file(config.out / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def main(config: Config) -> dict:
    """Runs the stage and returns its counts.

    Raises:
        InputError: no images, or other settings than those of the shards that are there.
        RunError: a full disk; complete shards stay, and the same command goes on.
    """
    if not config.images:
        raise InputError("--images is missing: give images=DIR, tar=DIR or list=FILE, one or several")
    if config.per_shard < 1 or config.threads < 0:
        raise InputError("--per-shard must be at least 1, --threads at least 0")
    sources = Sources(config.images)
    try:
        _claim(config, sources)
        copies, first, shards = Kept(sources, config.near_duplicate), 0, index_files(config.out)
        for index in shards:
            for row in read_rows(index):
                first = row["number"] + 1
                if "code" in row:
                    copies.add(row["number"], np.frombuffer(bytes.fromhex(row["code"]), np.uint64))
        if first < len(sources):
            bar = tqdm(total=len(sources), initial=first, desc="images", mininterval=10)
            images = _examined(config, sources, first, bar)
            shard = len(shards)
            while _fill(images, config, sources, copies, shard):
                shard += 1
        manifest = _finish(config, sources)
    except OSError as error:
        raise RunError(f"{config.out}: cannot be written ({error}); make room and run the same again") from error
    dropped = ", ".join(f"{count} {reason}" for reason, count in manifest["dropped"].items()) or "none"
    print(
        f"{manifest['kept']} of {manifest['examined']} images kept in {manifest['shards']} shards; dropped: {dropped}"
    )
    return manifest


if __name__ == "__main__":
    run_module(Config, main, "depth_model.engine.collect")
