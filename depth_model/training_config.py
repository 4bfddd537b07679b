"""The settings that the teacher's and the student's training share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from depth_model.errors import InputError
from depth_model.modeling import PATCH, PRESETS


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Training of a depth model on labelled images."""

    out: Path
    """Run folder: config, log, curves, checkpoints and the finished model in `model/`."""
    preset: str = "small"
    """Size of the network: tiny, small, base, large or giant."""
    version: Literal["v1", "v2"] = "v1"
    """Encoder blocks that feed the neck: v1 (the last four) or v2 (spread)."""
    encoder: str | None = None
    """DINOv2 whose weights the encoder starts from: a transformers folder or a Hub id such as facebook/dinov2-small."""
    init: Path | None = None
    """Depth model folder whose weights training starts from, of the same size; instead of `encoder`."""
    lower_bound: int = 0
    """Shortest side of the training crops in pixels, a multiple of 14; 0 for the preset's (518, tiny 112)."""
    labeled: tuple[str, ...] = ()
    """Labelled sets as NAME=DIR, such as tartanair=data/TartanAir; `depth_model.data.readers` knows the names."""
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
    validation: tuple[Path, ...] = ()
    """Folders of RGB-D pairs to measure on; their pairs must not be among the training pairs."""
    validation_count: int = 64
    """Pairs of each validation folder that are measured."""
    steps: int = 10000
    """Optimiser steps in all."""
    accumulate: int = 1
    """Parts in which each process computes its share of a batch, to save memory."""
    aspects: tuple[float, ...] = (1.0,)
    """Width / height of the crops; each batch takes one at random. The paper crops squares."""
    least_crop: float = 1.0
    """Smallest crop, as a share of the largest that fits; the paper's crops are the largest."""
    jitter: float = 0.0
    """Strength of colour jitter on labelled images, 0 to 1. The paper mirrors them only."""
    loss: Literal["median", "least-squares"] = "median"
    """Affine-invariant loss: by median and mean deviation, as in the paper, or by least squares."""
    gradient_weight: float = 0.0
    """Weight of the gradient matching loss: 0 in V1, 2 in V2."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, as in the paper, or muon, which learns faster from random weights."""
    encoder_lr: float = 5e-6
    """Peak learning rate of the encoder. From random weights it needs about 5e-4, with muon 2e-3."""
    decoder_lr: float = 5e-5
    """Peak learning rate of neck and head."""
    warmup: int = 0
    """Steps of linear warm-up, before the linear decay to 0."""
    weight_decay: float = 0.01
    """Weight decay of matrices."""
    clip: float = 1.0
    """Largest global gradient norm."""
    ema: float = 0.0
    """Decay of the averaged weights that become the released model, such as 0.999; 0 for none."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision."""
    gradient_checkpointing: bool = False
    """Compute the encoder's activations twice to save memory."""
    seed: int = 0
    """Seed of the weights, the sample order and the augmentation."""
    workers: int = 0
    """Processes that read images; 0 reads in the training process."""
    memory: float = 1.0
    """GiB of decoded labelled images that each reading process may keep."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of the log."""
    validate_every: int = 1000
    """Steps between validations."""
    tracker: str = "tensorboard"
    """Where numbers go beside log.jsonl: tensorboard, or another tracker of Accelerate; empty for none."""
    peer_timeout: float = 600.0
    """Seconds after which a process that waits for another one gives up."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: go on from the newest checkpoint, else start; must: go on or fail; never: start or fail."""


FREE = (
    *("out", "accumulate", "workers", "memory", "save_every", "log_every", "validate_every", "validation"),
    *("validation_count", "tracker", "peer_timeout", "gradient_checkpointing", "resume"),
)
"""Settings that may change when a run goes on: they do not touch what is learnt."""


def check(config: Any, counts: tuple[str, ...]) -> None:
    """Refuses settings that no run could use.

    Args:
        config: a `TrainingConfig`. counts: fields that must be at least 1.

    Raises:
        InputError: naming the flag.
    """
    if config.preset not in PRESETS:
        raise InputError(f"--preset {config.preset}: choose one of {', '.join(PRESETS)}")
    for name in ("steps", "accumulate", "save_every", "log_every", "validate_every", *counts):
        if getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}")
    if not config.aspects or not all(0.25 <= aspect <= 4 for aspect in config.aspects):
        raise InputError(f"--aspects must be ratios between 0.25 and 4, got {config.aspects}")
    if not 0 < config.least_crop <= 1:
        raise InputError(f"--least-crop must be above 0 and at most 1, got {config.least_crop}")
    if config.lower_bound % PATCH or config.lower_bound < 0:
        raise InputError(f"--lower-bound must be a multiple of {PATCH}, got {config.lower_bound}")
    if config.encoder and config.init:
        raise InputError("--encoder and --init exclude each other: give the weights to start from once")
