"""What the tests of training loops share."""

import json
import os
import shutil
import subprocess
import sys

import torch
from safetensors.torch import load_file


def rows(out):
    """The log of a run without the measured speed."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def same(one, other):
    """Whether two safetensors files hold bitwise equal tensors."""
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def killed_at(straight, killed, step, last):
    """Copies a finished run and removes what a kill right after the checkpoint of `step` would not have left."""
    shutil.copytree(straight, killed)
    shutil.rmtree(killed / "checkpoints" / f"step-{last:08d}")
    shutil.rmtree(killed / "model")
    assert (killed / "checkpoints" / f"step-{step:08d}").is_dir()
    return killed


def assert_same_run(straight, other, last):
    """Weights, average, optimiser and log of two runs are equal."""
    for name in ("model", "ema", "optimizer"):
        files = [out / "checkpoints" / f"step-{last:08d}" / f"{name}.safetensors" for out in (straight, other)]
        assert same(*files), name
    assert rows(straight) == rows(other)


def torchrun(module, *arguments):
    """Runs a stage in two processes on the CPU that exchange gradients by gloo."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", module]
    done = subprocess.run(
        [*launch, *map(str, arguments)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
