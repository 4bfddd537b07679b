"""Supervised training of a depth model on labelled images: the teacher of V1 section 3.1.

    depth-control train-teacher --scenes DIR --pairs DIR --out runs/teacher

The same command goes on from the newest checkpoint. What a step sees depends on (seed, step) alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import DepthAnythingForDepthEstimation

from depth_model import checkpoint
from depth_model.config import dump, run_module
from depth_model.data.labeled import LabeledSamples, PairFolder
from depth_model.data.order import batches
from depth_model.data.transforms import network_size
from depth_model.errors import InputError
from depth_model.estimator import DepthEstimator
from depth_model.losses import affine_invariant_loss, gradient_matching_loss
from depth_model.metrics import relative_depth_metrics
from depth_model.modeling import PRESETS, build_model, initialise_encoder, initialise_patch_embedding
from depth_model.muon import Muon, muon_groups
from depth_model.training import (
    Ema,
    RunLog,
    batch_share,
    learning_rate_factor,
    parameter_groups,
    resume_run,
    save_run,
)


@dataclass(frozen=True)
class Config:
    """Trains a depth model on RGB-D pairs and procedural scenes."""

    out: Path = Path("runs/teacher")
    """Run folder: config, log, curves, checkpoints and the finished model in `model/`."""
    preset: str = "small"
    """Size of the network: tiny, small, base, large or giant."""
    version: str = "v1"
    """Encoder blocks that feed the neck: v1 (the last four) or v2 (spread)."""
    init: Path | None = None
    """Model folder whose weights training starts from, of the same size; random weights when not given."""
    lower_bound: int = 0
    """Shortest side of the training crops in pixels, a multiple of 14; 0 for the preset's (518, tiny 112)."""
    pairs: tuple[Path, ...] = ()
    """Folders of RGB-D pairs."""
    pairs_source: str = ""
    """Take only pairs whose `source` in the index is this; empty for all."""
    pairs_holdout: int = 0
    """Pairs at the end of each folder that are kept out of training and, without --validation, measured on."""
    pairs_repeat: int = 1
    """How often each pair is shown for each time a scene is shown."""
    scenes: tuple[Path, ...] = ()
    """Folders written by `depth-control scenes`."""
    validation: Path | None = None
    """Folder of RGB-D pairs to measure on; its pairs must not be among the training pairs."""
    validation_count: int = 64
    """Pairs of the validation folder that are measured."""
    steps: int = 10000
    """Optimiser steps in all."""
    batch: int = 32
    """Images in a global batch, over all processes."""
    aspects: tuple[float, ...] = (1.0,)
    """Width / height of the crops; each batch takes one at random. The paper crops squares."""
    least_crop: float = 0.6
    """Smallest crop, as a share of the largest that fits; 0 to 1."""
    jitter: float = 0.0
    """Strength of brightness, contrast and saturation changes, 0 to 1. The paper mirrors labelled images only."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, as in the paper, or muon, which learns faster from random weights."""
    encoder_lr: float = 5e-6
    """Peak learning rate of the encoder. From random weights it needs about 5e-4, with muon 2e-3."""
    decoder_lr: float = 5e-5
    """Peak learning rate of neck and head."""
    warmup: int = 0
    """Steps of linear warm-up, before the linear decay to 0."""
    weight_decay: float = 0.01
    """AdamW weight decay of matrices."""
    gradient_weight: float = 0.0
    """Weight of the gradient matching loss: 0 in V1, 2 for V2's synthetic images."""
    clip: float = 1.0
    """Largest global gradient norm."""
    ema: float = 0.999
    """Decay of the averaged weights that become the released model."""
    seed: int = 0
    """Seed of the weights, the sample order and the augmentation."""
    workers: int = 0
    """Processes that read images; 0 reads in the training process."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of the log."""
    validate_every: int = 1000
    """Steps between validations."""
    resume: str = "auto"
    """auto: go on from the newest checkpoint, else start; must: go on or fail; never: start or fail."""


FREE = ("out", "workers", "save_every", "log_every", "validate_every", "validation", "validation_count", "resume")


def validate(estimator: DepthEstimator, folder: PairFolder, count: int, grid: Path) -> dict[str, float]:
    """AbsRel and delta1 of `estimator`, least-squares aligned in disparity per image, 0.001 to 10 m, mean over images.

    Pairs that cannot be read, or hold no depth in that range, are left out. Also writes `grid`: photo, truth and
    estimate of the first six.

    Returns:
        val_abs_rel and val_delta1 with val_images, how many were measured; nothing when there were none.
    """
    rows, tiles = [], []
    for i in range(min(count, len(folder))):
        try:
            pair = folder.read(i)
        except InputError as error:
            print(f"validation leaves out {error}", flush=True)
            continue
        if folder.rows[i]["kind"] != "depth" or not (pair.disparity > 0.1).any():
            continue
        values = estimator(Image.fromarray(pair.image)).values
        rows.append(relative_depth_metrics(values, *folder.depth(i)))
        if len(tiles) < 6:
            tile = np.concatenate([pair.image, _grey(pair.disparity), _grey(values)], 0)
            tiles.append(np.asarray(Image.fromarray(tile).resize((160, 160 * tile.shape[0] // tile.shape[1]))))
    if not rows:
        return {}
    height = min(tile.shape[0] for tile in tiles)
    Image.fromarray(np.concatenate([tile[:height] for tile in tiles], 1)).save(grid)
    means = {f"val_{name}": float(np.mean([row[name] for row in rows])) for name in ("abs_rel", "delta1")}
    return means | {"val_images": len(rows)}


def _grey(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    scaled = np.rint(255 * (values - low) / max(high - low, 1e-8)).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, 2)


def _folders(config: Config) -> tuple[list[tuple[PairFolder, int]], PairFolder | None]:
    """The folders to train on, each with its repeats, and the one to measure on."""
    if config.pairs_holdout < 0 or config.pairs_repeat < 1:
        raise InputError("--pairs-holdout must be at least 0 and --pairs-repeat at least 1")
    chosen = [PairFolder(path, source=config.pairs_source) for path in config.pairs]
    for folder in chosen:
        if config.pairs_holdout >= len(folder):
            raise InputError(
                f"--pairs-holdout {config.pairs_holdout} leaves nothing of the {len(folder)} pairs of {folder.folder}"
            )
    folders = [(folder.part(0, len(folder) - config.pairs_holdout), config.pairs_repeat) for folder in chosen]
    folders += [(PairFolder(path, scenes=True), 1) for path in config.scenes]
    if not folders:
        raise InputError("nothing to train on: give --pairs DIR or --scenes DIR")
    if config.validation:
        return folders, PairFolder(config.validation)
    held_out = [folder.part(len(folder) - config.pairs_holdout, len(folder)) for folder in chosen]
    return folders, held_out[0] if held_out and config.pairs_holdout else None


def _network(config: Config, samples: LabeledSamples) -> DepthAnythingForDepthEstimation:
    """The network with the weights that training starts from."""
    torch.manual_seed(config.seed)
    network = build_model(config.preset, config.version)
    if config.init is None:
        initialise_encoder(network)
        first = batches(len(samples), 256, config.seed, 0, 1)
        initialise_patch_embedding(network, [samples[key]["pixel_values"] for key in next(first)])
    else:
        weights = DepthEstimator.from_pretrained(config.init, device="cpu").model.state_dict()
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(f"--init {config.init}: not a model of --preset {config.preset}") from error
    # Never reached by the forward pass: they would stay out of every gradient.
    network.backbone.embeddings.mask_token.requires_grad_(False)
    network.neck.fusion_stage.layers[0].residual_layer1.requires_grad_(False)
    return network.train()


def _optimizer(config: Config, network: DepthAnythingForDepthEstimation) -> torch.optim.Optimizer:
    decoder = [*network.neck.parameters(), *network.head.parameters()]
    rates = [(config.encoder_lr, network.backbone.parameters()), (config.decoder_lr, decoder)]
    groups = parameter_groups(rates, network, config.weight_decay)
    return Muon(muon_groups(groups, network)) if config.optimizer == "muon" else torch.optim.AdamW(groups)


def _check(config: Config) -> None:
    if config.preset not in PRESETS:
        raise InputError(f"--preset {config.preset}: choose one of {', '.join(PRESETS)}")
    for name in ("steps", "batch", "save_every", "log_every", "validate_every"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}")
    if not config.aspects or not all(0.25 <= aspect <= 4 for aspect in config.aspects):
        raise InputError(f"--aspects must be ratios between 0.25 and 4, got {config.aspects}")
    if not 0 < config.least_crop <= 1:
        raise InputError(f"--least-crop must be above 0 and at most 1, got {config.least_crop}")


def main(config: Config) -> None:
    """Runs the stage.

    Raises:
        InputError: settings or folders that cannot be used.
    """
    _check(config)
    folders, measured = _folders(config)
    accelerator = Accelerator()
    batch_share(config.batch, accelerator)
    found = checkpoint.find_checkpoint(config.out / "checkpoints", config.resume)
    lower_bound = config.lower_bound or PRESETS[config.preset].lower_bound
    sizes = [network_size(round(1000 / a), 1000, lower_bound) for a in config.aspects]
    samples = LabeledSamples(folders, sizes, config.seed, config.least_crop, config.jitter)
    network = _network(config, samples).to(accelerator.device, memory_format=torch.channels_last)
    optimizer = _optimizer(config, network)
    ema = Ema(network, config.ema)
    step = resume_run(found, config, FREE, network, ema, optimizer)
    model, optimizer = accelerator.prepare(network, optimizer)
    if accelerator.is_main_process:
        log = RunLog(config.out, step)
        dump(config, config.out / "config.yaml")
    share = accelerator.process_index, accelerator.num_processes
    sampler = list(batches(len(samples), config.batch, config.seed, step, config.steps, *share))
    loader = torch.utils.data.DataLoader(samples, batch_sampler=sampler, num_workers=config.workers)

    problems: set[str] = set()
    for batch in loader:
        # ---- one training step
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(step, config.steps, config.warmup)
        pixels, disparity, valid = (batch[k].to(accelerator.device) for k in ("pixel_values", "disparity", "valid"))
        with accelerator.autocast():
            prediction = model(pixel_values=pixels.contiguous(memory_format=torch.channels_last)).predicted_depth
        prediction = prediction.float()
        loss = affine_invariant_loss(prediction, disparity, valid)
        if config.gradient_weight:
            loss = loss + config.gradient_weight * gradient_matching_loss(prediction, disparity, valid)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
        if torch.isfinite(norm):
            optimizer.step()
            ema.update(network, step)
        optimizer.zero_grad(set_to_none=True)
        step += 1
        problems.update(filter(None, batch["problem"]))
        # ---- once in a while: log, validate, save
        last = step == config.steps
        if not accelerator.is_main_process:
            continue
        if step % config.log_every == 0 or last:
            log.progress(step, config.steps, config.batch, loss=loss.item(), gradient_norm=norm.item())
        if measured is not None and (step % config.validate_every == 0 or last):
            estimator = _release(config, network, ema)
            numbers = validate(estimator, measured, config.validation_count, config.out / "grid.png")
            log.write(step, **numbers)
            log.plot(config.out / "curves.png")
            print("  ".join(f"{k} {v:.4g}" for k, v in numbers.items()), flush=True)
        if step % config.save_every == 0 or last:
            save_run(config.out / "checkpoints", step, config, network, ema, optimizer)
    if accelerator.is_main_process:
        _release(config, network, ema)
        log.plot(config.out / "curves.png")
        for problem in sorted(problems):
            print(f"skipped {problem}", flush=True)


def _release(config: Config, network: DepthAnythingForDepthEstimation, ema: Ema) -> DepthEstimator:
    """Writes the averaged weights as the model folder of the run."""
    averaged = build_model(config.preset, config.version)
    averaged.load_state_dict(network.state_dict())
    ema.load_into(averaged)
    estimator = DepthEstimator(averaged, device=next(network.parameters()).device)
    estimator.save_pretrained(config.out / "model")
    return estimator


if __name__ == "__main__":
    run_module(Config, main, "depth_model.train_teacher")
