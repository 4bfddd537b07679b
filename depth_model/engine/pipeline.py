"""Units through the teacher: images in order -> decoded (threads) -> predicted -> encoded (threads) -> written.

Each step is an iterator over the one before, so the loop that writes pulls everything, the model runs in its thread,
and the threads of the pool decode and encode beside it, also from one unit to the next.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, groupby, islice, takewhile
from pathlib import Path
from time import sleep

import numpy as np
import torch

from depth_model.data.shards import ShardWriter, sweep, write_file
from depth_model.data.transforms import network_size
from depth_model.data.units import Unit, Units, files_of, input_hash, make_table
from depth_model.depth_map import DepthMap
from depth_model.engine.pool import ahead
from depth_model.errors import InputError, RunError
from depth_model.estimator import DepthEstimator
from depth_model.images import open_image, read_size

_FAILED = "the teacher gave "


@dataclass
class _Work:
    """A unit on its way, and what went wrong in it."""

    name: str
    shard: Path | None
    unit: Unit | None = None
    order: list[int] = field(default_factory=list)
    hashes: dict[int, str] = field(default_factory=dict)
    quarantine: dict[str, str] = field(default_factory=dict)
    problem: str = ""


_Entry = tuple[_Work, int | None, object]
"""Unit, number of the image, and what became of it so far; the entry without a number ends the unit."""


def _read(unit: Unit, i: int) -> bytes:
    """Network file systems fail now and then; three tries."""
    for pause in (0.2, 1.0):
        try:
            return unit.source.encoded(i)
        except InputError as error:
            if not isinstance(error.__cause__, OSError) or isinstance(error.__cause__, FileNotFoundError):
                raise
            sleep(pause)
    return unit.source.encoded(i)


def _prepare(units: Units, number: int, lower_bound: int, out: Path) -> _Work | None:
    """A unit with its images ordered so that those of one network size follow each other; None when it is done."""
    name = units.names[number]
    if files_of(out, name)["done"].exists():
        return None
    try:
        unit = units.open(number)
    except InputError as error:
        return _Work(name, units.path(number), problem=str(error))

    def size(i: int) -> tuple[int, int]:
        try:
            width, height, _ = read_size(_read(unit, i))
            return network_size(height, width, lower_bound)
        except (InputError, ZeroDivisionError):
            return 0, 0

    return _Work(name, units.path(number), unit, sorted(unit.indices, key=lambda i: (size(i), i)))


def _decode(entry: _Entry, estimator: DepthEstimator) -> _Entry:
    """The network input of an image, or why there is none."""
    work, i, _ = entry
    if i is None or work.problem:
        return entry
    try:
        data = _read(work.unit, i)
        work.hashes[i] = hashlib.sha256(data).hexdigest()
        return work, i, estimator.preprocess(open_image(data))
    except InputError as error:
        if work.shard is not None and isinstance(error.__cause__, OSError):
            # Not the image's fault: the whole shard is tried again another time.
            work.problem = str(error)
        return work, i, str(error)


def _predict(entries: Iterable[_Entry], estimator: DepthEstimator, batch: int, flip: bool) -> Iterator[_Entry]:
    """The teacher's map [h, w], and that of the mirrored image or None, for each input."""
    for shape, group in groupby(entries, key=lambda entry: getattr(entry[2], "shape", None)):
        if shape is None:
            yield from group
            continue
        while chosen := list(islice(group, batch)):
            pixels = torch.cat([entry[2] for entry in chosen])
            try:
                maps = estimator.predict_tensor(pixels, check=False).cpu().numpy()
                mirrored = [None] * len(maps)
                if flip:
                    mirrored = estimator.predict_tensor(pixels.flip(-1), check=False).flip(-1).cpu().numpy()
            except torch.OutOfMemoryError as error:
                raise RunError(
                    f"out of memory with {len(chosen)} images of {list(shape[2:])}; lower --batch"
                ) from error
            for (work, i, _), *both in zip(chosen, maps, mirrored, strict=True):
                yield work, i, both


def _encode(entry: _Entry) -> _Entry:
    """The PNG of a map and its statistics, or why it is no label."""
    work, i, both = entry
    if not isinstance(both, list):
        return entry
    disparity, mirrored = both
    disagreement = np.nan
    if mirrored is not None:
        difference = np.abs(disparity - mirrored).mean()
        disparity = (disparity + mirrored) / 2
        disagreement = difference / max(float(disparity.std()), 1e-12)
    low, high = float(disparity.min()), float(disparity.max())
    if not np.isfinite(disparity).all():
        return work, i, f"{_FAILED}NaN or infinity"
    if low < 0 or high - low <= 1e-6 * high:
        return work, i, _FAILED + ("negative disparity" if low < 0 else "a flat map")
    file = io.BytesIO()
    DepthMap(disparity, "disparity").save_png(file, effort=1)
    return work, i, (file.getvalue(), (low, high, float(disparity.mean()), float(disparity.std()), disagreement))


def _write(work: _Work, entries: Iterable[_Entry], made_by: dict, out: Path) -> None:
    """Writes the files of a unit, the one that says it is done last."""
    files, rows = files_of(out, work.name), []
    with ShardWriter(files["labels"]) as labels:
        for _, i, result in entries:
            if isinstance(result, tuple):
                png, statistics = result
                rows.append(work.unit.row(i, labels.add(f"{work.unit.image(i)}.png", png), statistics))
            else:
                work.quarantine[work.unit.image(i)] = str(result)
        if work.problem:
            raise InputError(work.problem)
        failures = sum(reason.startswith(_FAILED) for reason in work.quarantine.values())
        if failures > max(4, len(work.unit.indices) // 2):
            raise RunError(
                f"{work.name}: the teacher failed on {failures} of {len(work.unit.indices)} images, such as "
                f"{next(iter(work.quarantine.items()))}; try --dtype float32 or another --teacher"
            )
    table = io.BytesIO()
    np.save(table, make_table(rows), allow_pickle=False)
    write_file(files["table"], table.getvalue())
    quarantine = json.dumps(dict(sorted(work.quarantine.items())), indent=1).encode()
    if work.quarantine:
        write_file(files["quarantine"], quarantine)
    done = {
        **{"images": len(work.unit.indices), "labelled": len(rows), "quarantined": len(work.quarantine)},
        "input_bytes": work.shard.stat().st_size if work.shard else None,
        "input_sha256": input_hash((work.unit.image(i), work.hashes.get(i, "")) for i in work.unit.indices),
        **{"label_bytes": labels.bytes, "label_sha256": labels.sha256},
        "table_sha256": hashlib.sha256(table.getvalue()).hexdigest(),
        "quarantine_sha256": hashlib.sha256(quarantine).hexdigest() if work.quarantine else None,
        "made_by": made_by,
    }
    write_file(files["done"], json.dumps(done, indent=1).encode())
    for file in files.values():
        sweep(file)


@dataclass(frozen=True)
class Options:
    """How units are labelled; see `label.Config`."""

    out: Path
    batch: int
    flip: bool
    threads: int
    made_by: dict


def label_units(
    units: Units, numbers: Iterable[int], estimator: DepthEstimator, options: Options
) -> Iterator[tuple[str, str]]:
    """Labels units that are not done yet; yields the name of each and what is wrong with it, empty when it is done.

    Raises:
        RunError: no memory, a teacher that fails, or a full disk.
    """
    threads = options.threads or max(1, min(8, os.cpu_count() or 1))
    lower_bound = estimator.processor.size["height"]
    with ThreadPoolExecutor(threads) as pool:
        prepared = ahead(pool, lambda number: _prepare(units, number, lower_bound, options.out), numbers, 1)
        images = ((work, i, None) for work in prepared if work for i in (*work.order, None))
        decoded = ahead(pool, lambda entry: _decode(entry, estimator), images, 2 * options.batch + threads)
        predicted = _predict(decoded, estimator, options.batch, options.flip)
        encoded = ahead(pool, _encode, predicted, options.batch + threads)
        # The entry that ends a unit is the one without a number, so each unit has at least one.
        for first in encoded:
            entries = chain([first], encoded)
            yield first[0].name, _commit(first[0], takewhile(lambda entry: entry[1] is not None, entries), options)


def _commit(work: _Work, entries: Iterable[_Entry], options: Options) -> str:
    try:
        _write(work, entries, options.made_by, options.out)
    except InputError as error:
        # The rest of the unit, so that the next one begins where it does.
        for _ in entries:
            pass
        return str(error)
    except OSError as error:
        # Another engine that made the same unit sweeps this one's half-written files.
        if not (isinstance(error, FileNotFoundError) and files_of(options.out, work.name)["done"].exists()):
            raise RunError(
                f"{options.out}: cannot be written ({error}); make room and run the same command again"
            ) from error
    return ""
