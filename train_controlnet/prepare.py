"""Images and captions to the training cache: latents, text embeddings and float conditions, computed once.

    depth-control prepare-controlnet --images photos --base sd15 --depth-model embedded --out runs/cache
    depth-control prepare-controlnet --scenes runs/scenes --vae runs/autoencoder/model --depth-model runs/depth/model

Every tensor is kept under a key made of the image's bytes, the models and the preprocessing, so the same command goes
on where it stopped, and one with other data, captions or estimators makes only what is new. What cannot be read is left
out and listed in `skipped.json`; what looks wrong is listed in `lint.json`.
"""

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from depth_model.config import run_module
from depth_model.errors import InputError, RunError
from train_controlnet import lint
from train_controlnet.cache import Sample, write_index
from train_controlnet.maker import Job, Maker
from train_controlnet.sources import Captioned, Scenes, open_captioned


@dataclass(frozen=True)
class Config:
    """Prepares images with captions for training a ControlNet or a base model."""

    images: Path | None = None
    """Folder of images with captions: NAME.txt beside each, metadata.jsonl, tar shards, or a Hugging Face dataset."""
    scenes: Path | None = None
    """Folder written by `depth-control scenes`, instead of images."""
    base: str | None = None
    """Base model whose autoencoder and text encoders are used: embedded, sd15, sdxl, a folder or a Hub id."""
    vae: Path | None = None
    """Folder of an autoencoder, instead of a base: the cache then has no text, which train-base encodes itself."""
    depth_model: str = "embedded"
    """Estimator of the conditions: embedded, a folder, a Hub id, or exact for the scenes' true depth. Of several with
    commas between them, training draws one for each sample."""
    depth_resolutions: tuple[int, ...] = (0,)
    """Shortest sides of the estimators' input, multiples of 14; 0 for their own. Training draws one for each sample."""
    percentiles: tuple[float, ...] = (0.0,)
    """Percent of the nearest and of the farthest pixels that are clipped; training draws one for each sample."""
    depth_dtype: Literal["float16", "uint16"] = "float16"
    """How conditions are stored. Near 1 uint16 is 30 times finer."""
    resolution: int | None = None
    """Buckets have about this side squared pixels; 0 keeps each image's own size. Default: the base's native side; with
    --vae the images' own."""
    longest_aspect: float = 2.0
    """Largest aspect of a bucket; wider images are cropped to it."""
    crops: int = 1
    """Crops of each image: the middle, then random ones. Training draws one."""
    least_crop: float = 0.7
    """Smallest random crop, as a share of the largest one's sides."""
    flips: bool = True
    """Store the latents of the mirrored image too. Training mirrors half of the samples, with their depth."""
    caption: str | None = None
    """Caption of images that have none; without it they are left out and listed."""
    leave_out: tuple[Literal["grey", "duplicated", "mis-sized", "flat", "inverted"], ...] = ()
    """What the linter finds and training should not see."""
    batch: int = 8
    """Images that go through a network together."""
    workers: int = 2
    """Threads that read and decode."""
    device: str | None = None
    """Where the networks run; the best there is when not given."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of autoencoder and text encoders. SDXL's own autoencoder needs float32."""
    seed: int = 0
    """Seed of the random crops."""
    out: Path = Path("runs/cache")
    """Folder of the cache."""


def _check(config: Config) -> None:
    if (config.images is None) == (config.scenes is None):
        raise InputError("give --images DIR or --scenes DIR, one of the two")
    if (config.base is None) == (config.vae is None):
        raise InputError("give --base MODEL, or --vae DIR for an autoencoder alone, one of the two")
    for name in ("crops", "batch", "workers"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name} must be at least 1, got {getattr(config, name)}")
    if config.resolution is not None and config.resolution and config.resolution < 64:
        raise InputError(f"--resolution must be at least 64, or 0 for the images' own sizes, got {config.resolution}")
    if config.crops > 1 and config.resolution == 0:
        raise InputError("--crops needs buckets: give a --resolution above 0")
    if not 0 < config.least_crop <= 1 or config.longest_aspect < 1:
        raise InputError("--least-crop must be above 0 and at most 1, --longest-aspect at least 1")
    if not config.percentiles or not all(0 <= percent < 50 for percent in config.percentiles):
        raise InputError(f"--percentiles must be from 0 to below 50, got {config.percentiles}")
    if not config.depth_resolutions or any(side % 14 or side < 0 for side in config.depth_resolutions):
        raise InputError(f"--depth-resolutions must be multiples of 14, or 0, got {config.depth_resolutions}")


def _read(source: Captioned, maker: Maker, config: Config) -> Iterator[tuple[str, Job | str]]:
    """Name and job of each image in order, or the reason why it is left out; a few are read ahead."""

    def one(i: int) -> tuple[str, Job | str]:
        name = source.name(i)
        try:
            caption = source.caption(i) or config.caption
            if not caption:
                return name, "has no caption; give one, or --caption for all that have none"
            return name, maker.plan(i, name, caption, source.encoded(i))
        except InputError as error:
            return name, str(error)

    with ThreadPoolExecutor(config.workers) as pool:
        ahead: deque = deque()
        for i in range(len(source)):
            ahead.append(pool.submit(one, i))
            if len(ahead) > 2 * config.workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _make(source: Captioned, maker: Maker, config: Config) -> tuple[list[Job], dict[str, str]]:
    """Makes what is missing, batched by bucket; the jobs in order, and why others were left out."""
    jobs, skipped, waiting = [], {}, {}

    def finish(batch: list[Job]) -> None:
        skipped.update(maker.make(batch))

    for name, job in tqdm(_read(source, maker, config), total=len(source), desc="images", mininterval=10):
        if isinstance(job, str):
            skipped[name] = job
            continue
        jobs.append(job)
        if job.image is not None:
            waiting.setdefault(job.sample.bucket, []).append(job)
            # Rare sizes must not pile up: decoded photos are large.
            crowded = sum(map(len, waiting.values())) > 3 * config.batch
            longest = max(waiting, key=lambda bucket: len(waiting[bucket]))
            if len(waiting[longest]) == config.batch or crowded:
                finish(waiting.pop(longest))
    for batch in waiting.values():
        finish(batch)
    return [job for job in jobs if job.sample.name not in skipped], skipped


def _lint(jobs: list[Job], maker: Maker, leave_out: tuple[str, ...]) -> tuple[list[Sample], dict[str, list[str]]]:
    """The samples that stay, and what was found: kind -> names."""
    found, seen, kept = lint.collect(), {}, []
    for job in jobs:
        facts = [maker.facts.get(key, {}) for keys in job.sample.controls for key in keys]
        kinds = lint.picture_problems(maker.facts[job.content], job.content, job.crops[0], seen)
        kinds += lint.condition_problems(facts)
        for kind in kinds:
            found[kind].append(job.sample.name)
        if not set(kinds) & set(leave_out):
            kept.append(job.sample)
    return kept, dict(found)


def fill(config: Config, source: Captioned, maker: Maker) -> tuple[list[Sample], dict[str, list[str]], dict[str, str]]:
    """Makes what is missing and writes the index; the samples, what the linter found, and what was left out and why.

    Raises:
        InputError: no image can be used. RunError: the disk is full; what was made is kept.
    """
    try:
        jobs, skipped = _make(source, maker, config)
        samples, found = _lint(jobs, maker, config.leave_out)
        texts = maker.make_texts([sample.caption for sample in samples])
        maker.store.flush()
    except RunError:
        raise
    except BaseException:
        # What is complete is worth keeping, whatever ends the run.
        with suppress(RunError):
            maker.store.flush()
        raise
    try:
        (config.out / "skipped.json").write_text(json.dumps(skipped, indent=1))
        (config.out / "lint.json").write_text(json.dumps(found, indent=1))
        if not samples:
            name, reason = next(iter(skipped.items()), ("all", "left out by --leave-out"))
            folder = config.images or config.scenes
            raise InputError(f"{folder}: no image can be used; the first: {name}: {reason}")
        write_index(config.out, maker.about(), samples, texts)
    except OSError as error:
        raise RunError(
            f"{config.out}: cannot be written ({error}); make room and run the same command again"
        ) from error
    return samples, found, skipped


def main(config: Config) -> None:
    """Runs the stage.

    Raises:
        InputError: settings, folders or models that cannot be used, or no image that can.
        RunError: the disk is full; what was made is kept, and the same command goes on.
    """
    _check(config)
    source = open_captioned(config.images or config.scenes)
    if config.scenes is not None and not isinstance(source, Scenes):
        raise InputError(f"--scenes {config.scenes}: no index.json there; give a folder of other images as --images")
    with Maker(config, source) as maker:
        samples, found, skipped = fill(config, source, maker)
    print(f"{len(samples)} images in {config.out}", flush=True)
    for line in lint.summary(found, len(source)):
        print(f"lint: {line}", flush=True)
    if skipped:
        print(f"skipped {len(skipped)} (see {config.out / 'skipped.json'}):", flush=True)
        for name, reason in list(skipped.items())[:10]:
            print(f"  {name}: {reason}", flush=True)


if __name__ == "__main__":
    run_module(Config, main, "train_controlnet.prepare")
