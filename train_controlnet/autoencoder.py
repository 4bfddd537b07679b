"""Training of the small autoencoder (diffusers' `AutoencoderTiny`) that the embedded base model draws through.

    depth-control train-autoencoder --images runs/scenes --out runs/autoencoder

The encoder is not trained: it projects each 8 x 8 patch on the principal components of the images' patches, written as
the strided convolutions of the stock class. That is the best linear code there is, it is known after a minute, and the
base can learn on its latents while the decoder is still training. The decoder learns from latents with some noise, so
that it forgives the errors of a small diffusion model.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from PIL import Image
from torch import Tensor, nn

from depth_model import checkpoint
from depth_model.config import dump
from depth_model.data.order import batches, generator
from depth_model.errors import InputError
from depth_model.images import list_images, open_image
from depth_model.muon import Muon, muon_groups
from depth_model.run_log import RunLog
from depth_model.training import Ema, learning_rate_factor, parameter_groups, resume_run, save_run


@dataclass(frozen=True)
class Config:
    """Trains a small autoencoder on a folder of images."""

    images: Path = Path("runs/scenes")
    """Folder of images."""
    out: Path = Path("runs/autoencoder")
    """Run folder; the finished model is in `model/`."""
    channels: int = 32
    """Channels of the decoder's hidden layers."""
    latent_channels: int = 16
    """Principal components of each 8 x 8 patch that are kept, at most 48."""
    whitening: float = 0.5
    """Components are divided by their standard deviation to this power: 0 keeps the image's spectrum, 1 flattens it."""
    crop: int = 64
    """Side of the random training crops, pixels."""
    noise: float = 0.05
    """Standard deviation of the noise added to latents before decoding."""
    steps: int = 2400
    """Optimiser steps in all."""
    batch: int = 16
    """Crops in a batch."""
    lr: float = 5e-3
    """Peak learning rate of Muon; linear decay."""
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


@torch.no_grad()
def principal_encoder(model: AutoencoderTiny, images: list[Tensor], whitening: float) -> None:
    """Writes the projection of 8 x 8 patches on their principal components into the encoder of `model`, in place.

    The encoder has no residual blocks, so it is linear: a 3 x 3 layer that copies the colours, three of stride 2, of
    which the first two gather 2 x 2 pixels into channels and the third projects, and one that keeps the components and
    centres them.

    Args:
        images: [1, 3, H, W] in [-1, 1], sides multiples of 8. whitening: see `Config`.
    """
    first, *gather, project, last = model.encoder.layers
    for layer in (first, *gather, project, last):
        layer.weight.zero_()
    for colour in range(3):
        first.weight[colour, colour, 1, 1] = 1
    first.bias.zero_()
    for layer, channels in zip(gather, (3, 12), strict=True):
        for i, (dy, dx, channel) in enumerate(product(range(2), range(2), range(channels))):
            layer.weight[i, channel, 1 + dy, 1 + dx] = 1
    quarters = [layer_stack(image, (first, *gather)) for image in images]
    patches = torch.cat([F.pixel_unshuffle(q, 2).flatten(2).mT.flatten(0, 1) for q in quarters]).double()
    mean = patches.mean(0)
    variance, basis = torch.linalg.eigh((patches - mean).mT @ (patches - mean) / len(patches))
    kept = torch.arange(len(mean) - 1, len(mean) - 1 - last.out_channels, -1)
    basis = basis[:, kept] / variance[kept].clamp(min=1e-12).sqrt() ** whitening
    # A third of a unit of spread: hardly any latent reaches the decoder's soft clamp at 3.
    basis = 0.35 * basis / ((patches - mean) @ basis).std()
    for i, (channel, dy, dx) in enumerate(product(range(48), range(2), range(2))):
        project.weight[: last.out_channels, channel, 1 + dy, 1 + dx] = basis[i].float()
    for channel in range(last.out_channels):
        last.weight[channel, channel, 1, 1] = 1
    last.bias.copy_(-(mean @ basis))
    model.encoder.requires_grad_(False)


def layer_stack(image: Tensor, layers: tuple[nn.Module, ...]) -> Tensor:
    """The image [1, 3, H, W] in [-1, 1], moved to [0, 1] as the stock encoder does, through some of its layers."""
    result = image.add(1).div(2)
    for layer in layers:
        result = layer(result)
    return result


@torch.no_grad()
def initialise_decoder(model: AutoencoderTiny) -> None:
    """Draws decoder weights under which signals keep their size, in place; residual blocks start as the identity.

    torch's default shrinks signals at every layer, and a stack as deep as this without normalisation then learns
    nothing but blurred colours for thousands of steps.
    """
    for module in model.decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.decoder.modules():
        if isinstance(module, AutoencoderTinyBlock):
            nn.init.zeros_(module.conv[-1].weight)


def reconstruction_loss(result: Tensor, image: Tensor) -> Tensor:
    """Mean absolute error of the images and of their horizontal and vertical differences; [B, 3, H, W] each."""
    error = result - image
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + 0.5 * edges


def _pixels(image: Image.Image) -> Tensor:
    """[1, 3, H, W] in [-1, 1], cropped to sides that are multiples of 8."""
    array = np.array(image)[: image.height // 8 * 8, : image.width // 8 * 8]
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def _finish(model: AutoencoderTiny, files: list[Path], folder: Path, grid: Path) -> dict[str, float]:
    """Measures the scale of the latents and the PSNR on up to 64 whole images, saves the model and a grid of six."""
    images = [_pixels(open_image(file))[0] for file in files[:64]]
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
    network = AutoencoderTiny(
        latent_channels=config.latent_channels,
        encoder_block_out_channels=(48,) * 4,
        decoder_block_out_channels=(config.channels,) * 4,
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=(3, 3, 2, 1),
    )
    initialise_decoder(network)
    if found is None:
        config.out.mkdir(parents=True, exist_ok=True)
        chosen = files[:: max(1, len(files) // 500)]
        principal_encoder(network, [_pixels(open_image(file)) for file in chosen], config.whitening)
        _finish(network, files, config.out / "untrained", config.out / "grid.png")
    network.encoder.requires_grad_(False)
    network.to(accelerator.device, memory_format=torch.channels_last)
    optimizer = Muon(muon_groups(parameter_groups([(config.lr, network.decoder.parameters())], network, 1e-4), network))
    ema = Ema(network, 0.998)
    step, _ = resume_run(found, config, FREE, network, ema, optimizer)
    model, optimizer = accelerator.prepare(network, optimizer)
    log = RunLog(config.out, step)
    dump(config, config.out / "config.yaml")
    crops = Crops(files, config.crop, config.seed)
    loader = torch.utils.data.DataLoader(
        crops, batch_sampler=list(batches(len(crops), config.batch, config.seed, step, config.steps))
    )

    for image in loader:
        # ---- one training step
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(step, config.steps, 200)
        image = image.to(accelerator.device, memory_format=torch.channels_last)
        draws = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        latents = network.encoder(image)
        noise = torch.randn(latents.shape, generator=draws).to(latents.device)
        loss = reconstruction_loss(network.decoder(latents + config.noise * noise), image)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
            ema.update(network, step)
        optimizer.zero_grad(set_to_none=True)
        step += 1
        # ---- once in a while: log, save
        if step % config.log_every == 0 or step == config.steps:
            log.progress(step, config.steps, config.batch, loss=loss.item())
        if step % config.save_every == 0 or step == config.steps:
            save_run(config.out / "checkpoints", step, config, network, ema, optimizer)
    ema.load_into(network)
    numbers = _finish(network.cpu().eval(), files, config.out / "model", config.out / "grid.png")
    print(f"psnr {numbers['psnr']:.2f} dB, mean over {min(64, len(files))} training images, whole", flush=True)
