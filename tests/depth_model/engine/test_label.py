"""Pseudo-labels: what is in the shards, and that the command goes on where it stopped."""

import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from depth_model import DepthEstimator
from depth_model.data.pseudo import PseudoLabeled
from depth_model.data.shards import ShardWriter
from depth_model.data.units import Units, files_of, read_table
from depth_model.engine.label import Config, main
from depth_model.engine.status import status
from depth_model.engine.verify import Config as Verify
from depth_model.engine.verify import main as verify
from depth_model.errors import InputError, RunError


@pytest.fixture
def config(photos, teacher, tmp_path):
    return Config(images=f"images={photos}", teacher=str(teacher), out=tmp_path / "labels", per_shard=3, batch=2)


def shards(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != "labels.json"}


def test_a_label_is_the_teachers_map_in_16_bits(labels, photos, teacher):
    pseudo = PseudoLabeled(f"images={photos}", labels)
    estimator = DepthEstimator.from_pretrained(teacher)
    assert len(pseudo) == 7 and pseudo.name(0) == "b/000000.png"
    for i in range(len(pseudo)):
        image, disparity = pseudo.read(i)
        assert image.size == Image.open(photos / pseudo.name(i)).size
        expected = estimator.predict_tensor(estimator.preprocess(image))[0].numpy()
        np.testing.assert_allclose(disparity, expected, atol=np.ptp(expected) / 65000)


def test_shards_are_plain_tars_with_16_bit_pngs_and_a_quarantine(labels):
    kinds = {
        0: (".json", ".npy", ".quarantine.json", ".tar"),
        1: (".json", ".npy", ".tar"),
        2: (".json", ".npy", ".tar"),
    }
    files = [f"labels-{unit:06d}{kind}" for unit, suffixes in kinds.items() for kind in suffixes]
    assert sorted(file.name for file in labels.iterdir()) == sorted([*files, "labels.json"])
    with tarfile.open(labels / "labels-000000.tar", "r:") as shard:
        names = shard.getnames()
        assert sorted(names) == ["b/000000.png.png", "b/000001.png.png"]
        with Image.open(io.BytesIO(shard.extractfile(names[0]).read())) as picture:
            assert picture.mode == "I;16" and "depth-control" in picture.info
    quarantine = json.loads((labels / "labels-000000.quarantine.json").read_text())
    assert list(quarantine) == ["a.jpg"] and "not an image" in quarantine["a.jpg"]
    made_by = json.loads((labels / "labels.json").read_text())
    assert made_by["images"] == 8 and len(made_by["teacher_sha256"]) == 64


def test_what_is_missing_is_made_again_with_the_same_bytes(config, labels):
    main(config)
    straight = shards(config.out)
    assert straight == shards(labels), "batches change nothing"
    (config.out / "labels-000001.json").unlink()
    (config.out / "labels-000001.tar.tmp-0").write_bytes(b"half")
    (config.out / "labels-000000.tar").write_bytes(b"kept")
    main(config)
    assert shards(config.out) == straight | {"labels-000000.tar": b"kept"}, "and nothing half is left"


def test_labels_of_another_teacher_or_source_are_not_mixed(config, labels, photos, scenes):
    with pytest.raises(InputError, match="holds labels of other per_shard"):
        main(replace(config, out=labels, per_shard=4))
    with pytest.raises(InputError, match="teacher_sha256"):
        main(replace(config, out=labels, teacher="embedded"))
    with pytest.raises(InputError, match="labels of 8 images, the source has 6"):
        PseudoLabeled(f"images={scenes}", labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": ""}, "--images is missing"),
        ({"images": "photos=here"}, "unknown set 'photos'"),
        ({"teacher": "nowhere"}, "nowhere: no such file or folder"),
        ({"batch": 0}, "must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(config, change, said):
    with pytest.raises(InputError, match=said):
        main(replace(config, **change))
    assert not config.out.exists()


def test_a_folder_without_labels_is_refused(photos, tmp_path):
    with pytest.raises(InputError, match="no labels there"):
        PseudoLabeled(f"images={photos}", tmp_path)


def image_shards(folder, shards, each, seed=0):
    """Shards of small JPEGs of two sizes; every seventh file is none."""
    rng = np.random.default_rng(seed)
    for shard in range(shards):
        with ShardWriter(folder / f"images-{shard:06d}.tar") as writer:
            for i in range(each):
                file = io.BytesIO()
                size = (24, 36) if i % 3 else (24, 24)
                Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(file, "JPEG")
                bad = (shard * each + i) % 7 == 3
                writer.add(f"{shard * each + i:09d}.jpg", b"<svg/>" if bad else file.getvalue())
    return folder


def keys(shard):
    with tarfile.open(shard, "r:") as archive:
        return [name.partition(".")[0] for name in archive.getnames()]


def check_accounts(images, labels):
    """Every image has one label or one reason, in the files of its own shard."""
    for shard in sorted(images.glob("*.tar")):
        labelled, listed = keys(labels / shard.name), labels / f"{shard.stem}.quarantine.json"
        reasons = json.loads(listed.read_text()) if listed.exists() else {}
        assert all("not an image" in reason for reason in reasons.values())
        quarantined = [name.partition(".")[0] for name in reasons]
        assert sorted([*labelled, *quarantined]) == sorted(keys(shard))
    assert not list(labels.glob("*.tmp-*"))


@pytest.fixture
def from_shards(teacher, tmp_path):
    images = image_shards(tmp_path / "images", 4, 5)
    return Config(images=f"tar={images}", teacher=str(teacher), out=tmp_path / "labels", batch=2, threads=2)


def test_shards_in_label_shards_out_and_the_student_reads_both_by_offset(from_shards, tmp_path):
    main(from_shards)
    check_accounts(tmp_path / "images", from_shards.out)
    pseudo = PseudoLabeled(from_shards.images, from_shards.out)
    estimator = DepthEstimator.from_pretrained(from_shards.teacher)
    assert len(pseudo) == 17
    for i in range(len(pseudo)):
        image, disparity = pseudo.read(i)
        expected = estimator.predict_tensor(estimator.preprocess(image))[0].numpy()
        np.testing.assert_allclose(disparity, expected, atol=np.ptp(expected) / 60000)
    assert pseudo.name(0) == "images-000000/000000000.jpg"
    row = read_table(from_shards.out / "images-000000.npy")[0]
    assert row["low"] < row["mean"] < row["high"] and row["deviation"] > 0 and np.isnan(row["disagreement"])
    done = json.loads((from_shards.out / "images-000002.json").read_text())
    assert (done["images"], done["labelled"], done["quarantined"]) == (5, 4, 1)
    assert len(done["input_sha256"]) == len(done["made_by"]["teacher_sha256"]) == 64
    verify(Verify(labels=from_shards.out))
    with (tmp_path / "images" / "images-000000.tar").open("ab") as shard:
        shard.write(bytes(512))
    with pytest.raises(InputError, match="images-000000.tar: has changed since it was labelled"):
        PseudoLabeled(from_shards.images, from_shards.out)


def test_shards_may_be_added_and_status_tells_of_them(from_shards, tmp_path):
    main(from_shards)
    before = shards(from_shards.out)
    image_shards(tmp_path / "images", 5, 5)
    main(from_shards)
    assert shards(from_shards.out).items() >= before.items()
    (from_shards.out / "images-000002.json").unlink()
    found = status(from_shards.out)
    assert (found.done, found.total, found.images) == (4, 5, 5) and "4 of 5 units done, 1 left" in str(found)
    assert found.quarantined == 3
    (tmp_path / "images" / "images-000004.tar").unlink()
    with pytest.raises(InputError, match="has labels of images-000004"):
        main(from_shards)


def test_a_hostile_shard_fails_alone(from_shards, tmp_path):
    (tmp_path / "images" / "images-000001.tar").write_bytes(b"\x1f\x8bnot a tar")
    with pytest.raises(RunError, match="1 of 4 units could not be labelled, such as images-000001 .*not a plain tar"):
        main(from_shards)
    assert sorted(file.name for file in from_shards.out.glob("*.tar")) == [f"images-{i:06d}.tar" for i in (0, 2, 3)]


def test_flipping_averages_and_says_how_much_both_disagree(from_shards):
    main(replace(from_shards, flip=True))
    table = read_table(from_shards.out / "images-000000.npy")
    assert (table["disagreement"] > 0).all()
    middle = float(np.median(table["disagreement"]))
    every = PseudoLabeled(from_shards.images, from_shards.out, 1e9)
    some = PseudoLabeled(from_shards.images, from_shards.out, middle)
    assert 0 < len(some) < len(every) == 17
    estimator = DepthEstimator.from_pretrained(from_shards.teacher)
    image, disparity = every.read(0)
    pixels = estimator.preprocess(image)
    both = (estimator.predict_tensor(pixels) + estimator.predict_tensor(pixels.flip(-1)).flip(-1))[0].numpy() / 2
    np.testing.assert_allclose(disparity, both, atol=np.ptp(both) / 60000)


def test_a_teacher_that_fails_stops_the_run(from_shards, monkeypatch):
    few = image_shards(from_shards.out.parent / "few", 2, 4)
    predict = DepthEstimator.predict_tensor
    monkeypatch.setattr(DepthEstimator, "predict_tensor", lambda *a, **k: predict(*a, **k) * float("nan"))
    main(replace(from_shards, images=f"tar={few}"))
    listed = json.loads((from_shards.out / "images-000000.quarantine.json").read_text())
    assert listed["000000000.jpg"] == "the teacher gave NaN or infinity"
    assert not len(read_table(from_shards.out / "images-000000.npy"))
    images = image_shards(from_shards.out.parent / "more", 1, 9)
    with pytest.raises(RunError, match="images-000000: the teacher failed on 8 of 9 images"):
        main(replace(from_shards, images=f"tar={images}", out=from_shards.out.parent / "other"))


def test_what_verify_finds(from_shards, capsys):
    main(from_shards)
    for name in ("images-000000.tar", "images-000001.npy"):
        data = bytearray((from_shards.out / name).read_bytes())
        data[-1 if name.endswith("npy") else 700] ^= 1
        (from_shards.out / name).write_bytes(data)
    (from_shards.out / "images-000002.json").unlink()
    with pytest.raises(RunError, match="problems in 4 units"):
        verify(Verify(labels=from_shards.out))
    said = capsys.readouterr().out
    assert "images-000000.tar has changed" in said and "images-000001.npy has changed" in said
    assert "images-000002: not labelled yet" in said and "images-000003" not in said


def test_labels_never_go_among_the_images(from_shards, tmp_path):
    with pytest.raises(InputError, match="in the folder of the shards"):
        main(replace(from_shards, out=tmp_path / "images" / "labels"))


@pytest.fixture
def one_thread():
    """Forked processes hang in OpenMP when the one they come from has used several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_many_kills_and_a_second_engine_change_nothing(teacher, tmp_path, one_thread):
    images = image_shards(tmp_path / "images", 40, 8)
    config = Config(images=f"tar={images}", teacher=str(teacher), out=tmp_path / "straight", threads=2)
    main(config)
    killed, rng = replace(config, out=tmp_path / "killed"), random.Random(0)
    fork = multiprocessing.get_context("fork")
    kills = 0
    for _ in range(20):
        engines = [fork.Process(target=main, args=(killed,)) for _ in range(2)]
        for engine in engines:
            engine.start()
        # Spread over the whole run, however fast the machine is.
        wanted, deadline = len(list(killed.out.glob("*.npy"))) + rng.randint(0, 3), time.monotonic() + 30
        while len(list(killed.out.glob("*.npy"))) < wanted and time.monotonic() < deadline:
            if not any(engine.is_alive() for engine in engines):
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        for engine in engines:
            if engine.is_alive():
                os.kill(engine.pid, signal.SIGKILL)
                kills += 1
            engine.join()
    main(killed)
    assert kills and shards(killed.out) == shards(config.out)
    check_accounts(images, killed.out)
    verify(Verify(labels=killed.out))


@pytest.mark.slow
def test_planning_and_status_of_62000_shards(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for i in range(62_000):
        (images / f"images-{i:06d}.tar").touch()
    began = time.monotonic()
    units = Units(f"tar={images}", 1000)
    planned = time.monotonic() - began
    assert len(units) == 62_000
    (labels / "labels.json").write_text(json.dumps({"units": units.names}))
    for name in units.names[:1000]:
        files_of(labels, name)["done"].write_text('{"images": 1000}')
    began = time.monotonic()
    assert status(labels).done == 1000
    print(f"planned in {planned:.2f} s, status in {time.monotonic() - began:.2f} s")


@pytest.mark.slow
def test_ray_gives_the_same_bytes_when_its_workers_are_killed(teacher, tmp_path, one_thread):  # as each of its workers
    pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    images = image_shards(tmp_path / "images", 12, 8)
    config = Config(images=f"tar={images}", teacher=str(teacher), out=tmp_path / "straight", threads=1)
    main(config)
    on_ray = replace(config, out=tmp_path / "ray", runner="ray", address="auto")
    with pytest.raises(InputError, match="no Ray cluster there"):
        main(on_ray)
    script = (
        "import ray, sys, time; ray.init(address='local', num_cpus=2, include_dashboard=False); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    # A busy machine starts a cluster slowly.
    patient = {**os.environ, "RAY_raylet_start_wait_time_s": "300"}
    cluster = subprocess.Popen([sys.executable, "-c", script], env=patient, **pipes)
    killed = []

    def kill_workers():
        while len(killed) < 3 and cluster.poll() is None:
            for process in psutil.process_iter(["cmdline"]):
                if any("ray::_label_one" in part for part in process.info["cmdline"] or ()) and len(killed) < 3:
                    process.kill()
                    killed.append(process.pid)
                    time.sleep(2)
            time.sleep(0.05)

    killer = threading.Thread(target=kill_workers)
    try:
        while "ready" not in (line := cluster.stdout.readline()):
            assert line, "the cluster has ended"
        killer.start()
        main(on_ray)
    finally:
        cluster.communicate(timeout=60)
    assert killed and shards(on_ray.out) == shards(config.out)
    check_accounts(images, on_ray.out)
