"""Is the control obeyed? Pictures for fixed images, prompts and seeds, judged by their re-estimated depth."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, DDPMScheduler
from PIL import Image

from depth_control import pooled_fidelity, to_control
from depth_control.conditioning import resize_map
from depth_control.pipelines import condition_range, picture_size
from depth_control.presets import load_parts
from depth_model import DepthEstimator
from depth_model.errors import InputError
from depth_model.images import open_image
from train_controlnet.diffusion import denoised, predict
from train_controlnet.encoders import embed, encode
from train_controlnet.sources import open_captioned

PROXY_TIME = 0.7
"""Where the one-step proxy looks, as a share of the noise schedule: the layout is not decided yet."""

_TILE = 128
_COLUMNS = 8


class Validator:
    """A base pipeline with a ControlNet under training, fixed pictures with their captions, and a judge.

    Attributes:
        range: what the pipeline's own processor makes of a black and a white condition.
    """

    def __init__(
        self,
        config: Any,
        base: Path,
        network: ControlNetModel,
        scheduler: DDPMScheduler,
        unet: Any,
        maps: str,
        autocast: Callable,
    ):
        """Loads what is missing of the pipeline, and estimates the conditions.

        Args:
            config: of `train`. base: its folder. network: the ControlNet; what it holds later is what is measured.
            scheduler: of training. unet: the frozen one. maps: estimator of the conditions.
            autocast: makes the context in which the ControlNet under training runs in mixed precision.

        Raises:
            InputError: no usable pictures, or models that cannot be loaded.
        """
        self.config, self.network, self.scheduler, self.autocast = config, network, scheduler, autocast
        self.photos, self.prompts = _pictures(config.validation, config.validation_count)
        device = next(network.parameters()).device
        estimator = DepthEstimator.from_pretrained(maps, device)
        self.judge = DepthEstimator.from_pretrained(config.judge, device) if config.judge else estimator
        parts = {"depth_estimator": estimator.model, "depth_processor": estimator.processor}
        # Pictures are drawn as at inference, all in the UNet's dtype; only the autoencoder stays in float32.
        own = network if unet.dtype == network.dtype else ControlNetModel.from_config(network.config).to(unet.dtype)
        self.pipe = load_parts(base, dtype=torch.float32, unet=unet, controlnet=own, **parts).to(device)
        for name in ("text_encoder", "text_encoder_2"):
            if (encoder := getattr(self.pipe, name, None)) is not None:
                encoder.to(unet.dtype)
        self.pipe.vae.requires_grad_(False)
        self.pipe.set_progress_bar_config(disable=True)
        self.range = condition_range(self.pipe)
        self.depths = estimator(self.photos)
        self.examples = [self._example(*each) for each in zip(self.photos, self.depths, self.prompts, strict=True)]
        self.folder = config.out / "validation"
        self.folder.mkdir(parents=True, exist_ok=True)

    def measure(self, step: int) -> dict[str, float]:
        """Fidelity of the pictures, and of the same pictures against other images' conditions; writes a strip.

        Returns:
            structure, detail and rmse, as `pooled_fidelity`; shuffled_structure, the baseline of a wrong condition;
            no_control_structure and no_control_detail, without any control, measured once for each run.
        """
        if self.pipe.controlnet is not self.network:
            self.pipe.controlnet.load_state_dict(self.network.state_dict())
        pictures, controls = zip(*(self._draw(i, 1.0) for i in range(len(self.photos))), strict=True)
        results = [self._seen(picture) for picture in pictures]
        save_strip(self.folder / f"step-{step:08d}.png", self.photos, controls, pictures, results)
        numbers = pooled_fidelity(zip(controls, results, strict=True))
        kept = {name: numbers[name] for name in ("structure", "detail", "rmse")}
        if len(controls) > 1:
            others = [resize_map(c, *r.shape) for c, r in zip((*controls[1:], controls[0]), results, strict=True)]
            kept["shuffled_structure"] = pooled_fidelity(zip(others, results, strict=True))["structure"]
        return kept | self._no_control()

    @torch.no_grad()
    def proxy(self) -> float:
        """Structure of one-step predictions from noised latents of the pictures: cheap, and shows when control sets in.

        20 times cheaper than pictures, and on another scale than theirs, since noised latents still show the picture.
        """
        pairs, timestep = [], int(PROXY_TIME * self.scheduler.config.num_train_timesteps)
        unet = self.pipe.unet
        for i, (batch, control) in enumerate(self.examples):
            latents, times = batch["latents"], torch.tensor([timestep], device=unet.device)
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(self.config.seed + i))
            noisy = self.scheduler.add_noise(latents, noise.to(latents.device), times)
            with self.autocast():
                prediction = predict(unet, self.network, batch, noisy.to(unet.dtype), times)
            clean = denoised(prediction.float(), noisy, timestep, self.scheduler)
            pairs.append((control, self._seen(self._picture(clean))))
        return pooled_fidelity(pairs)["structure"]

    def _example(self, photo: Image.Image, depth: Any, prompt: str) -> tuple[dict, np.ndarray]:
        """What training would see of a picture at its native size, as a batch of one, and its condition."""
        sample = self.pipe.unet.config.sample_size
        native = float(np.sqrt(np.prod(sample) if isinstance(sample, list | tuple) else sample**2))
        height, width = picture_size(*depth.values.shape, native * self.pipe.vae_scale_factor)
        control = resize_map(to_control(depth), height, width)
        latents = encode(self.pipe.vae, np.array(photo.resize((width, height), Image.Resampling.LANCZOS))[None])
        low, high = self.range
        batch = {name: tensor.float() for name, tensor in embed(self.pipe, [prompt]).items()}
        batch |= {
            "latents": latents[:, 0].float(),
            "controls": low + (high - low) * torch.from_numpy(control).expand(1, 3, -1, -1),
            "time_ids": torch.tensor([[height, width, 0, 0, height, width]]).float(),
        }
        return {name: tensor.to(self.pipe.unet.device) for name, tensor in batch.items()}, control

    def _draw(self, i: int, scale: float) -> tuple[Image.Image, np.ndarray]:
        """The picture of an image's prompt, and the condition that the ControlNet saw."""
        output = self.pipe(
            self.prompts[i],
            depth=self.depths[i],
            num_inference_steps=self.config.validation_steps,
            guidance_scale=self.config.guidance_scale,
            controlnet_conditioning_scale=scale,
            generator=torch.Generator().manual_seed(self.config.seed + i),
            output_type="latent",
        )
        return self._picture(output.images[:1]), output.control

    @torch.no_grad()
    def _picture(self, latents: torch.Tensor) -> Image.Image:
        vae = self.pipe.vae
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample[0].float().nan_to_num()
        return Image.fromarray(pixels.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).cpu().numpy())

    def _seen(self, picture: Image.Image) -> np.ndarray:
        return to_control(self.judge(picture))

    def _no_control(self) -> dict[str, float]:
        file = self.folder / "no_control.json"
        if not file.exists():
            drawn = [self._draw(i, 0.0) for i in range(len(self.photos))]
            numbers = pooled_fidelity((control, self._seen(picture)) for picture, control in drawn)
            file.write_text(json.dumps({f"no_control_{name}": numbers[name] for name in ("structure", "detail")}))
        return json.loads(file.read_text())


def took_hold(points: list[tuple[int, float]], baseline: float) -> tuple[int, int] | None:
    """Between which two steps a fidelity curve passes half of its way up from the baseline: the sudden convergence.

    Args:
        points: (step, structure) in order. baseline: structure without control.

    Returns:
        None where it never rises by 0.1, or had passed at the first point.
    """
    best = max((value for _, value in points), default=baseline)
    half = (baseline + best) / 2
    if best - baseline < 0.1:
        return None
    return next(((a, b) for (a, x), (b, y) in zip(points, points[1:], strict=False) if x < half <= y), None)


def save_strip(
    path: Path,
    photos: Sequence[Image.Image],
    controls: Sequence[np.ndarray],
    pictures: Sequence[Image.Image],
    results: Sequence[np.ndarray],
) -> None:
    """Draws photo, condition, picture and its depth one below the other, eight columns to a row, as one PNG."""
    columns = []
    for photo, control, picture, result in zip(photos, controls, pictures, results, strict=True):
        parts = (photo, _grey(control), picture, _grey(result))
        columns.append(np.concatenate([np.asarray(part.convert("RGB").resize((_TILE, _TILE))) for part in parts], 0))
    blank = np.full_like(columns[0], 255)
    columns += [blank] * (-len(columns) % min(_COLUMNS, len(columns)))
    wide = min(_COLUMNS, len(columns))
    rows = [np.concatenate(columns[i : i + wide], 1) for i in range(0, len(columns), wide)]
    Image.fromarray(np.concatenate(rows, 0)).save(path)


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(255 * values).astype(np.uint8))


def _pictures(folder: Path, count: int) -> tuple[list[Image.Image], list[str]]:
    """Up to `count` pictures with captions, evenly spread over the source; what cannot be read is left out and told."""
    source, photos, prompts = open_captioned(folder), [], []
    for i in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int):
        try:
            caption, photo = source.caption(i), open_image(source.encoded(i))
        except InputError as error:
            print(f"validation leaves out {error}", flush=True)
            continue
        if not caption:
            print(f"validation leaves out {source.name(i)}: it has no caption", flush=True)
            continue
        photos.append(photo)
        prompts.append(caption)
    if not photos:
        raise InputError(f"--validation {folder}: no picture with a caption can be used")
    return photos, prompts
