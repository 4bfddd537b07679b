"""Training of a depth ControlNet on a frozen Stable Diffusion, on a cache that `prepare-controlnet` made.

    depth-control train-controlnet --base sd15 --cache runs/cache --validation photos-held-out --out runs/controlnet
    accelerate launch -m train_controlnet --config controlnet.yaml

The same command goes on from the newest checkpoint. What a step sees depends on (seed, step) alone, not on the number
of processes. Autoencoder and text encoders are in memory only where there is validation.
"""

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from depth_control.presets import base_folder
from depth_model import checkpoint
from depth_model.config import dump, run_module
from depth_model.data.loader import to_device
from depth_model.errors import InputError
from depth_model.run_log import RunLog
from depth_model.training import (
    Ema,
    averaged,
    batch_share,
    learning_rate_factor,
    make_accelerator,
    parameter_groups,
    resume_run,
    save_run,
    set_learning_rates,
)
from depth_model.watch import TERMINATED, Watch
from train_controlnet.cache import INDEX, Cache
from train_controlnet.diffusion import min_snr_loss, noised, predict
from train_controlnet.encoders import TEXT_PARTS, fingerprint
from train_controlnet.networks import compile_blocks, load_unet, pipeline_range, start_controlnet
from train_controlnet.release import Best, push, release
from train_controlnet.validation import Validator


@dataclass(frozen=True)
class Config:
    """Trains a depth ControlNet on a frozen base model."""

    base: str = "sd15"
    """Base model, the one that the cache was prepared with: embedded, sd15, sdxl, a folder or a Hub id."""
    cache: Path = Path("runs/cache")
    """Folder written by `depth-control prepare-controlnet --base`."""
    out: Path = Path("runs/controlnet")
    """Run folder; the finished ControlNet is in `model/`."""
    controlnet: str | None = None
    """ControlNet to go on from: a folder or a Hub id."""
    from_base: bool = False
    """Start from the base folder's own ControlNet where it has one, else from a copy of its UNet's encoder."""
    open_condition: bool = False
    """Start the copy with an embedding that lets the depth through at once. Small networks need it."""
    caption_dropout: float = 0.1
    """Share of the captions replaced by the empty one, drawn anew each step."""
    steps: int = 10000
    """Optimiser steps in all."""
    batch: int = 32
    """Images in a global batch, over all processes."""
    accumulate: int = 1
    """Parts in which each process computes its share of a batch, to save memory."""
    lr: float = 1e-5
    """Peak learning rate. The packaged base, which is small, takes 3e-4."""
    warmup: int = 100
    """Steps of linear warm-up."""
    cooldown: float = 0.3
    """Share of the steps, at the end, over which the learning rate falls to 0."""
    weight_decay: float = 0.01
    """Weight decay of matrices."""
    clip: float = 1.0
    """Largest global gradient norm."""
    timestep_shift: float = 1.0
    """Above 1, noisy steps are drawn more often: layout arises there, texture in the others."""
    snr_gamma: float = 0.0
    """Min-SNR weighting, 5 in its paper; 0 turns it off. It takes its weight from the noisiest steps."""
    ema: float = 0.0
    """Decay of averaged weights that are measured and released, such as 0.999; 0 for none. They take memory."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; the ControlNet's own weights stay in float32."""
    gradient_checkpointing: bool = False
    """Compute activations twice to save memory, in the ControlNet and in the UNet's decoder."""
    compile: bool = False
    """Compile the networks' blocks with torch.compile: a minute or more at the start."""
    seed: int = 1
    """Seed of order, crops, noise and validation."""
    workers: int = 0
    """Processes that read the cache; 0 reads in the training process."""
    validation: Path | None = None
    """Folder of images with captions, in no training set, for pictures and their fidelity."""
    validation_count: int = 8
    """Images of it, evenly spread."""
    validation_steps: int = 20
    """Denoising steps of each picture."""
    guidance_scale: float = 7.5
    """Classifier-free guidance of the pictures; 1 for the packaged base."""
    depth_model: str | None = None
    """Estimator of the validation's conditions; by default the cache's first."""
    judge: str | None = None
    """Estimator that measures the pictures; by default the one of the conditions. Another one is the fairer judge."""
    validate_every: int = 500
    """Steps between validations."""
    proxy_every: int = 100
    """Steps between one-step measurements of fidelity, which are cheap."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of the log."""
    tracker: str = ""
    """Where numbers go beside log.jsonl: tensorboard, or another tracker of Accelerate."""
    peer_timeout: float = 600.0
    """Seconds after which a process that waits for another one gives up; longer than a validation."""
    push_to_hub: str = ""
    """Repository ORG/NAME on the Hugging Face Hub that gets the finished folder."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: go on from the newest checkpoint, else start; must: go on or fail; never: start or fail."""


FREE = (
    *("out", "cache", "accumulate", "workers", "validation", "validation_count", "validation_steps", "guidance_scale"),
    *("depth_model", "judge", "validate_every", "proxy_every", "save_every", "log_every", "tracker", "peer_timeout"),
    *("gradient_checkpointing", "compile", "push_to_hub", "resume"),
)
"""Settings that may change when a run goes on: they do not touch what is learnt."""


def _check(config: Config) -> None:
    for name in ("steps", "batch", "accumulate", "validate_every", "proxy_every", "save_every", "log_every"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}")
    if config.validation_count < 1 or config.validation_steps < 1:
        raise InputError("--validation-count and --validation-steps must be at least 1")
    if not 0 <= config.caption_dropout <= 1:
        raise InputError(f"--caption-dropout must be from 0 to 1, got {config.caption_dropout}")
    if config.push_to_hub and config.push_to_hub.count("/") != 1:
        raise InputError(f"--push-to-hub {config.push_to_hub}: must be ORG/NAME")


def _check_base(config: Config, folder: Path, cache: Cache) -> None:
    """Refuses a base whose autoencoder or text encoders are not those of the cache."""
    again = f"prepare it again with --base {config.base}, or train on the base {cache.about.base or 'it was made with'}"
    if not cache.about.text:
        raise InputError(f"--cache {config.cache} has no text embeddings: prepare it again with --base {config.base}")
    for name, parts, found in (
        ("autoencoder", ("vae",), cache.about.vae),
        ("text encoders", TEXT_PARTS, cache.about.text),
    ):
        own = fingerprint(folder / parts[0]) if len(parts) == 1 else fingerprint(folder, parts)
        if found.partition(".")[0] != own:
            raise InputError(f"--cache {config.cache} was made with other {name} than those of {config.base}: {again}")


class Batches(Dataset):
    """This process's part of each step's batch, with its noise: a pure function of (seed, step)."""

    def __init__(self, config: Config, cache: Cache, scheduler: Any, share: slice, limits: tuple[float, float]):
        self.config, self.cache, self.scheduler, self.share, self.limits = config, cache, scheduler, share, limits

    def __getitem__(self, step: int) -> dict:
        config, (low, high) = self.config, self.limits
        batch = self.cache.batch(step, config.batch, self.share, config.caption_dropout)
        draws = config.seed, step, config.timestep_shift, config.batch, self.share
        noisy, timesteps, target = noised(batch.pop("latents"), self.scheduler, *draws)
        controls = batch["controls"] if (low, high) == (0, 1) else low + (high - low) * batch["controls"]
        return batch | {"noisy": noisy, "timesteps": timesteps, "target": target, "controls": controls}


def _loader(samples: Batches, first: int, last: int, workers: int, accelerator: Accelerator) -> Iterator[dict]:
    pinned = accelerator.device.type == "cuda"
    return iter(
        DataLoader(samples, batch_size=None, sampler=range(first, last), num_workers=workers, pin_memory=pinned)
    )


def _parts(batch: dict, count: int) -> Iterator[dict]:
    """The batch in `count` equal parts."""
    tensors = {name: tensor.chunk(count) for name, tensor in batch.items() if torch.is_tensor(tensor)}
    return ({name: chunks[i] for name, chunks in tensors.items()} for i in range(count))


def main(config: Config) -> None:
    """Runs the stage.

    Raises:
        InputError: settings, a cache or models that cannot be used or do not fit each other.
        RunError: a full disk, a lost process, or gradients that stay NaN or infinite.
    """
    _check(config)
    cache, folder = Cache(config.cache, config.seed), base_folder(str(config.base))
    _check_base(config, folder, cache)
    found = checkpoint.find_checkpoint(config.out / "checkpoints", config.resume)
    accelerator = make_accelerator(config.out, config.precision, config.tracker, config.peer_timeout)
    device, share = accelerator.device, batch_share(config.batch, accelerator)
    if config.batch % (accelerator.num_processes * config.accumulate):
        raise InputError(f"--batch {config.batch} does not divide by the processes times --accumulate")
    torch.manual_seed(config.seed)
    unet, scheduler = load_unet(folder)
    controlnet = start_controlnet(folder, unet, config.controlnet, config.from_base, config.open_condition)
    weights = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    unet.to(device, weights, memory_format=torch.channels_last)
    network = controlnet.to(device, memory_format=torch.channels_last).train()
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()
        unet.enable_gradient_checkpointing()
    groups = parameter_groups([(config.lr, network.parameters())], network, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, fused=device.type == "cuda")
    ema = Ema(network, config.ema)
    step, state = resume_run(found, config, FREE, network, ema, optimizer)
    data = hashlib.sha256((config.cache / INDEX).read_bytes()).hexdigest()
    if state.get("data", data) != data:
        raise InputError(
            f"--cache {config.cache} is not what the run was started with; prepare that again to go on, or give "
            "another --out to start a new run"
        )
    if config.compile:
        compile_blocks(unet, network)
    model, optimizer = accelerator.prepare(network, optimizer)
    if accelerator.scaler is not None and "scaler" in state:
        accelerator.scaler.load_state_dict(state["scaler"])
    samples = Batches(config, cache, scheduler, share, pipeline_range(folder))
    loader = _loader(samples, step, config.steps, config.workers, accelerator)
    running, best = state.get("running"), Best(config.out, **state.get("best", {}))
    validator = None
    if accelerator.is_main_process:
        log = RunLog(config.out, step)
        dump(config, config.out / "config.yaml")
        if config.validation is not None and step < config.steps:
            maps = config.depth_model or next((m for m in cache.about.depth_models if m != "exact"), "embedded")
            validator = Validator(config, folder, network, scheduler, unet, maps, accelerator.autocast)
            if step == 0:
                log.write(0, proxy_structure=validator.proxy())
    accelerator.init_trackers("train_controlnet")

    with Watch(config.out, accelerator, state.get("skipped")) as watch:
        while step < config.steps and not watch.stop:
            # ---- one training step
            set_learning_rates(optimizer, learning_rate_factor(step, config.steps, config.warmup, config.cooldown))
            batch = to_device(watch.saw(next(loader)), device)
            total = torch.zeros((), device=device)
            for i, part in enumerate(_parts(batch, config.accumulate), 1):
                with accelerator.no_sync(model) if i < config.accumulate else nullcontext():
                    with accelerator.autocast():
                        prediction = predict(unet, model, part, part["noisy"].to(weights), part["timesteps"])
                    loss = min_snr_loss(prediction, part["target"], scheduler, part["timesteps"], config.snr_gamma)
                    accelerator.backward(loss / config.accumulate)
                total += loss.detach() / config.accumulate
            norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
            value = watch.exchange(total)
            running = value if running is None else 0.98 * running + 0.02 * value
            taken = watch.finite(norm)
            if taken or accelerator.scaler is not None:  # the scaler itself leaves out the step, and scales down
                optimizer.step()
            if taken:
                ema.update(network, step)
            optimizer.zero_grad(set_to_none=True)
            step += 1
            # ---- once in a while: log, measure, save
            last = step == config.steps
            every = config.log_every, config.proxy_every, config.validate_every, config.save_every
            due = [step % steps == 0 or last for steps in every]
            if not (any(due) or watch.stop) or not accelerator.is_main_process:
                continue
            if validator is not None and (due[1] or due[2]):
                with averaged(network, ema):
                    numbers = {"proxy_structure": validator.proxy()}
                    if due[2]:
                        numbers |= validator.measure(step)
                        best.offer(step, numbers, network)
                log.write(step, **numbers)
                accelerator.log(numbers, step)
            if due[0]:
                log.progress(step, config.steps, config.batch, loss=running, gradient_norm=norm.item())
                accelerator.log(log.rows[-1], step)
            if due[2] or due[3]:
                log.plot(config.out / "curves.png")
            if due[3] or watch.stop:
                more = {"running": running, "best": best.state(), "data": data}
                more |= {"scaler": accelerator.scaler.state_dict()} if accelerator.scaler is not None else {}
                save_run(config.out / "checkpoints", step, config, network, ema, optimizer, more)
    accelerator.end_training()
    if watch.stop and step < config.steps:
        print(f"stopped by SIGTERM after step {step}, which is saved; the same command goes on", flush=True)
        raise SystemExit(TERMINATED)
    if accelerator.is_main_process:
        release(config, network, ema, best, cache, log.rows)
        if config.push_to_hub:
            push(config.out / "model", config.push_to_hub)


if __name__ == "__main__":
    run_module(Config, main, "train_controlnet")
