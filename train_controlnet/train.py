"""Training of a depth ControlNet on a frozen base, on conditions that our estimator made.

    depth-control train-controlnet --base runs/base/model --cache runs/cache --out runs/controlnet

The same command goes on from the newest checkpoint. What a step sees depends on (seed, step) alone.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from torch import nn

from depth_model import checkpoint
from depth_model.config import dump
from depth_model.data.order import generator
from depth_model.errors import InputError
from depth_model.run_log import RunLog
from depth_model.training import Ema, learning_rate_factor, parameter_groups, resume_run, save_run
from train_controlnet.diffusion import min_snr_loss, noised
from train_controlnet.prepare import Cache


@dataclass(frozen=True)
class Config:
    """Trains a depth ControlNet on a frozen base model."""

    base: Path = Path("runs/base/model")
    """Pipeline folder of the base, with UNet, text encoder, tokenizer, scheduler and perhaps a ControlNet."""
    cache: Path = Path("runs/cache")
    """Folder written by `depth-control prepare-controlnet` with the base's autoencoder."""
    out: Path = Path("runs/controlnet")
    """Run folder; the finished ControlNet is in `model/`."""
    from_base: bool = True
    """Start from the base's own ControlNet where it has one, else from a copy of its UNet's encoder."""
    caption_dropout: float = 0.2
    """Share of the captions replaced by the empty one, drawn anew each step."""
    steps: int = 2000
    """Optimiser steps in all."""
    batch: int = 16
    """Images in a batch."""
    lr: float = 3e-4
    """Peak learning rate; linear decay."""
    warmup: int = 50
    """Steps of linear warm-up."""
    snr_gamma: float = 0.0
    """Min-SNR weighting; 0 turns it off. It takes its weight from the noisiest steps, where the layout arises."""
    ema: float = 0.998
    """Decay of the averaged weights that become the released model."""
    seed: int = 1
    """Seed of order and noise."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of the log."""
    resume: str = "auto"
    """auto, must or never."""


FREE = ("out", "save_every", "log_every", "resume")


def load_base(folder: Path, from_base: bool) -> tuple[StableDiffusionControlNetPipeline, ControlNetModel]:
    """The frozen base in float32, and the ControlNet that training starts from.

    Raises:
        InputError: not a pipeline folder.
    """
    if not (folder / "model_index.json").is_file():
        raise InputError(f"--base {folder}: no model_index.json there; give the folder of a diffusers pipeline")
    own = folder / "controlnet"
    extra = {} if (own / "config.json").is_file() else {"controlnet": None}
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, safety_checker=None, requires_safety_checker=False, **extra
    )
    controlnet = pipeline.controlnet if from_base and not extra else ControlNetModel.from_unet(pipeline.unet)
    return pipeline, controlnet


def main(config: Config) -> None:
    """Runs the stage.

    Raises:
        InputError: a cache or folder that cannot be used.
    """
    cache = Cache(config.cache, config.seed)
    found = checkpoint.find_checkpoint(config.out / "checkpoints", config.resume)
    accelerator = Accelerator()
    torch.manual_seed(config.seed)
    pipeline, controlnet = load_base(config.base, config.from_base)
    if cache.latent_channels != pipeline.unet.config.in_channels:
        raise InputError(
            f"--cache {config.cache} has latents of {cache.latent_channels} channels, the base takes "
            f"{pipeline.unet.config.in_channels}: prepare the cache with the base's autoencoder"
        )
    tokenizer, scheduler = pipeline.tokenizer, pipeline.scheduler
    frozen = nn.ModuleList([pipeline.unet, pipeline.text_encoder]).requires_grad_(False)
    frozen.to(accelerator.device, memory_format=torch.channels_last).eval()
    network = controlnet.to(accelerator.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        parameter_groups([(config.lr, network.parameters())], network, 0.01), betas=(0.9, 0.99)
    )
    ema = Ema(network, config.ema)
    step, _ = resume_run(found, config, FREE, network, ema, optimizer)
    log = RunLog(config.out, step)
    dump(config, config.out / "config.yaml")

    # The shown loss is a running mean; its last value stands in the log.
    running = log.rows[-1]["loss"] if log.rows else None
    while step < config.steps:
        # ---- one training step
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(step, config.steps, config.warmup)
        rng = generator(config.seed, 5, step)
        latents, controls, captions = cache.batch(step, config.batch)
        captions = ["" if rng.random() < config.caption_dropout else caption for caption in captions]
        noisy, timesteps, target = noised(latents.to(accelerator.device), scheduler, config.seed, step)
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with accelerator.autocast():
            with torch.no_grad():
                text = pipeline.text_encoder(ids.to(accelerator.device))[0]
            condition = controls.to(accelerator.device)
            down, middle = network(noisy, timesteps, text, condition, return_dict=False)
            prediction = pipeline.unet(
                noisy, timesteps, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample
        loss = min_snr_loss(prediction, target, scheduler, timesteps, config.snr_gamma)
        accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
            ema.update(network, step)
        optimizer.zero_grad(set_to_none=True)
        step += 1
        value = loss.item()
        running = value if running is None else 0.98 * running + 0.02 * value
        # ---- once in a while: log, save
        if step % config.log_every == 0 or step == config.steps:
            log.progress(step, config.steps, config.batch, loss=running)
        if step % config.save_every == 0 or step == config.steps:
            save_run(config.out / "checkpoints", step, config, network, ema, optimizer)
            log.plot(config.out / "curves.png")
    ema.load_into(network)
    network.half().eval().save_pretrained(config.out / "model")
