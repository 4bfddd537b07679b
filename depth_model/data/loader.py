"""Batches for training, in an order that neither the processes nor the loader's workers change."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from depth_model.data.order import batches
from depth_model.errors import InputError


def micro_batches(
    samples: Dataset,
    batch: int,
    accelerator: Accelerator,
    seed: int,
    first_step: int,
    last_step: int,
    accumulate: int = 1,
    workers: int = 0,
) -> Iterator[dict]:
    """This process's batches from `first_step` to before `last_step`, `accumulate` of them for each step.

    Args:
        samples: a dataset of (step, epoch, index) keys. batch: images in a global batch, over all processes.
        seed: of the order; see `order.batches`. workers: processes that read; 0 reads in this one.

    Raises:
        InputError: `batch` does not divide into equal parts.
    """
    world = accelerator.num_processes
    if batch % (world * accumulate):
        raise InputError(
            f"a batch of {batch} does not divide by {world} processes times {accumulate} parts; change --batch, "
            "--unlabeled-batch, --accumulate or the number of processes"
        )
    share = batch // (world * accumulate)
    steps = batches(len(samples), batch, seed, first_step, last_step, accelerator.process_index, world)
    parts = (keys[i : i + share] for keys in steps for i in range(0, len(keys), share))
    return iter(
        DataLoader(
            samples,
            batch_sampler=_Lazy(parts),
            num_workers=workers,
            pin_memory=accelerator.device.type == "cuda",
            persistent_workers=workers > 0,
        )
    )


def to_device(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}


class _Lazy(torch.utils.data.Sampler):
    """A batch sampler over an iterator, since the keys of a long run would fill the memory as a list."""

    def __init__(self, parts: Iterator[list]):
        self.parts = parts

    def __iter__(self) -> Iterator[list]:
        return self.parts
