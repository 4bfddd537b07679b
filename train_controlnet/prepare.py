"""The training cache: latents, captions and float conditions of a folder of scenes, computed once.

    depth-control prepare-controlnet --scenes runs/scenes --vae runs/autoencoder/model --depth-model runs/depth/model

One safetensors file per image size holds latents float16 [N, 2, C, h, w] (as is, and of the mirrored image; scaled by
the autoencoder's scaling factor) and conditions float16 [N, H, W] made by `depth_control.to_control`, near = 1.
Captions stand in `captions.json` in the same order. A file that is there is kept, so an interrupted preparation goes
on.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from depth_control import to_control
from depth_model import DepthEstimator, DepthMap
from depth_model.data.labeled import Pair, PairFolder
from depth_model.data.order import generator, sample_at
from depth_model.errors import InputError
from depth_model.estimator import EMBEDDED


@dataclass(frozen=True)
class Config:
    """Prepares scenes for training a base model or a ControlNet."""

    scenes: Path = Path("runs/scenes")
    """Folder written by `depth-control scenes`."""
    vae: Path = Path("runs/autoencoder/model")
    """Folder of the autoencoder."""
    depth_model: str = "embedded"
    """Estimator that makes the conditions: embedded, a folder, a Hub id, or "exact" for the scenes' true depth."""
    out: Path = Path("runs/cache")
    """Folder of the cache."""


def _fingerprint(config: Config) -> str:
    """Changes with the data and the models, not with where the cache is."""
    digest = hashlib.sha256((config.scenes / "index.json").read_bytes())
    model = EMBEDDED if config.depth_model == "embedded" else Path(config.depth_model)
    for path in (config.vae, model):
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        for file in files:
            digest.update(file.read_bytes())
        if not files:  # a Hub id, or the exact depth
            digest.update(config.depth_model.encode())
    return digest.hexdigest()


@torch.no_grad()
def _encode(vae: AutoencoderTiny, image: np.ndarray) -> Tensor:
    """Scaled latents float16 [2, C, h, w] of an image uint8 [H, W, 3] and of its mirror image."""
    both = np.stack([image, image[:, ::-1]]).astype(np.float32)
    pixels = torch.from_numpy(both).permute(0, 3, 1, 2) / 127.5 - 1
    return (vae.encode(pixels).latents * vae.config.scaling_factor).half()


def _condition(estimator: DepthEstimator | None, pair: Pair) -> Tensor:
    depth = DepthMap(pair.disparity, "disparity") if estimator is None else estimator(pair.image)
    return torch.from_numpy(to_control(depth)).half()


def main(config: Config) -> None:
    """Runs the stage.

    Raises:
        InputError: a folder or model that cannot be used, or a cache of other data in `out`.
    """
    folder = PairFolder(config.scenes, scenes=True)
    if any("caption" not in row for row in folder.rows):
        raise InputError(f"{config.scenes}/index.json: every row needs a caption")
    if not (config.vae / "config.json").is_file():
        raise InputError(f"--vae {config.vae}: no autoencoder there; train one with depth-control train-autoencoder")
    config.out.mkdir(parents=True, exist_ok=True)
    marker, fingerprint = config.out / "fingerprint.txt", _fingerprint(config)
    if marker.exists() and marker.read_text() != fingerprint:
        raise InputError(f"--out {config.out} holds a cache of other data or models; choose another folder")
    marker.write_text(fingerprint)
    vae = AutoencoderTiny.from_pretrained(config.vae, use_safetensors=True).eval()
    estimator = None if config.depth_model == "exact" else DepthEstimator.from_pretrained(config.depth_model)
    sizes = sorted({(row["height"], row["width"]) for row in folder.rows})
    captions = {}
    for height, width in sizes:
        chosen = [i for i, row in enumerate(folder.rows) if (row["height"], row["width"]) == (height, width)]
        name = f"{height}x{width}"
        captions[name] = [folder.rows[i]["caption"] for i in chosen]
        path = config.out / f"{name}.safetensors"
        if path.exists():
            continue
        scale = 2 ** (len(vae.config.encoder_block_out_channels) - 1)
        shape = (len(chosen), 2, vae.config.latent_channels, height // scale, width // scale)
        latents = torch.empty(shape, dtype=torch.float16)
        controls = torch.empty((len(chosen), height, width), dtype=torch.float16)
        for n, i in enumerate(tqdm(chosen, desc=name, mininterval=10)):
            pair = folder.read(i)
            latents[n], controls[n] = _encode(vae, pair.image), _condition(estimator, pair)
        partial = path.with_suffix(".partial")
        save_file({"latents": latents, "controls": controls}, partial)
        partial.rename(path)
    (config.out / "captions.json").write_text(json.dumps(captions))


class Cache:
    """A cache in memory; a batch comes from one size and depends on (seed, step) alone."""

    def __init__(self, folder: Path, seed: int):
        try:
            captions = json.loads((folder / "captions.json").read_text())
            self.sizes = [(load_file(folder / f"{name}.safetensors"), captions[name]) for name in sorted(captions)]
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"{folder}: no complete cache ({error}); run depth-control prepare-controlnet") from error
        self.seed = seed
        counts = np.array([len(captions) for _, captions in self.sizes], dtype=float)
        self.shares = counts / counts.sum()

    @property
    def captions(self) -> list[str]:
        """Every caption, repeated ones too."""
        return [caption for _, captions in self.sizes for caption in captions]

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.sizes[0][0]["latents"].shape[2]

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, list[str]]:
        """Latents float32 [B, C, h, w], conditions float32 [B, 3, H, W] and captions of a step; mirrored at random."""
        rng = generator(self.seed, 4, step)
        tensors, captions = self.sizes[int(rng.choice(len(self.sizes), p=self.shares))]
        chosen = [sample_at(step * size + i, len(captions), self.seed)[1] for i in range(size)]
        mirrored = rng.integers(2, size=size)
        latents = tensors["latents"][chosen, mirrored].float()
        controls = tensors["controls"][chosen].float()
        controls = torch.where(torch.from_numpy(mirrored == 1)[:, None, None], controls.flip(-1), controls)
        return latents, controls[:, None].expand(-1, 3, -1, -1), [captions[i] for i in chosen]
