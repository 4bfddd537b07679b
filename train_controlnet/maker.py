"""What `prepare-controlnet` computes: plans for each image what is missing, and makes it in batches."""

import hashlib
import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from depth_control import to_control
from depth_control.presets import DTYPES, base_folder, pick_device
from depth_model import DepthEstimator, DepthMap
from depth_model.data.order import generator
from depth_model.errors import InputError, RunError
from depth_model.images import open_image
from train_controlnet import lint
from train_controlnet.buckets import MULTIPLE, Crop, aspect_buckets, bucket_crop, nearest_bucket, whole_crop
from train_controlnet.cache import TENSORS, About, Sample, to_stored
from train_controlnet.encoders import (
    TEXT_PARTS,
    at_resolution,
    embed,
    encode,
    fingerprint,
    load_autoencoder,
    network_fingerprint,
    text_pipeline,
)
from train_controlnet.sources import Captioned, Scenes
from train_controlnet.store import Store

EXACT = "exact"
_REFERENCES = 32


@dataclass
class Job:
    """An image with what is to be made of it; `image` is None when nothing is missing."""

    index: int
    sample: Sample
    content: str
    crops: list[Crop]
    image: Image.Image | None


@dataclass
class _Estimator:
    """An estimator at one resolution, or the exact depth."""

    name: str
    network: DepthEstimator | None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = EXACT if self.network is None else network_fingerprint(self.network)


class Maker:
    """The models of a preparation, the tensors that are there, and what is known of each image."""

    def __init__(self, config: Any, source: Captioned):
        """Loads the models.

        Args:
            config: of `prepare`. source: the images.

        Raises:
            InputError: a model that cannot be used, or exact depth where there is none.
            RunError: `out` cannot be made.
        """
        self.config, self.source = config, source
        self.base = None if config.base is None else base_folder(config.base)
        vae_folder = config.vae if self.base is None else self.base / "vae"
        vae = load_autoencoder(vae_folder, "--base" if self.base else "--vae")
        self.device = pick_device(config.device)
        self.estimators = self._estimators()
        self.reference = self._reference()
        self.vae = vae.to(self.device, DTYPES[config.dtype], memory_format=torch.channels_last)
        self.vae_key = f"{fingerprint(vae_folder)}.{config.dtype}"
        self.text_key = "" if self.base is None else f"{fingerprint(self.base, TEXT_PARTS)}.{config.dtype}"
        self.buckets = self._buckets()
        try:
            config.out.mkdir(parents=True, exist_ok=True)
            self.store = Store(config.out / TENSORS)
            self.store.clean()
            self.facts = _read_facts(config.out / "facts.jsonl")
            self._log, self._writing = (config.out / "facts.jsonl").open("a"), threading.Lock()
        except OSError as error:
            raise RunError(f"--out {config.out}: cannot be written ({error.strerror}); name another folder") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def about(self) -> About:
        """The head of the cache's index."""
        config = self.config
        names = tuple(dict.fromkeys(estimator.name for estimator in self.estimators))
        return About(config.base or "", self.vae_key, self.text_key, names, tuple(config.percentiles))

    def plan(self, index: int, name: str, caption: str, data: bytes) -> Job:
        """What one image becomes, decoded if anything of it is missing.

        Raises:
            InputError: it cannot be decoded, or is too small.
        """
        content, image = hashlib.sha256(data).hexdigest(), None
        if content not in self.facts:
            image = open_image(data)
            self._note(content, lint.picture_facts(image))
        height, width = self.facts[content]["size"]
        if min(height, width) < MULTIPLE:
            raise InputError(f"{width} x {height} pixels are too small")
        crops = self._crops(content, height, width)
        latents, controls = zip(*(self._keys(content, crop) for crop in crops), strict=True)
        ids = tuple(_time_ids(crop, height, width) for crop in crops)
        sample = Sample(name, caption, f"{crops[0].rows}x{crops[0].columns}", latents, controls, ids)
        complete = all(key in self.store for keys in (*latents, *controls) for key in keys)
        return Job(index, sample, content, crops, None if complete else image or open_image(data))

    def make(self, jobs: list[Job]) -> dict[str, str]:
        """Makes the missing tensors of jobs of one bucket; name and reason of those that could not be.

        Raises:
            RunError: the disk is full.
        """
        failed, everything = {}, jobs
        for job in jobs:
            if any(e.network is None for e in self.estimators):
                try:
                    self._exact(job)
                except InputError as error:
                    failed[job.sample.name] = str(error)
        jobs = [job for job in jobs if job.sample.name not in failed]
        for number, estimator in enumerate(self.estimators):
            if estimator.network is not None:
                self._estimate(jobs, number, estimator.network)
        self._encode(jobs)
        for job in everything:
            job.image = None
        return failed

    def make_texts(self, captions: list[str]) -> dict[str, str]:
        """Makes the missing embeddings; caption -> key, the empty caption too. Empty without a base."""
        if self.base is None:
            return {}
        keys = {caption: _digest("text", caption, self.text_key) for caption in dict.fromkeys(["", *captions])}
        missing = [caption for caption, key in keys.items() if f"{key}.text" not in self.store]
        if missing:
            pipeline = text_pipeline(self.base, self.device)
            pipeline.to(dtype=DTYPES[self.config.dtype])
            for start in range(0, len(missing), 32):
                chosen = missing[start : start + 32]
                for name, tensors in embed(pipeline, chosen).items():
                    for caption, tensor in zip(chosen, tensors, strict=True):
                        self.store.add(f"{keys[caption]}.{name}", tensor.clone())
        return keys

    def _reference(self) -> DepthEstimator | None:
        """Exact depth alone has nothing to be compared with; the packaged estimator sees whether it is inverted."""
        if any(estimator.network for estimator in self.estimators):
            return None
        with suppress(InputError):
            return DepthEstimator.from_pretrained("embedded", self.device)
        return None

    def _estimators(self) -> list[_Estimator]:
        result = []
        for name in filter(None, self.config.depth_model.split(",")):
            if name == EXACT:
                if not isinstance(self.source, Scenes):
                    raise InputError("--depth-model exact: only the scenes of --scenes come with exact depth")
                result.append(_Estimator(name, None))
                continue
            network = DepthEstimator.from_pretrained(name, self.device)
            result += [_Estimator(name, at_resolution(network, side)) for side in self.config.depth_resolutions]
        if not result:
            raise InputError("--depth-model is empty: name an estimator")
        return result

    def _buckets(self) -> list[tuple[int, int]]:
        resolution = self.config.resolution
        if resolution is None:
            resolution = 0 if self.base is None else _native(self.base)
        return aspect_buckets(resolution, self.config.longest_aspect) if resolution else []

    def _crops(self, content: str, height: int, width: int) -> list[Crop]:
        if not self.buckets:
            return [whole_crop(height, width)]
        bucket = nearest_bucket(height, width, self.buckets)
        crops = [bucket_crop(height, width, bucket)]
        for number in range(1, self.config.crops):
            rng = generator(self.config.seed, 8, int(content[:12], 16), number)
            crops.append(bucket_crop(height, width, bucket, self.config.least_crop, rng))
        return crops

    def _keys(self, content: str, crop: Crop) -> tuple[tuple[str, ...], tuple[str, ...]]:
        flips = ("", "mirrored")[: 1 + self.config.flips]
        latents = tuple(_digest("latent", content, crop, self.vae_key, flip) for flip in flips)
        dtype = self.config.depth_dtype
        return latents, tuple(_digest("control", content, crop, e.key, dtype) for e in self.estimators)

    def _exact(self, job: Job) -> None:
        number = next(i for i, e in enumerate(self.estimators) if e.network is None)
        if all(keys[number] in self.store for keys in job.sample.controls):
            return
        depth = DepthMap(self.source.disparity(job.index), "disparity")
        if depth.values.shape != (job.image.height, job.image.width):
            raise InputError(f"its depth is {depth.values.shape}, the image is {job.image.height, job.image.width}")
        sparse = max(1, len(self.source) // _REFERENCES)
        near = depth.nearness()
        seen = self.reference(job.image).nearness() if self.reference and job.index % sparse == 0 else None
        self._add_controls(job, number, near, seen)

    def _estimate(self, jobs: list[Job], number: int, network: DepthEstimator) -> None:
        jobs = [job for job in jobs if any(keys[number] not in self.store for keys in job.sample.controls)]
        for job, depth in zip(jobs, network([job.image for job in jobs]) if jobs else [], strict=True):
            self._add_controls(job, number, depth.nearness(), None)

    def _add_controls(self, job: Job, number: int, near: np.ndarray, reference: np.ndarray | None) -> None:
        """Stores the conditions of a job's crops, each stretched to its own range as a photo's would be."""
        for crop, keys in zip(job.crops, job.sample.controls, strict=True):
            control = to_control(crop.map(near))
            seen = None if reference is None else crop.map(reference)
            if seen is None and number:
                # The first estimator's condition is made by now, unless the key is the same one.
                seen = to_array(self.store[keys[0]]) if keys[0] in self.store else None
            self._note(keys[number], lint.condition_facts(control, seen))
            self.store.add(keys[number], to_stored(control, self.config.depth_dtype))

    def _encode(self, jobs: list[Job]) -> None:
        wanted = []
        for job in jobs:
            for crop, keys in zip(job.crops, job.sample.latents, strict=True):
                if all(key in self.store for key in keys):
                    continue
                pixels = crop.image(job.image)
                views = zip(keys, (pixels, pixels[:, ::-1]), strict=False)
                wanted += [(key, view) for key, view in views if key not in self.store]
        for start in range(0, len(wanted), self.config.batch):
            keys, pixels = zip(*wanted[start : start + self.config.batch], strict=True)
            for key, latent in zip(keys, encode(self.vae, np.stack(pixels)), strict=True):
                self.store.add(key, latent.clone())

    def _note(self, key: str, facts: dict) -> None:
        try:
            with self._writing:
                self.facts[key] = facts
                self._log.write(json.dumps([key, facts]) + "\n")
                self._log.flush()
        except OSError as error:
            raise RunError(f"{self._log.name}: cannot be written ({error.strerror}); make room and go on") from error


def to_array(stored: Tensor) -> np.ndarray:
    """A stored condition as float32 [H, W] on any scale."""
    return stored.numpy().astype(np.float32)


def _digest(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:40]


def _native(base: Path) -> int:
    """The side of the base's native pictures in pixels."""
    try:
        side = json.loads((base / "unet" / "config.json").read_text())["sample_size"]
        return MULTIPLE * int(side if isinstance(side, int) else max(side))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--base {base}: unet/config.json has no sample_size ({error}); give --resolution") from error


def _time_ids(crop: Crop, height: int, width: int) -> tuple[int, ...]:
    """SDXL's size conditions: the original size, the crop's corner in the resized image, the size (2307.01952, 2.2)."""
    scale = crop.rows / crop.height
    return height, width, round(crop.top * scale), round(crop.left * scale), crop.rows, crop.columns


def _read_facts(path: Path) -> dict[str, dict]:
    facts = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            key, value = json.loads(line)
            facts[key] = value
        except (ValueError, TypeError):  # a line cut off by a kill
            continue
    return facts
