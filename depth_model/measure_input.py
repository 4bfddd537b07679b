"""Does reading keep up with training? Steps per second with the real loader against steps on one batch in memory.

depth-control measure-input --preset small --pairs path/to/pairs --batch 2 --workers 1
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from depth_model.build import build_network, build_optimizer, labeled_samples, labeled_sets
from depth_model.config import run_module
from depth_model.data.loader import micro_batches, to_device
from depth_model.errors import InputError
from depth_model.losses import affine_invariant_loss
from depth_model.training import make_accelerator
from depth_model.training_config import TrainingConfig, check


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Measures the input side of `train-teacher`, in turns within one run; nothing is trained or written."""

    out: Path = Path("runs/measure")
    """Not used."""
    batch: int = 2
    """Images in a batch."""
    steps: int = 5
    """Steps in each turn."""
    turns: int = 3
    """Turns of each kind."""


def main(config: Config) -> float:
    """Runs the measurement and returns the ratio, 1 when reading costs nothing.

    Raises:
        InputError: settings or folders that cannot be used.
    """
    check(config, ("batch", "turns"))
    sets, _ = labeled_sets(config)
    if not sets:
        raise InputError("nothing to read: give --labeled NAME=DIR, --pairs DIR or --scenes DIR")
    accelerator = make_accelerator(config.out, config.precision)
    network = build_network(config).to(accelerator.device, memory_format=torch.channels_last)
    optimizer = build_optimizer(config, network)
    total = 2 + config.turns * config.steps
    loader = micro_batches(
        labeled_samples(config, sets), config.batch, accelerator, config.seed, 0, total, 1, config.workers
    )

    def train(source: Callable[[], dict]) -> None:
        batch = to_device(source(), accelerator.device)
        with accelerator.autocast():
            prediction = network(pixel_values=batch["pixel_values"]).predicted_depth.float()
        accelerator.backward(affine_invariant_loss(prediction, batch["disparity"], batch["valid"]))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def timed(source: Callable[[], dict]) -> float:
        began = time.perf_counter()
        for _ in range(config.steps):
            train(source)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    cached = next(loader)
    train(lambda: cached)
    train(lambda: next(loader))
    kept, read = 0.0, 0.0
    for _ in range(config.turns):
        kept += timed(lambda: cached)
        read += timed(lambda: next(loader))
    steps = config.turns * config.steps
    print(
        f"{steps / kept:.3f} steps/s on one batch in memory, {steps / read:.3f} with the loader: {kept / read:.3f} "
        f"({steps} steps each, in {config.turns} turns, batches of {config.batch}, {config.workers} workers)"
    )
    return kept / read


if __name__ == "__main__":
    run_module(Config, main, "depth_model.measure_input")
