"""What all training loops share: processes, learning rates, parameter groups, EMA, checkpoints."""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from safetensors import SafetensorError
from torch import nn

from depth_model import checkpoint
from depth_model.config import jsonable
from depth_model.errors import InputError, RunError

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def make_accelerator(
    out: Path, precision: str = "no", tracker: str = "", peer_timeout: float = 600.0, unused_parameters: bool = False
) -> Accelerator:
    """Devices, processes, mixed precision and trackers of a run.

    Args:
        out: run folder, where trackers write. precision: no, bf16 or fp16. tracker: a name Accelerate knows, or empty.
        peer_timeout: seconds after which a process that waits for another one gives up.
        unused_parameters: some steps leave parameters without a gradient.

    Raises:
        InputError: a precision that this device lacks, sharded weights, or a tracker that is not installed.
    """
    handlers = [
        InitProcessGroupKwargs(timeout=timedelta(seconds=peer_timeout)),
        DistributedDataParallelKwargs(find_unused_parameters=unused_parameters),
    ]
    try:
        accelerator = Accelerator(
            mixed_precision=precision, log_with=tracker or None, project_dir=out, kwargs_handlers=handlers
        )
    except (ValueError, ImportError) as error:
        raise InputError(f"--precision {precision}, --tracker {tracker}: {error}") from error
    if accelerator.distributed_type in _SHARDED:
        raise InputError(
            f"Accelerate is set up for {accelerator.distributed_type.value}, which spreads the weights over the "
            "processes; these trainers keep them whole: choose plain multi-GPU (DDP) in accelerate config"
        )
    return accelerator


def learning_rate_factor(step: int, total: int, warmup: int = 0, cooldown: float = 1.0) -> float:
    """The learning rate of optimiser step `step` of `total` as a factor in [0, 1].

    Rises linearly over `warmup` steps, stays at 1, and falls linearly to 0 over the last `cooldown` share of the steps;
    1 is the plain linear decay of V1 section 4.1.
    """
    rise = (step + 1) / warmup if step < warmup else 1.0
    fall = (total - step) / max(1, min(cooldown * total, total - warmup))
    return max(0.0, min(1.0, rise, fall))


def parameter_groups(
    rates: list[tuple[float, Iterable[nn.Parameter]]], model: nn.Module, weight_decay: float
) -> list[dict]:
    """AdamW groups from (learning rate, parameters) pairs; vectors and scalars are not decayed.

    Raises:
        ValueError: a parameter of `model` that requires a gradient is in no group, or in two.
    """
    groups, seen = [], []
    for rate, parameters in rates:
        parameters = [p for p in parameters if p.requires_grad]
        seen += parameters
        for decay, members in (
            (weight_decay, [p for p in parameters if p.ndim > 1]),
            (0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            if members:
                groups.append({"params": members, "lr": rate, "initial_lr": rate, "weight_decay": decay})
    wanted = {id(p) for p in model.parameters() if p.requires_grad}
    if len(seen) != len(wanted) or {id(p) for p in seen} != wanted:
        raise ValueError("every parameter that requires a gradient must be in exactly one optimiser group")
    return groups


def batch_share(batch: int, accelerator: Accelerator) -> slice:
    """Which images of a global batch of `batch` are this process's: every n-th of n processes.

    Raises:
        InputError: the batch does not divide by the number of processes.
    """
    if batch < 1 or batch % accelerator.num_processes:
        raise InputError(f"--batch {batch} does not divide by the {accelerator.num_processes} processes")
    return slice(accelerator.process_index, batch, accelerator.num_processes)


class Ema:
    """An exponential moving average of a model's parameters, warming up as (1 + n) / (10 + n) towards `decay`.

    With `decay` 0 there is none: nothing is kept, and `load_into` leaves the weights as they are.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        averaged = {name: p for name, p in model.named_parameters() if p.requires_grad and decay > 0}
        self.names, self.tensors = list(averaged), {name: p.detach().clone() for name, p in averaged.items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the model after optimiser step `step` (counted from 0)."""
        if not self.names:
            return
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        live = dict(model.named_parameters())
        torch._foreach_lerp_([self.tensors[n] for n in self.names], [live[n].detach() for n in self.names], weight)

    @torch.no_grad()
    def load_into(self, model: nn.Module) -> None:
        """Copies the average into `model`."""
        live = dict(model.named_parameters())
        for name, value in self.tensors.items():
            live[name].copy_(value)


@contextmanager
def averaged(model: nn.Module, ema: Ema) -> Iterator[None]:
    """Puts the average in the model's place for a while; afterwards every bit is as before."""
    live = dict(model.named_parameters())
    kept = {name: live[name].detach().clone() for name in ema.tensors}
    ema.load_into(model)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                live[name].copy_(value)


def save_run(
    folder: Path,
    step: int,
    config: Any,
    network: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    state: dict | None = None,
) -> None:
    """Writes the checkpoint that `resume_run` reads.

    Args:
        folder: the run's checkpoint folder. step: optimiser steps done. config: the run's dataclass.
        state: whatever else the run needs to go on, as JSON.

    Raises:
        RunError: the disk is full or not writable; older checkpoints are untouched then.
    """
    tensors = {
        "model": network.state_dict(),
        "ema": ema.tensors,
        "optimizer": checkpoint.optimizer_tensors(optimizer),
    }
    try:
        checkpoint.save_checkpoint(folder, step, tensors, {"config": jsonable(config), **(state or {})})
    except (OSError, SafetensorError) as error:
        needed = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        raise RunError(
            f"{folder}: the checkpoint of step {step} cannot be written ({error}); it needs {needed >> 20} MiB, "
            f"{free >> 20} MiB are free. Earlier checkpoints are untouched: make room and run the same command again"
        ) from error


def resume_run(
    found: Path | None,
    config: Any,
    free: tuple[str, ...],
    network: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
) -> tuple[int, dict]:
    """Brings network, average and optimiser to where checkpoint `found` left them; with None they stay as they are.

    Args:
        config: the run's dataclass, which may differ from the saved one in the fields `free` only.

    Returns:
        The optimiser steps done, and the `state` of `save_run`.

    Raises:
        InputError: another field differs.
    """
    if found is None:
        return 0, {}
    tensors, state = checkpoint.load_checkpoint(found)
    frozen_difference(state["config"], jsonable(config), free)
    network.load_state_dict(tensors["model"])
    for name, value in tensors.get("ema", {}).items():
        ema.tensors[name].copy_(value)
    checkpoint.load_optimizer_tensors(optimizer, tensors["optimizer"])
    return state["step"], state


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets each group's rate to its initial one times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def same_data(state: dict, sizes: dict[str, int]) -> dict[str, int]:
    """Refuses to go on with sets of other sizes, in which the order of the samples would be another one.

    Args:
        state: of `resume_run`. sizes: images in each set by name; returned, for `save_run`.

    Raises:
        InputError: naming the first set that differs.
    """
    for name, size in sizes.items():
        if state.get(name, size) != size:
            raise InputError(
                f"the run was started with {state[name]} {name} images, now there are {size}; bring the data back to "
                "go on with it, or give another --out to start a new run"
            )
    return sizes


def frozen_difference(saved: dict, current: dict, free: tuple[str, ...]) -> None:
    """Refuses to resume a run under other settings than it was started with, but for the keys in `free`.

    Raises:
        InputError: naming each key that differs, with both values.
    """
    saved, current = json.loads(json.dumps(saved)), json.loads(json.dumps(current))
    keys = sorted(saved.keys() | current.keys())
    if wrong := [key for key in keys if key not in free and saved.get(key) != current.get(key)]:
        differences = (
            f"{key}: the run was started with {saved.get(key)!r}, now it is {current.get(key)!r}" for key in wrong
        )
        raise InputError(
            f"{'; '.join(differences)}; give the old value to go on with it, or another --out to start a new run"
        )
