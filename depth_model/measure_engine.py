"""What the data engine costs beside the model: `label` against the bare network, `collect` against bare decoding.

depth-control measure-engine --images images=photos --preset small --count 32
"""

import io
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from depth_model.config import run_module
from depth_model.data.shards import ShardWriter
from depth_model.data.units import Units
from depth_model.data.unlabeled import open_unlabeled
from depth_model.engine import collect
from depth_model.engine.pipeline import Options, label_units
from depth_model.errors import InputError
from depth_model.estimator import DepthEstimator
from depth_model.images import open_image
from depth_model.modeling import PRESETS, build_model


@dataclass(frozen=True)
class Config:
    """Measures in turns within one run, on images of one size; nothing is kept."""

    images: str = ""
    """Images as NAME=DIR; they are resized to 640 x 480 JPEG first."""
    preset: str = "small"
    """Size of the teacher, whose weights are random."""
    count: int = 16
    """Images."""
    batch: int = 4
    """Images that go through the network together."""
    turns: int = 2
    """Turns of each kind."""
    device: str | None = None
    """Where the teacher runs; the best there is when not given."""
    part: Literal["label", "collect", "both"] = "both"
    """What is measured."""


def main(config: Config) -> dict[str, float]:
    """Runs the measurement; returns the ratios `label` (1 when nothing but the network costs time) and `collect`.

    Raises:
        InputError: no image that can be read, an unknown preset, or a count below 1.
    """
    if not config.images:
        raise InputError("--images is missing: give NAME=DIR, such as images=photos")
    if config.preset not in PRESETS:
        raise InputError(f"--preset {config.preset} is unknown; there are {', '.join(PRESETS)}")
    if min(config.count, config.batch, config.turns) < 1:
        raise InputError("--count, --batch and --turns must be at least 1")
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        files = _prepare(config, images)
        if config.part != "collect":
            ratios["label"] = _label(config, images, files)
        if config.part != "label":
            ratios["collect"] = _collect(config, images, files)
    return ratios


def _prepare(config: Config, folder: Path) -> list[bytes]:
    source, files = open_unlabeled(config.images), []
    with ShardWriter(folder / "images.tar") as shard:
        for i in range(len(source)):
            if len(files) == config.count:
                break
            try:
                picture = open_image(source.encoded(i))
            except InputError:
                continue
            file = io.BytesIO()
            picture.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            shard.add(f"{len(files):06d}.jpg", file.getvalue())
            files.append(file.getvalue())
    if not files:
        raise InputError(f"--images {config.images}: no image there can be read")
    return files


def _label(config: Config, images: Path, files: list[bytes]) -> float:
    torch.manual_seed(0)
    estimator = DepthEstimator(build_model(config.preset), device=config.device)
    held = torch.cat([estimator.preprocess(open_image(data)) for data in files[: config.batch]])
    units, bare, whole = Units(f"tar={images}", 1), 0.0, 0.0
    estimator.predict_tensor(held).cpu()
    for turn in range(config.turns):
        began = time.perf_counter()
        for start in range(0, len(files), config.batch):
            estimator.predict_tensor(held[: len(files) - start], check=False).cpu()
        bare += time.perf_counter() - began
        began = time.perf_counter()
        out = images.parent / f"labels-{turn}"
        out.mkdir()
        done = list(label_units(units, [0], estimator, Options(out, config.batch, False, 0, {})))
        whole += time.perf_counter() - began
        assert done == [("images", "")]
        shutil.rmtree(out)
    count = config.turns * len(files)
    size = " x ".join(map(str, held.shape[2:]))
    print(
        f"label: {count / bare:.3f} images/s through the network alone, {count / whole:.3f} from JPEG to label shard: "
        f"{bare / whole:.3f} ({config.preset}, random weights, {size}, batch {config.batch}, {count} images each)"
    )
    return bare / whole


def _collect(config: Config, images: Path, files: list[bytes]) -> float:
    bare = whole = 0.0
    for turn in range(config.turns):
        began = time.process_time()
        for data in files:
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
        bare += time.process_time() - began
        out = images.parent / f"clean-{turn}"
        began = time.process_time()
        collect.main(collect.Config(images=(f"tar={images}",), out=out))
        whole += time.process_time() - began
        shutil.rmtree(out)
    count = config.turns * len(files)
    print(
        f"collect: {1000 * bare / count:.2f} ms an image for decoding alone, {1000 * whole / count:.2f} with "
        f"filters and shards: {whole / bare:.2f} times (processor time, 640 x 480 JPEG, {count} images each)"
    )
    return whole / bare


if __name__ == "__main__":
    run_module(Config, main, "depth_model.measure_engine")
