"""Pseudo-labels: the teacher's disparity of unlabelled images (V1 section 3.2), as label shards.

    depth-control label --images images=photos --teacher runs/teacher/model --out runs/labels

Unit k covers the images k * per_shard and following, in the order of the source. Its label shard `labels-NNNNNN.tar`
holds `IMAGE.png` for each image that could be read, 16-bit disparity at the network's resolution with its range in the
PNG text, and `quarantine.json` with the others and why. A unit is there or not: it takes its name when it is complete,
and the same command makes what is missing. `labels.json` says what made the labels.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import torch
from tqdm import tqdm

from depth_model.config import run_module
from depth_model.data.shards import ShardWriter
from depth_model.data.unlabeled import Unlabeled, open_unlabeled
from depth_model.depth_map import DepthMap
from depth_model.errors import InputError, RunError
from depth_model.estimator import DepthEstimator
from depth_model.images import open_image

PROVENANCE = "labels.json"
QUARANTINE = "quarantine.json"


@dataclass(frozen=True)
class Config:
    """Labels images with a teacher."""

    images: str = ""
    """Images as NAME=DIR: images=DIR for a folder tree, tar=DIR for shards, or a set of the paper such as sa1b=DIR."""
    teacher: str = "embedded"
    """Depth model: embedded, a folder, a Hub id or an original .pth."""
    out: Path = Path("runs/labels")
    """Folder of the label shards."""
    batch: int = 8
    """Images of one size that go through the network together."""
    per_shard: int = 1000
    """Images of a unit."""
    device: str | None = None
    """Where the teacher runs; the best there is when not given."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""


def shard_name(unit: int) -> str:
    """The file of a unit's labels."""
    return f"labels-{unit:06d}.tar"


def _fingerprint(estimator: DepthEstimator) -> str:
    """SHA-256 of the teacher's weights in the order of their names."""
    digest = hashlib.sha256()
    for name, weight in sorted(estimator.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _provenance(config: Config, estimator: DepthEstimator, images: int) -> dict:
    """What the labels depend on; another value of any of it makes other labels."""
    return {
        "images": images,
        "per_shard": config.per_shard,
        "teacher_sha256": _fingerprint(estimator),
        "dtype": config.dtype,
        "lower_bound": estimator.processor.size["height"],
        "antialias": getattr(estimator.processor, "antialias", False),
        "versions": {name: version(name) for name in ("torch", "transformers", "pillow")},
    }


def _claim(folder: Path, made_by: dict) -> None:
    """Writes the provenance, or checks that the labels already there are of the same."""
    file = folder / PROVENANCE
    if file.exists():
        found = json.loads(file.read_text())
        if differing := [key for key in made_by if found.get(key) != made_by[key]]:
            raise InputError(
                f"--out {folder} holds labels of other {', '.join(differing)} (see {file}); choose another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made_by, indent=1))


def _inputs(
    source: Unlabeled, indices: range, estimator: DepthEstimator, quarantine: dict[str, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and network input of each image that can be read; the others go to `quarantine`."""
    for i in indices:
        name = source.name(i)
        try:
            picture = open_image(source.encoded(i))
        except InputError as error:
            quarantine[name] = str(error)
            continue
        yield name, estimator.preprocess(picture)


def label_unit(source: Unlabeled, indices: range, estimator: DepthEstimator, batch: int) -> Iterator[tuple[str, bytes]]:
    """The members of a unit's label shard: name and bytes, the quarantine last."""
    quarantine: dict[str, str] = {}
    for _, group in groupby(_inputs(source, indices, estimator, quarantine), key=lambda entry: entry[1].shape):
        group = iter(group)
        while chosen := [entry for entry, _ in zip(group, range(batch), strict=False)]:
            maps = estimator.predict_tensor(torch.cat([pixels for _, pixels in chosen])).cpu().numpy()
            for (name, _), values in zip(chosen, maps, strict=True):
                file = io.BytesIO()
                DepthMap(values, "disparity").save_png(file)
                yield f"{name}.png", file.getvalue()
    yield QUARANTINE, json.dumps(quarantine, indent=1).encode()


def main(config: Config) -> None:
    """Runs the stage.

    Raises:
        InputError: no images, an unusable teacher, or labels of another teacher in `out`.
        RunError: a full disk; the units that are there stay, and the same command goes on.
    """
    if not config.images:
        raise InputError("--images is missing: give images=DIR for a folder tree, or tar=DIR for shards")
    if config.batch < 1 or config.per_shard < 1:
        raise InputError("--batch and --per-shard must be at least 1")
    source = open_unlabeled(config.images)
    estimator = DepthEstimator.from_pretrained(config.teacher, config.device, config.dtype)
    if estimator.kind != "disparity":
        raise InputError(
            f"--teacher {config.teacher}: a metric model; pseudo-labels are disparity, take a relative one"
        )
    _claim(config.out, _provenance(config, estimator, len(source)))
    starts = range(0, len(source), config.per_shard)
    for unit, start in enumerate(tqdm(starts, desc="units", mininterval=10)):
        path = config.out / shard_name(unit)
        if path.exists():
            continue
        indices = range(start, min(start + config.per_shard, len(source)))
        try:
            with ShardWriter(path) as shard:
                for name, data in label_unit(source, indices, estimator, config.batch):
                    shard.add(name, data)
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error}); make room and run the same command again") from error


if __name__ == "__main__":
    run_module(Config, main, "depth_model.engine.label")
