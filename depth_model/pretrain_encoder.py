"""An encoder that knows what things are, from class labels: the offline stand-in for DINOv2 in the CPU recipe.

    python -m depth_model.pretrain_encoder --scenes runs/scenes --out runs/encoder --preset tiny

A linear classifier on each patch's last features learns the class that most of the patch's pixels have. The student
starts from these weights and stays close to the features, as it would with DINOv2's, but they know nothing beyond the
scenes: what the paper gains by DINOv2's semantics cannot be seen with them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Dinov2Model

from depth_model import checkpoint
from depth_model.config import dump, run_module
from depth_model.data.labeled import Pair, PairFolder
from depth_model.data.loader import micro_batches, to_device
from depth_model.data.order import batches, generator
from depth_model.data.sample import pixel_values, random_crop
from depth_model.errors import InputError
from depth_model.modeling import PATCH, PRESETS, build_model, initialise_encoder, initialise_patch_embedding
from depth_model.muon import Muon, muon_groups
from depth_model.run_log import RunLog
from depth_model.training import Ema, learning_rate_factor, make_accelerator, parameter_groups, resume_run, save_run
from depth_model.training import set_learning_rates as set_rates


@dataclass(frozen=True)
class Config:
    """Trains an encoder on the class labels of procedural scenes."""

    scenes: Path = Path("runs/scenes")
    """Folder written by `depth-control scenes`."""
    out: Path = Path("runs/encoder")
    """Run folder; the finished encoder is in `model/`, for --encoder."""
    preset: str = "tiny"
    """Size of the network that the encoder is for."""
    lower_bound: int = 0
    """Side of the square training crops in pixels, a multiple of 14; 0 for the preset's."""
    steps: int = 300
    """Optimiser steps in all."""
    batch: int = 32
    """Images in a batch."""
    lr: float = 3e-3
    """Peak learning rate of Muon."""
    seed: int = 0
    """Seed of weights, order and crops."""
    save_every: int = 100
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of the log."""
    resume: str = "auto"
    """auto, must or never."""


FREE = ("out", "save_every", "log_every", "resume")


class ClassSamples(torch.utils.data.Dataset):
    """Square crops with the class that most pixels of each patch have; keys as in `data.sample`."""

    def __init__(self, folder: PairFolder, size: int, seed: int):
        self.folder, self.size, self.seed = folder, size, seed

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, torch.Tensor]:
        _, epoch, index = key
        image, labels = self.folder.read(index).image, self.folder.labels(index)
        # Labels ride where the disparity would: both are taken from the nearest pixel.
        pair = Pair("", image, labels, np.ones_like(labels, dtype=bool))
        crop = random_crop(pair, self.size, self.size, 0.6, generator(self.seed, 8, epoch, index))
        patches = crop.disparity.reshape(self.size // PATCH, PATCH, self.size // PATCH, PATCH).swapaxes(1, 2)
        common = [np.bincount(patch).argmax() for patch in patches.reshape(-1, PATCH * PATCH)]
        return {"pixel_values": pixel_values(crop.image.astype(np.float32) / 255), "classes": torch.tensor(common)}


def main(config: Config) -> None:
    """Runs the stage.

    Raises:
        InputError: settings or a folder that cannot be used.
    """
    if config.preset not in PRESETS:
        raise InputError(f"--preset {config.preset}: choose one of {', '.join(PRESETS)}")
    folder = PairFolder(config.scenes, scenes=True)
    classes = 1 + max(label for row in folder.rows for label in row.get("classes", {"": 0}).values())
    if classes < 2:
        raise InputError(f"--scenes {config.scenes}: no class labels there; make them with depth-control scenes")
    found = checkpoint.find_checkpoint(config.out / "checkpoints", config.resume)
    samples = ClassSamples(folder, config.lower_bound or PRESETS[config.preset].lower_bound, config.seed)
    accelerator = make_accelerator(config.out)
    torch.manual_seed(config.seed)
    model = build_model(config.preset)
    initialise_encoder(model)
    if found is None:
        first = next(batches(len(samples), 128, config.seed, 0, 1))
        initialise_patch_embedding(model, [samples[key]["pixel_values"] for key in first])
    encoder = Dinov2Model(model.config.backbone_config)
    encoder.load_state_dict(model.backbone.state_dict())
    encoder.embeddings.mask_token.requires_grad_(False)
    network = nn.ModuleDict({"encoder": encoder, "classifier": nn.Linear(encoder.config.hidden_size, classes)})
    network = network.to(accelerator.device).train()
    optimizer = Muon(muon_groups(parameter_groups([(config.lr, network.parameters())], network, 0.02), network))
    ema = Ema(network, 0.0)
    step, _ = resume_run(found, config, FREE, network, ema, optimizer)
    log = RunLog(config.out, step)
    dump(config, config.out / "config.yaml")

    for batch in micro_batches(samples, config.batch, accelerator, config.seed, step, config.steps):
        set_rates(optimizer, learning_rate_factor(step, config.steps, warmup=20))
        batch = to_device(batch, accelerator.device)
        features = encoder(pixel_values=batch["pixel_values"]).last_hidden_state[:, 1:]
        scores, classes_seen = network["classifier"](features).flatten(0, 1), batch["classes"].flatten()
        loss = F.cross_entropy(scores, classes_seen)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % config.log_every == 0 or step == config.steps:
            accuracy = (scores.argmax(-1) == classes_seen).float().mean().item()
            log.progress(step, config.steps, config.batch, loss=loss.item(), accuracy=accuracy)
        if step % config.save_every == 0 or step == config.steps:
            save_run(config.out / "checkpoints", step, config, network, ema, optimizer)
    encoder.eval().save_pretrained(config.out / "model")
    log.plot(config.out / "curves.png")


if __name__ == "__main__":
    run_module(Config, main, "depth_model.pretrain_encoder")
