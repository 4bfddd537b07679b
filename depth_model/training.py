"""What all training loops share: learning-rate factors, EMA, parameter groups, resuming, the run's log and pictures."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw
from torch import nn

from depth_model import checkpoint
from depth_model.config import jsonable
from depth_model.errors import InputError


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
    """An exponential moving average of a model's parameters, warming up as (1 + n) / (10 + n) towards `decay`."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.tensors = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the model after optimiser step `step` (counted from 0)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        live = dict(model.named_parameters())
        torch._foreach_lerp_([self.tensors[n] for n in self.names], [live[n].detach() for n in self.names], weight)

    @torch.no_grad()
    def load_into(self, model: nn.Module) -> None:
        """Copies the average into `model`."""
        live = dict(model.named_parameters())
        for name, value in self.tensors.items():
            live[name].copy_(value)


class RunLog:
    """The JSON-lines log of a run, `log.jsonl`; on resume, lines after the resumed step are dropped."""

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        self.rows: list[dict] = []
        self._first_step, self._started = first_step, time.monotonic()
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            self.rows = [row for row in map(_parse, lines) if row is not None and row["step"] <= first_step]
            self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def write(self, step: int, **numbers: float) -> None:
        """Adds one line."""
        row = {"step": step, **numbers}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def progress(self, step: int, total: int, batch: int, **numbers: float) -> None:
        """Adds one line with `numbers` (`loss` among them) and the speed, and prints how far the run is.

        Args:
            step: optimiser steps done, more than the log began with. total: of so many. batch: images in each.
        """
        rate = (step - self._first_step) * batch / (time.monotonic() - self._started)
        self.write(step, **numbers, images_per_second=round(rate, 1))
        left = (total - step) * batch / rate / 60
        print(f"step {step}/{total}  loss {numbers['loss']:.4f}  {rate:.1f} images/s  {left:.0f} min left", flush=True)

    def plot(self, path: Path) -> None:
        """Draws every logged number over the step into one PNG, a panel each."""
        names = sorted({name for row in self.rows for name in row} - {"step", "seconds"})
        panels = [(name, [(r["step"], r[name]) for r in self.rows if name in r]) for name in names]
        plot_curves(path, [(name, points) for name, points in panels if len(points) > 1])


def _parse(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:  # a line cut off by a kill
        return None


def plot_curves(
    path: Path, panels: list[tuple[str, list[tuple[float, float]]]], width: int = 480, height: int = 200
) -> None:
    """Draws (name, points) panels one below the other; nothing when there are none."""
    if not panels:
        return
    sheet = Image.new("RGB", (width, height * len(panels)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, points) in enumerate(panels):
        x, y = np.array(points, dtype=float).T
        shown = y[np.isfinite(y)]
        if not len(shown):
            continue
        low, high = float(shown.min()), float(np.quantile(shown, 0.99))
        px = 50 + (x - x.min()) / max(np.ptp(x), 1e-9) * (width - 60)
        py = i * height + height - 20 - (np.clip(y, low, high) - low) / max(high - low, 1e-12) * (height - 50)
        draw.rectangle((50, i * height + 25, width - 10, (i + 1) * height - 18), outline="lightgrey")
        draw.line(
            [(float(a), float(b)) for a, b in zip(px, py, strict=True) if np.isfinite(b)], fill=(30, 90, 160), width=2
        )
        draw.text(
            (50, i * height + 8), f"{name}   last {y[-1]:.4g}   steps {int(x.min())} to {int(x.max())}", fill="black"
        )
        draw.text((2, i * height + 25), f"{high:.3g}", fill="grey")
        draw.text((2, (i + 1) * height - 30), f"{low:.3g}", fill="grey")
    sheet.save(path)


def save_run(folder: Path, step: int, config: Any, network: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer):
    """Writes the checkpoint that `resume_run` reads. Raises OSError as `checkpoint.save_checkpoint`."""
    tensors = {
        "model": network.state_dict(),
        "ema": ema.tensors,
        "optimizer": checkpoint.optimizer_tensors(optimizer),
    }
    checkpoint.save_checkpoint(folder, step, tensors, {"config": jsonable(config)})


def resume_run(
    found: Path | None,
    config: Any,
    free: tuple[str, ...],
    network: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Brings network, average and optimiser to where checkpoint `found` left them; with None they stay as they are.

    Args:
        config: the run's dataclass, which may differ from the saved one in the fields `free` only.

    Returns:
        The optimiser steps done.

    Raises:
        InputError: another field differs.
    """
    if found is None:
        return 0
    tensors, state = checkpoint.load_checkpoint(found)
    frozen_difference(state["config"], jsonable(config), free)
    network.load_state_dict(tensors["model"])
    for name, value in tensors["ema"].items():
        ema.tensors[name].copy_(value)
    checkpoint.load_optimizer_tensors(optimizer, tensors["optimizer"])
    return state["step"]


def frozen_difference(saved: dict, current: dict, free: tuple[str, ...]) -> None:
    """Refuses to resume a run under other settings than it was started with, but for the keys in `free`.

    Raises:
        InputError: naming the first key that differs, with both values.
    """
    saved, current = json.loads(json.dumps(saved)), json.loads(json.dumps(current))
    for key in sorted(saved.keys() | current.keys()):
        if key not in free and saved.get(key) != current.get(key):
            raise InputError(
                f"{key}: the run was started with {saved.get(key)!r}, now it is {current.get(key)!r}; "
                "give the old value to go on with it, or another --out to start a new run"
            )
