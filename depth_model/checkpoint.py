"""Training checkpoints that are complete or absent.

A checkpoint is a folder `step-NNNNNNNN` of safetensors files, `state.json`, and `COMPLETE.json` with the size and
SHA-256 of each. It is written under another name, synced and renamed, and only then are older ones removed; readers
trust only folders whose marker is there and right. There are no pickles.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from depth_model.errors import InputError

_MARKER = "COMPLETE.json"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(partial: Path, final: Path) -> None:
    """Network file systems refuse a rename now and then; three tries."""
    for pause in (0.2, 1.0):
        try:
            return os.rename(partial, final)
        except OSError:
            time.sleep(pause)
    os.rename(partial, final)


def _digest(path: Path) -> dict:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def save_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict, keep: int = 2) -> Path:
    """Writes checkpoint number `step` and then removes all but the newest `keep`.

    Args:
        folder: the run's checkpoint folder, made when missing.
        step: optimiser steps done.
        tensors: file stem -> named tensors, such as {"model": ..., "ema": ..., "optimizer": ...}.
        state: whatever else resuming needs, as JSON.

    Raises:
        OSError: the disk is full or not writable; older checkpoints are untouched then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    final = folder / f"step-{step:08d}"
    if is_complete(final, verify=True):
        return final
    partial = folder / f"{final.name}.tmp-{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        for stem, group in tensors.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in group.items()}, partial / f"{stem}.safetensors")
        (partial / "state.json").write_text(json.dumps({"step": step, **state}))
        files = sorted(partial.iterdir())
        for file in files:
            _sync(file)
        (partial / _MARKER).write_text(json.dumps({file.name: _digest(file) for file in files}))
        _sync(partial / _MARKER)
        _sync(partial)
        if final.exists():
            shutil.rmtree(final)
        _rename(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(folder)
    everything = sorted(folder.glob("step-????????"))
    # A run that resumed passed over any later ones, so they are damaged and must not count among those that are kept.
    kept = [path for path in everything if path.name <= final.name][-keep:]
    for path in everything:
        if path not in kept:
            shutil.rmtree(path)
    return final


def is_complete(path: Path, verify: bool = False) -> bool:
    """Whether every file that the marker lists is there in its size, and with `verify` in its SHA-256."""
    try:
        listed = json.loads((path / _MARKER).read_text())
        if verify:
            return all(_digest(path / name) == entry for name, entry in listed.items())
        return all((path / name).stat().st_size == entry["bytes"] for name, entry in listed.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps, by name, its hashes checked; None when there is none."""
    return next((p for p in sorted(folder.glob("step-????????"), reverse=True) if is_complete(p, verify=True)), None)


def find_checkpoint(folder: Path, resume: str) -> Path | None:
    """What `--resume auto|must|never` means for a run: where to go on from, or None to start.

    Raises:
        InputError: "must" without a checkpoint, "never" with one, or another word.
    """
    if resume not in ("auto", "must", "never"):
        raise InputError(f"--resume takes auto, must or never, got {resume!r}")
    found = latest_checkpoint(folder)
    if resume == "must" and found is None:
        raise InputError(
            f"--resume must: {folder} holds no complete checkpoint; use --resume auto to start from nothing"
        )
    if resume == "never" and found is not None:
        raise InputError(
            f"--resume never: {folder} already holds {found.name}; choose another --out or use --resume auto"
        )
    return found


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """The named tensors of each file and the state, as given to `save_checkpoint`."""
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return tensors, json.loads((path / "state.json").read_text())


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as flat tensors named "parameter.key", its parameters counted in group order."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": torch.as_tensor(value) for i, entry in state.items() for key, value in entry.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; hyperparameters stay as the optimiser was built."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
