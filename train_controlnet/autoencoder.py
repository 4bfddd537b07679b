"""Training of the small autoencoder (diffusers' `AutoencoderTiny`) that the embedded base model draws through.

    depth-control train-autoencoder --images runs/scenes --out runs/autoencoder

The latents are trained with noise added before decoding, so that the decoder forgives the errors of a small diffusion
model, and a weak pull towards 0 keeps their scale. `scaling_factor` is measured at the end so that scaled latents have
unit variance.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor

from depth_model import checkpoint
from depth_model.config import dump, jsonable
from depth_model.data.order import batches, generator
from depth_model.errors import InputError
from depth_model.images import list_images, open_image
from depth_model.training import Ema, RunLog, frozen_difference, learning_rate_factor, parameter_groups


@dataclass(frozen=True)
class Config:
    """Trains a small autoencoder on a folder of images."""

    images: Path = Path("runs/scenes")
    """Folder of images."""
    out: Path = Path("runs/autoencoder")
    """Run folder; the finished model is in `model/`."""
    channels: int = 32
    """Channels of every hidden layer."""
    latent_channels: int = 12
    """Channels of the latents, which are 8 times smaller than the image in each direction."""
    crop: int = 64
    """Side of the random training crops, pixels."""
    noise: float = 0.1
    """Standard deviation of the noise added to latents before decoding."""
    steps: int = 1500
    """Optimiser steps in all."""
    batch: int = 16
    """Crops in a batch."""
    lr: float = 2.5e-3
    """Peak learning rate; linear decay."""
    seed: int = 0
    """Seed of weights, order, crops and noise."""
    save_every: int = 1000
    """Steps between checkpoints."""
    log_every: int = 100
    """Steps between lines of the log."""
    resume: str = "auto"
    """auto, must or never."""


FREE = ("out", "save_every", "log_every", "resume")


class Crops(torch.utils.data.Dataset):
    """Random crops, half of them mirrored, float32 [3, crop, crop] in [-1, 1]; keys are (step, epoch, index).

    Images stay decoded in memory.
    """

    def __init__(self, files: list[Path], crop: int, seed: int):
        self.files, self.crop, self.seed = files, crop, seed
        self.memory: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int, int]) -> Tensor:
        _, epoch, index = key
        if index not in self.memory:
            image = open_image(self.files[index])
            if min(image.size) < self.crop:
                raise InputError(f"{self.files[index]}: {image.size} is smaller than --crop {self.crop}")
            self.memory[index] = np.asarray(image)
        image, rng = self.memory[index], generator(self.seed, 3, epoch, index)
        top, left = rng.integers(image.shape[0] - self.crop + 1), rng.integers(image.shape[1] - self.crop + 1)
        window = image[top : top + self.crop, left : left + self.crop]
        window = window[:, ::-1] if rng.random() < 0.5 else window
        return torch.from_numpy(window.copy()).permute(2, 0, 1).float() / 127.5 - 1


def reconstruction_loss(result: Tensor, image: Tensor) -> Tensor:
    """Mean absolute error of the images and of their horizontal and vertical differences; [B, 3, H, W] each."""
    error = result - image
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + 0.5 * edges


@torch.no_grad()
def _finish(model: AutoencoderTiny, files: list[Path], folder: Path, grid: Path) -> dict[str, float]:
    """Measures the scale of the latents and the PSNR on up to 64 whole images, saves the model and a grid of six."""
    images = [torch.from_numpy(np.array(open_image(f))).permute(2, 0, 1).float() / 127.5 - 1 for f in files[:64]]
    latents = [model.encode(image[None]).latents for image in images]
    model.register_to_config(scaling_factor=float(1 / torch.cat([z.flatten() for z in latents]).std()))
    results = [model.decode(z).sample[0].clamp(-1, 1) for z in latents]
    error = np.mean([F.mse_loss(r, i).item() / 4 for r, i in zip(results, images, strict=True)])
    shown = [torch.cat([i, r], 1)[:, :256, :128] for i, r in zip(images[:6], results[:6], strict=True)]
    if min(s.shape[1] for s in shown) == 256:
        sheet = torch.cat(shown, 2).add(1).mul(127.5).round().byte().permute(1, 2, 0)
        Image.fromarray(sheet.numpy()).save(grid)
    model.save_pretrained(folder)
    return {"psnr": float(-10 * np.log10(error)), "scaling_factor": model.config.scaling_factor}


def main(config: Config) -> None:
    """Runs the stage.

    Raises:
        InputError: settings or images that cannot be used.
    """
    files = list_images(config.images)
    if not files:
        raise InputError(f"--images {config.images}: no images there")
    found = checkpoint.find_checkpoint(config.out / "checkpoints", config.resume)
    accelerator = Accelerator()
    torch.manual_seed(config.seed)
    widths = (config.channels,) * 4
    network = AutoencoderTiny(
        latent_channels=config.latent_channels,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(1, 2, 2, 2),
        num_decoder_blocks=(3, 2, 2, 1),
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        parameter_groups([(config.lr, network.parameters())], network, 1e-4), betas=(0.9, 0.99)
    )
    ema = Ema(network, 0.998)
    step = 0
    if found is not None:
        tensors, state = checkpoint.load_checkpoint(found)
        frozen_difference(state["config"], jsonable(config), FREE)
        network.load_state_dict(tensors["model"])
        ema.tensors = tensors["ema"]
        checkpoint.load_optimizer_tensors(optimizer, tensors["optimizer"])
        step = state["step"]
    model, optimizer = accelerator.prepare(network, optimizer)
    log = RunLog(config.out, step)
    dump(config, config.out / "config.yaml")
    crops = Crops(files, config.crop, config.seed)
    loader = torch.utils.data.DataLoader(
        crops, batch_sampler=list(batches(len(crops), config.batch, config.seed, step, config.steps))
    )

    started, seen = time.monotonic(), 0
    for image in loader:
        # ---- one training step
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(step, config.steps, 200)
        image = image.to(accelerator.device, memory_format=torch.channels_last)
        draws = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        latents = network.encoder(image)
        noise = torch.randn(latents.shape, generator=draws).to(latents.device)
        loss = (
            reconstruction_loss(network.decoder(latents + config.noise * noise), image) + 1e-3 * latents.square().mean()
        )
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
            ema.update(network, step)
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seen += config.batch
        # ---- once in a while: log, save
        if step % config.log_every == 0 or step == config.steps:
            rate = seen / (time.monotonic() - started)
            log.write(step, loss=loss.item(), images_per_second=round(rate, 1))
            left = (config.steps - step) * config.batch / rate / 60
            print(
                f"step {step}/{config.steps}  loss {loss.item():.4f}  {rate:.1f} crops/s  {left:.0f} min left",
                flush=True,
            )
        if step % config.save_every == 0 or step == config.steps:
            tensors = {
                "model": network.state_dict(),
                "ema": ema.tensors,
                "optimizer": checkpoint.optimizer_tensors(optimizer),
            }
            checkpoint.save_checkpoint(config.out / "checkpoints", step, tensors, {"config": jsonable(config)})
    ema.load_into(network)
    numbers = _finish(network.eval(), files, config.out / "model", config.out / "grid.png")
    print("  ".join(f"{k} {v:.4f}" for k, v in numbers.items()), flush=True)
