"""What a training run survives: kills at any moment, other numbers of processes, bad gradients and data, full disks."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from depth_model import checkpoint, train_student, train_teacher
from depth_model.config import dump
from depth_model.errors import RunError
from depth_model.losses import affine_invariant_loss
from tests.depth_model.conftest import rows

ENV = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


@pytest.fixture
def config(scenes, tmp_path):
    return train_teacher.Config(
        out=tmp_path / "run",
        preset="tiny",
        scenes=(scenes,),
        lower_bound=28,
        steps=12,
        batch=2,
        encoder_lr=1e-4,
        decoder_lr=1e-3,
        ema=0.9,
        save_every=2,
        log_every=1,
        tracker="",
    )


@pytest.fixture
def student_config(config, photos, labels, encoder):
    shared = {
        k: getattr(config, k) for k in ("out", "preset", "scenes", "lower_bound", "encoder_lr", "decoder_lr", "ema")
    }
    return train_student.Config(
        **shared,
        encoder=str(encoder),
        images=f"images={photos}",
        labels=labels,
        steps=8,
        batch=2,
        unlabeled_batch=4,
        save_every=2,
        log_every=1,
        tracker="",
    )


def start(config, processes=1):
    """A stage in processes of its own."""
    file = config.out.parent / f"{config.out.name}.yaml"
    dump(config, file)
    module = type(config).__module__
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] * (processes > 1)
    command = [sys.executable, *launch, "-m", module, "--config", str(file)]
    return subprocess.Popen(
        command, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0
    )


def finish(config, processes=1):
    process = start(config, processes)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return said


def assert_same(one, other, last):
    assert rows(one) == rows(other)
    for name in ("model", "ema", "optimizer"):
        a, b = (load_file(out / "checkpoints" / f"step-{last:08d}" / f"{name}.safetensors") for out in (one, other))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name


def kill(process):
    """Kills a run with all its processes, which torchrun puts into sessions of their own."""
    with suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
    process.communicate()


def kill_at_random(config, processes, kills, seed):
    """Kills the whole process group at random moments after its first step, then lets it finish."""
    draws = random.Random(seed)
    for _ in range(kills):
        process = start(config, processes)
        log = config.out / "log.jsonl"
        before = log.read_text() if log.exists() else ""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and log.read_text() != before:
                break
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 0.6))
        kill(process)
    finish(config, processes)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_teacher_killed_at_random_moments_ends_as_if_nothing_had_been(config, processes):
    finish(config, processes)
    killed = replace(config, out=config.out.with_name("killed"))
    kill_at_random(killed, processes, kills=4, seed=processes)
    assert_same(config.out, killed.out, 12)


@pytest.mark.slow
def test_a_student_killed_at_random_moments_ends_as_if_nothing_had_been(student_config):
    finish(student_config)
    killed = replace(student_config, out=student_config.out.with_name("killed"))
    kill_at_random(killed, 1, kills=3, seed=5)
    assert_same(student_config.out, killed.out, 8)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["config", "student_config"])
def test_another_number_of_processes_sees_the_same_samples(stage, request):
    config = request.getfixturevalue(stage)
    finish(config)
    last = config.steps
    for first, then in ((1, 2), (2, 1)):
        out = config.out.with_name(f"from-{first}-to-{then}")
        finish(replace(config, out=out), first)
        shutil.rmtree(out / "checkpoints" / f"step-{last:08d}")
        finish(replace(config, out=out, resume="must"), then)
        losses = [[row["loss"] for row in rows(run)] for run in (config.out, out)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
def test_a_termination_signal_saves_and_leaves(config):
    config = replace(config, steps=400, save_every=400)
    process = start(config)
    while not (config.out / "log.jsonl").exists() or not rows(config.out):
        time.sleep(0.05)
    process.terminate()
    began = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - began < 10
    step = checkpoint.load_checkpoint(checkpoint.latest_checkpoint(config.out / "checkpoints"))[1]["step"]
    assert f"stopped by SIGTERM after step {step}" in said and 0 < step < 400


@pytest.mark.slow
def test_a_lost_process_ends_the_run(config):
    config = replace(config, steps=100000, save_every=100000, peer_timeout=20)
    process = start(config, 2)
    while not (config.out / "log.jsonl").exists() or not rows(config.out):
        time.sleep(0.05)
    psutil.Process(process.pid).children()[-1].kill()
    began = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - began < 40


def broken_at(monkeypatch, steps):
    """Makes the loss NaN at some steps."""
    calls = iter(range(1000))

    def loss(prediction, target, valid):
        value = affine_invariant_loss(prediction, target, valid)
        return value * torch.nan if next(calls) in steps else value

    monkeypatch.setitem(train_teacher.LOSSES, "median", loss)


def test_a_step_whose_gradient_is_not_finite_is_not_taken(config, monkeypatch):
    broken_at(monkeypatch, {2})
    config = replace(config, steps=4, save_every=1)
    main = train_teacher.main
    main(config)
    log = rows(config.out)
    assert [np.isfinite(row["gradient_norm"]) for row in log] == [True, True, False, True]
    at = [checkpoint.load_checkpoint(config.out / "checkpoints" / f"step-{i:08d}")[0] for i in (3, 4)]
    assert all(torch.isfinite(t).all() for group in at for t in group["model"].values())


def test_ten_such_steps_in_a_row_end_the_run(config, monkeypatch):
    broken_at(monkeypatch, range(3, 100))
    with pytest.raises(RunError, match="NaN or infinite for 10 steps"):
        train_teacher.main(replace(config, steps=40, save_every=3))
    names = json.loads((config.out / "nonfinite.json").read_text())
    assert len(names) == config.batch and all(name.endswith(".png") for name in names)
    tensors, _ = checkpoint.load_checkpoint(checkpoint.latest_checkpoint(config.out / "checkpoints"))
    assert all(torch.isfinite(weight).all() for weight in tensors["model"].values())


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(config, monkeypatch):
    config = replace(config, steps=4)
    write, calls = checkpoint.save_file, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match=r"checkpoints: the checkpoint of step 4 cannot be written .* MiB are free"):
        train_teacher.main(config)
    assert [file.name for file in (config.out / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    train_teacher.main(replace(config, resume="must"))
    assert (config.out / "model" / "model.safetensors").is_file()


def test_a_rename_that_fails_once_is_tried_again(config, monkeypatch):
    rename, failures = os.rename, iter([OSError(errno.EACCES, "no")])

    def once(source, target):
        if error := next(failures, None):
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", once)
    train_teacher.main(replace(config, steps=2))
    assert checkpoint.latest_checkpoint(config.out / "checkpoints")


@pytest.mark.slow
def test_flat_black_and_all_sky_images_break_nothing(config, tmp_path):
    folder, index = tmp_path / "odd", []
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) * (i != 0)
        depth, valid = rng.uniform(1, 5, (40, 40)), np.ones((40, 40), bool)
        if i == 1:
            depth[:] = 3.0
        if i == 2:
            valid[:] = False
        if i == 3:
            depth[:], valid[:] = 0, False
        Image.fromarray(image).save(folder / f"{i}.png")
        np.savez(folder / f"{i}.npz", depth=depth.astype(np.float32), valid=valid)
        index.append({"file": f"{i}.png", "depth_file": f"{i}.npz", "kind": "depth"})
    (folder / "index.json").write_text(json.dumps(index))
    train_teacher.main(
        replace(config, scenes=(folder,), pairs=(folder,), steps=200, save_every=200, gradient_weight=1.0)
    )
    assert all(np.isfinite(row["loss"]) and np.isfinite(row["gradient_norm"]) for row in rows(config.out))
    assert rows(config.out)[-1]["skipped"] > 0
    assert any("no valid depth" in reason for reason in json.loads((config.out / "skipped.json").read_text()))
