"""The frozen parts that a cache is made with: autoencoder and text encoders, by their stock classes."""

import hashlib
import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline
from torch import Tensor

from depth_control.presets import is_xl, load_parts
from depth_model import DepthEstimator
from depth_model.errors import InputError

Autoencoder = AutoencoderKL | AutoencoderTiny
TEXT_PARTS = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")


def load_autoencoder(folder: Path, flag: str) -> Autoencoder:
    """The autoencoder in a folder, in float32.

    Raises:
        InputError: none there, or of a class that Stable Diffusion does not have; naming `flag`.
    """
    try:
        kind = json.loads((folder / "config.json").read_text())["_class_name"]
        classes = {cls.__name__: cls for cls in (AutoencoderKL, AutoencoderTiny)}
        vae = classes[kind].from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=torch.float32)
    except KeyError as error:
        raise InputError(f"{flag} {folder}: {error} is no autoencoder of Stable Diffusion") from error
    except (OSError, ValueError, RuntimeError) as error:
        if not (folder / "config.json").is_file():
            hint = "train one with depth-control train-autoencoder, or give --base"
            raise InputError(f"{flag} {folder}: no autoencoder there; {hint}") from error
        raise InputError(f"{flag} {folder}: cannot be loaded ({str(error).splitlines()[0]})") from error
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: Autoencoder, images: np.ndarray) -> Tensor:
    """Latents of images uint8 [B, H, W, 3], scaled as the UNet wants them, float16 on the CPU.

    Returns:
        [B, 2, C, h, w], mean and log-variance, of `AutoencoderKL`; [B, 1, C, h, w], the latent, of `AutoencoderTiny`.

    Raises:
        InputError: the autoencoder gave NaN or infinity, which float16 ones do.
    """
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
    scale = vae.config.scaling_factor
    if isinstance(vae, AutoencoderTiny):
        result = (vae.encode(pixels).latents * scale)[:, None]
    else:
        posterior = vae.encode(pixels).latent_dist
        result = torch.stack([posterior.mean * scale, posterior.logvar + 2 * float(np.log(scale))], 1)
    result = result.half().cpu()
    if not result.isfinite().all():
        raise InputError(f"the autoencoder gave NaN or infinity in {vae.dtype}; give --dtype float32")
    return result


def text_pipeline(folder: Path, device: torch.device) -> DiffusionPipeline:
    """The base's pipeline with nothing but its text encoders, so that captions are encoded as at inference."""
    return load_parts(folder, dtype=torch.float32, unet=None, controlnet=None, vae=None).to(device)


@torch.no_grad()
def embed(pipeline: DiffusionPipeline, captions: list[str]) -> dict[str, Tensor]:
    """Embeddings of captions by the pipeline's own `encode_prompt`: `text` [N, T, D] and, for SDXL, `pooled` [N, P].

    The empty caption is what the pipeline uses without a negative prompt: zeros for SDXL where its config says so.
    """
    if not is_xl(type(pipeline)):
        return {"text": pipeline.encode_prompt(captions, pipeline.device, 1, False)[0].half().cpu()}
    text, _, pooled, _ = pipeline.encode_prompt(captions, None, pipeline.device, 1, False)
    if pipeline.config.force_zeros_for_empty_prompt:
        filled = torch.tensor([bool(caption) for caption in captions], device=text.device)
        text, pooled = text * filled[:, None, None], pooled * filled[:, None]
    return {"text": text.half().cpu(), "pooled": pooled.half().cpu()}


def at_resolution(estimator: DepthEstimator, shortest: int) -> DepthEstimator:
    """The same network on inputs whose shortest side has `shortest` pixels, a multiple of 14; 0 for its own."""
    if not shortest:
        return estimator
    processor = deepcopy(estimator.processor)
    processor.size = {"height": shortest, "width": shortest}
    return DepthEstimator(estimator.model, processor, estimator.device, estimator.dtype)


def fingerprint(folder: Path, parts: tuple[str, ...] = ("",)) -> str:
    """SHA-256 of the configs, vocabularies and safetensors weights in parts of a model folder."""
    digest = hashlib.sha256()
    for part in parts:
        files = (path for path in (folder / part).glob("*") if path.suffix in (".json", ".txt", ".safetensors"))
        for path in sorted(files):
            digest.update(f"{part}/{path.name}\n".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def network_fingerprint(estimator: DepthEstimator) -> str:
    """SHA-256 of what an estimator's maps depend on: weights, precision and preprocessing."""
    fields = estimator.processor
    settings = [estimator.kind, str(estimator.dtype), fields.size["height"], getattr(fields, "antialias", False)]
    digest = hashlib.sha256(json.dumps([*settings, list(fields.image_mean), list(fields.image_std)]).encode())
    for name, weight in sorted(estimator.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
