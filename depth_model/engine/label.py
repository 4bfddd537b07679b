"""Pseudo-labels: the teacher's disparity of unlabelled images (V1 section 3.2), as label shards.

    depth-control label --images tar=runs/clean --teacher runs/teacher/model --out runs/labels
    depth-control label --runner ray --address auto ...

A unit is a tar shard, or `--per-shard` images of another source; `depth_model.data.units` says which files a labelled
one consists of. `UNIT.tar` holds `IMAGE.png` for each image that could be labelled: 16-bit disparity at the network's
resolution with its range in the PNG text. The bytes depend on images, teacher and settings alone, each file takes its
name when it is complete, and the last one says that the unit is done. So nothing is lost or made twice however often
the engine is killed, and several may work on one `--out` at once: at worst they make the same bytes.
"""

import functools
import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from depth_model.config import run_module
from depth_model.data.shards import write_file
from depth_model.data.units import PROVENANCE, Units, done_at, read_json
from depth_model.engine.pipeline import Options, label_units
from depth_model.engine.runner import run_on_ray
from depth_model.errors import InputError, RunError
from depth_model.estimator import DepthEstimator


@dataclass(frozen=True)
class Config:
    """Labels images with a teacher."""

    images: str = ""
    """Images as NAME=DIR: tar=DIR for shards, such as `collect` makes; images=DIR for a folder tree; list=FILE; or a
    set of the paper such as sa1b=DIR."""
    teacher: str = "embedded"
    """Depth model: embedded, a folder, a Hub id or an original .pth."""
    out: Path = Path("runs/labels")
    """Folder of the label shards."""
    batch: int = 8
    """Images of one size that go through the network together."""
    flip: bool = False
    """Average with the map of the mirrored image, and store how much both disagree; twice the time."""
    per_shard: int = 1000
    """Images of a unit, when the source has no shards of its own."""
    device: str | None = None
    """Where the teacher runs; the best there is when not given."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    threads: int = 0
    """Threads that decode images and encode labels; 0 for one to eight, by the processors there are."""
    runner: Literal["local", "ray"] = "local"
    """local: in this process. ray: as tasks on a Ray cluster, whose machines see the same folders."""
    address: str = "auto"
    """Ray cluster: auto for the one this machine belongs to, local to start one here, or ray://HOST:PORT."""
    gpus: float | None = None
    """GPUs that a task on Ray takes, such as 0.5; 1 where the cluster has any, else 0, when not given."""
    cpus: float = 1.0
    """Processors that a task on Ray takes."""


@functools.lru_cache(1)
def _teacher(name: str, device: str | None, dtype: str) -> DepthEstimator:
    estimator = DepthEstimator.from_pretrained(name, device, dtype)
    if estimator.kind != "disparity":
        raise InputError(f"--teacher {name}: a metric model; pseudo-labels are disparity, take a relative one")
    return estimator


_units = functools.lru_cache(1)(Units)


def _fingerprint(estimator: DepthEstimator) -> str:
    """SHA-256 of the teacher's weights in the order of their names."""
    digest = hashlib.sha256()
    for name, weight in sorted(estimator.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _provenance(config: Config, estimator: DepthEstimator, units: Units) -> dict:
    """What the labels depend on; another value of any of it makes other labels."""
    fields = estimator.processor
    made_by = {
        "teacher_sha256": _fingerprint(estimator),
        "flip": config.flip,
        "dtype": config.dtype,
        "lower_bound": fields.size["height"],
        "antialias": getattr(fields, "antialias", False),
        "mean": list(fields.image_mean),
        "std": list(fields.image_std),
        "versions": {name: version(name) for name in ("depth-control", "torch", "transformers", "pillow")},
    }
    if units.source is not None:
        made_by |= {"images": len(units.source), "per_shard": config.per_shard}
    return made_by


def _claim(config: Config, made_by: dict, units: Units) -> None:
    """Writes the provenance, or checks that the labels already there are of the same; shards may be added."""
    file = config.out / PROVENANCE
    content = made_by | {"source": config.images, "teacher": config.teacher, "units": units.names}
    config.out.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        _write_first(file, json.dumps(content, indent=1).encode())
    found = read_json(file)
    if differing := [key for key in made_by if found.get(key) != made_by[key]]:
        raise InputError(
            f"--out {config.out} holds labels of other {', '.join(differing)} (see {file}); choose another folder"
        )
    known = set(units.names)
    if gone := [unit for unit in found.get("units", ()) if unit not in known]:
        raise InputError(f"--out {config.out} has labels of {gone[0]}, which --images {config.images} has not")
    if len(found.get("units", ())) < len(known):
        write_file(file, json.dumps(content, indent=1).encode())


def _write_first(file: Path, data: bytes) -> None:
    """Of several engines that start at once, the first one's provenance counts."""
    own = file.with_name(f"{file.name}.tmp-{os.urandom(4).hex()}")
    own.write_bytes(data)
    try:
        os.link(own, file)
    except FileExistsError:
        pass
    except OSError:
        # No hard links on this file system.
        write_file(file, data)
    finally:
        own.unlink()


def _label(config: Config, units: Units, numbers: Iterable[int], made_by: dict) -> Iterator[tuple[str, str]]:
    estimator = _teacher(config.teacher, config.device, config.dtype)
    options = Options(config.out, config.batch, config.flip, config.threads, made_by)
    return label_units(units, numbers, estimator, options)


def _label_one(name: str, config: Config, made_by: dict) -> list[tuple[str, str]]:
    """A task on another machine; its process keeps the teacher and the list of units for the next one."""
    units = _units(config.images, config.per_shard)
    return list(_label(config, units, [units.names.index(name)], made_by))


def main(config: Config) -> None:
    """Runs the stage.

    Raises:
        InputError: no images, an unusable teacher, or labels of another teacher in `out`.
        RunError: a full disk, a teacher that fails, or shards that cannot be read; the units that are done stay, and
            the same command goes on.
    """
    if not config.images:
        raise InputError("--images is missing: give tar=DIR for shards, or images=DIR for a folder tree")
    if config.batch < 1 or config.per_shard < 1 or config.threads < 0:
        raise InputError("--batch and --per-shard must be at least 1, --threads at least 0")
    units = Units(config.images, config.per_shard)
    if units.source is None and config.out.resolve().is_relative_to(Path(units.folder).resolve()):
        raise InputError(f"--out {config.out} is in the folder of the shards, where labels would be taken for images")
    estimator = _teacher(config.teacher, config.device, config.dtype)
    made_by = _provenance(config, estimator, units)
    _claim(config, made_by, units)
    pending = [i for i, name in enumerate(units.names) if done_at(config.out, name) is None]
    # No draw that anyone repeats: engines that start together on one folder seldom meet on a unit.
    random.Random().shuffle(pending)
    if config.runner == "ray":
        # Tasks have working folders of their own.
        name, _, folder = config.images.partition("=")
        images = f"{name}={Path(folder).expanduser().resolve()}"
        teacher = str(Path(config.teacher).resolve()) if Path(config.teacher).exists() else config.teacher
        absolute = replace(config, out=config.out.resolve(), images=images, teacher=teacher)
        results = run_on_ray(_label_one, [units.names[number] for number in pending], (absolute, made_by), config)
    else:
        results = _label(config, units, pending, made_by)
    bar = tqdm(results, desc="units", initial=len(units) - len(pending), total=len(units), mininterval=10)
    failed = {name: problem for name, problem in bar if problem}
    if failed:
        name, problem = min(failed.items())
        raise RunError(
            f"{len(failed)} of {len(units)} units could not be labelled, such as {name} ({problem}); the others are "
            "done; mend or remove these and run the same command again"
        )
    # Everything is done, so what an engine that was killed on a unit of another one left is of no use.
    for partial in config.out.rglob("*.tmp-*"):
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    # By the name under which the workers of Ray import it.
    from depth_model.engine import label

    run_module(label.Config, label.main, "depth_model.engine.label")
