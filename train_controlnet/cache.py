"""The training cache: latents, text embeddings and float conditions, computed once by `prepare-controlnet`.

`tensors/` holds the tensors under keys that depend on content, models and preprocessing; `index.json` says what the
cache is, and has a row for each image. An index is complete or absent.
"""

import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from depth_control import to_control
from depth_model.data.order import generator, sample_at
from depth_model.errors import InputError
from train_controlnet.store import Store

INDEX = "index.json"
TENSORS = "tensors"
VERSION = 2


@dataclass(frozen=True)
class About:
    """What a cache was made with."""

    base: str
    """Name or folder of the base; empty when only an autoencoder was given."""
    vae: str
    """SHA-256 of the autoencoder."""
    text: str
    """SHA-256 of tokenizers and text encoders; empty when the cache has no text."""
    depth_models: tuple[str, ...]
    """Estimators of the conditions, as they were named."""
    percentiles: tuple[float, ...]
    """Shares of the nearest and of the farthest pixels, in percent, that are clipped; one is drawn for each sample."""
    version: int = VERSION


@dataclass(frozen=True)
class Sample:
    """A row of the index: one image. Keys name tensors."""

    name: str
    caption: str
    bucket: str
    """HEIGHTxWIDTH in pixels."""
    latents: tuple[tuple[str, ...], ...]
    """For each crop the keys as it is and, where flips were prepared, mirrored."""
    controls: tuple[tuple[str, ...], ...]
    """For each crop the keys of its conditions, one for each estimator and resolution."""
    time_ids: tuple[tuple[int, ...], ...]
    """For each crop: original height and width, top and left of the crop, height and width (SDXL's conditions)."""


def write_index(folder: Path, about: About, samples: list[Sample], texts: dict[str, str]) -> None:
    """Writes the index under another name and renames it.

    Args:
        texts: caption -> key of its embedding.
    """
    content = {"about": asdict(about), "texts": texts, "samples": [list(vars(sample).values()) for sample in samples]}
    partial = folder / f"{INDEX}.partial"
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, folder / INDEX)


class Cache:
    """A cache; a batch comes from one bucket and depends on (seed, step) alone.

    Raises:
        InputError: no complete cache there.
    """

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.seed = Path(folder), seed
        try:
            content = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            if content["about"]["version"] != VERSION:
                raise ValueError(f"it is of version {content['about']['version']}, this program reads {VERSION}")
            self.about, self.texts = About(**content["about"]), content["texts"]
            samples = [Sample(*row) for row in content["samples"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder}: no complete cache ({error}); run depth-control prepare-controlnet") from error
        self.store = Store(self.folder / TENSORS)
        for sample in samples:
            for key in (key for keys in (*sample.latents, *sample.controls) for key in keys):
                if key not in self.store:
                    raise InputError(
                        f"{folder}: no complete cache (a tensor of {sample.name} is missing); "
                        "run depth-control prepare-controlnet again"
                    )
        buckets: dict[str, list[Sample]] = {}
        for sample in samples:
            buckets.setdefault(sample.bucket, []).append(sample)
        self.buckets = [buckets[name] for name in sorted(buckets)]
        counts = np.array([len(bucket) for bucket in self.buckets], dtype=float)
        self.shares = counts / counts.sum()

    def __len__(self) -> int:
        return sum(map(len, self.buckets))

    @property
    def captions(self) -> list[str]:
        """Every caption, repeated ones too."""
        return [sample.caption for bucket in self.buckets for sample in bucket]

    @cached_property
    def sampled(self) -> bool:
        """Whether latents are stored as mean and log-variance, to be drawn anew each step."""
        return self.store[self.buckets[0][0].latents[0][0]].shape[0] == 2

    @cached_property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.store[self.buckets[0][0].latents[0][0]].shape[1]

    def text(self, caption: str) -> dict[str, Tensor]:
        """The embedding of a caption: `text` float32 [T, D] and, for SDXL, `pooled` [P]."""
        found = {name: f"{self.texts[caption]}.{name}" for name in ("text", "pooled")}
        return {name: self.store[key].float() for name, key in found.items() if key in self.store}

    def batch(self, step: int, size: int, share: slice = slice(None), dropout: float = 0.0) -> dict:
        """The images of a step; which, how mirrored and how cropped depends on (seed, step) alone.

        Args:
            step: optimiser step. size: images in the global batch. share: those of them that are wanted.
            dropout: probability that a caption is replaced by the empty one, drawn anew each step.

        Returns:
            latents float32 [B, C, h, w], scaled; controls float32 [B, 3, H, W] in [0, 1], near = 1; captions, name
            and problem (lists, for `Watch`); time_ids float32 [B, 6]; text [B, T, D] and pooled [B, P] where the cache
            has them.
        """
        rng = generator(self.seed, 4, step)
        bucket = self.buckets[int(rng.choice(len(self.buckets), p=self.shares))]
        chosen = [sample_at(step * size + i, len(bucket), self.seed)[1] for i in range(size)]
        mirrored = rng.integers(2, size=size)
        more = rng.random((3, size))  # crop, condition, percentile
        drawn = torch.Generator().manual_seed(int(rng.integers(2**62)))
        dropped = generator(self.seed, 5, step)
        captions = ["" if dropped.random() < dropout else bucket[i].caption for i in chosen]
        picks = [Pick(bucket[chosen[k]], bool(mirrored[k]), *more[:, k]) for k in range(size)]
        latents = self._latents(picks, share, drawn)
        controls = torch.stack([self._control(pick) for pick in picks[share]])
        batch = {
            "latents": latents,
            "controls": controls[:, None].expand(-1, 3, -1, -1),
            "captions": captions[share],
            "name": [pick.sample.name for pick in picks[share]],
            "problem": [""] * len(picks[share]),
            "time_ids": torch.tensor([pick.sample.time_ids[pick.crop] for pick in picks[share]]).float(),
        }
        if self.about.text:
            texts = [self.text(caption) for caption in captions[share]]
            batch |= {name: torch.stack([text[name] for text in texts]) for name in texts[0]}
        return batch

    def _latents(self, picks: list["Pick"], share: slice, drawn: torch.Generator) -> Tensor:
        stored = [self.store[p.sample.latents[p.crop][p.mirrored]].float() for p in picks[share]]
        stored = torch.stack(stored)
        if not self.sampled:
            return stored[:, 0]
        mean, log_variance = stored.unbind(1)
        # Drawn for the global batch, so that every number of processes sees the same.
        noise = torch.randn((len(picks), *mean.shape[1:]), generator=drawn)[share]
        return mean + (0.5 * log_variance).exp() * noise

    def _control(self, pick: "Pick") -> Tensor:
        keys = pick.sample.controls[pick.crop]
        values = from_stored(self.store[keys[int(pick.condition * len(keys))]])
        percent = self.about.percentiles[int(pick.percentile * len(self.about.percentiles))]
        if percent > 0:
            values = clip_percentile(values, percent)
        return torch.from_numpy(values[:, ::-1].copy() if pick.flipped else values)


class Pick:
    """One image of a batch with what was drawn for it."""

    def __init__(self, sample: Sample, flipped: bool, crop: float, condition: float, percentile: float):
        self.sample, self.condition, self.percentile = sample, condition, percentile
        self.crop = int(crop * len(sample.latents))
        self.flipped = flipped and len(sample.latents[self.crop]) > 1
        self.mirrored = int(self.flipped)


def clip_percentile(control: np.ndarray, percent: float) -> np.ndarray:
    """The condition [H, W] with the nearest and the farthest `percent` of its pixels clipped, by `to_control`."""
    near, far = np.quantile(1.0 - control, (percent / 100, 1 - percent / 100))
    # Of a map that is nearly all one distance, nothing is left to stretch.
    return to_control(control, float(near), float(far)) if far - near > 1e-3 else control


def to_stored(control: np.ndarray, dtype: str) -> Tensor:
    """A condition in [0, 1] as float16, or as uint16 with 65535 for 1."""
    if dtype == "uint16":
        return torch.from_numpy(np.rint(control * 65535).astype(np.uint16))
    return torch.from_numpy(control.astype(np.float16))


def from_stored(stored: Tensor) -> np.ndarray:
    """The inverse of `to_stored`, float32 [H, W]."""
    values = stored.numpy()
    return values.astype(np.float32) / 65535 if values.dtype == np.uint16 else values.astype(np.float32)
