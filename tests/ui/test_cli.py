"""The command line: what it writes, prints and returns."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.ui.spoil import huge_header, text_renamed, truncated_jpeg
from ui.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "depth_control" / "embedded"


def test_estimate_writes_three_files_of_the_photos_size(photo, models, tmp_path, capsys):
    assert main(["estimate", str(photo), "--depth-model", models["depth_model"], "--out", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "photo_color.png",
        "photo_depth.npz",
        "photo_depth.png",
    ]
    with np.load(tmp_path / "out" / "photo_depth.npz", allow_pickle=False) as arrays:
        values, kind = arrays["values"], str(arrays["kind"])
    assert values.shape == (120, 160) and values.dtype == np.float32 and np.isfinite(values).all()
    assert kind == "disparity"
    depth = Image.open(tmp_path / "out" / "photo_depth.png")
    assert depth.mode == "I;16" and depth.size == (160, 120)
    assert np.corrcoef(np.asarray(depth, dtype=float).ravel(), values.ravel())[0, 1] > 0.999  # near = white


def test_a_folder_skips_and_lists_its_bad_files(photo, models, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for spoil in (text_renamed, truncated_jpeg, huge_header):
        spoil(folder / f"{spoil.__name__}.png")
    for name in ("same.jpg", "same.png", "one.jpg", "SAME_png.jpg"):
        Image.open(photo).save(folder / name)
    assert main(["estimate", str(folder), "--depth-model", models["depth_model"], "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert all(f"{spoil.__name__}.png" in printed.out for spoil in (text_renamed, truncated_jpeg, huge_header))
    assert "4 depth maps" in printed.out and printed.err == ""
    made = {p.name.removesuffix("_depth.npz") for p in (tmp_path / "out").glob("*.npz")}
    assert len(made) == 4 and {"one", "same_jpg"} <= made


def test_generate_writes_pictures_and_a_result(photo, models, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["generate", str(photo), "--prompt", "red clay", "--model", models["model"], "--out", str(out)]
    argv += ["--depth-model", models["depth_model"], "--steps", "2", "--num-images", "2", "--seed", "5"]
    assert main([*argv, "--negative-prompt", "blue", "--guidance-scale", "2", "--near", "0.1", "--invert"]) == 0
    wanted = {"depth.png", "depth_color.png", "image_0.png", "image_1.png", "comparison.png", "result.json"}
    assert {p.name for p in out.iterdir()} == wanted
    result = json.loads((out / "result.json").read_text())
    assert "red clay" in json.dumps(result) and len(result) >= 5
    first = (out / "image_0.png").read_bytes()
    assert first != (out / "image_1.png").read_bytes()
    width, height = Image.open(out / "image_0.png").size
    assert width % 8 == height % 8 == 0 and abs(width / height - 160 / 120) < 0.15
    assert main([*argv, "--negative-prompt", "blue", "--guidance-scale", "2", "--near", "0.1", "--invert"]) == 0
    assert (out / "image_0.png").read_bytes() == first
    assert main([*argv, "--num-images", "1"]) == 0
    assert (out / "image_0.png").read_bytes() != first


def test_generate_takes_a_depth_file_and_a_config(photo, models, tmp_path):
    folder = str(tmp_path / "depth")
    assert main(["estimate", str(photo), "--depth-model", models["depth_model"], "--out", folder]) == 0
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {models['model']}\nsteps: 1\nprompt: red\ndepth: {folder}/photo_depth.png\n")
    with config.open("a") as file:
        file.write("num_images: 2\n")
    argv = ["generate", "--config", str(config), "--depth-model", models["depth_model"], "--num-images", "1"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "image_0.png").is_file() and not (tmp_path / "out" / "image_1.png").exists()


def test_scenes_are_a_function_of_seed_and_index(tmp_path, capsys):
    for name, seed, count in (("a", 1, 2), ("b", 1, 3), ("c", 2, 2)):
        argv = ["scenes", "--out", str(tmp_path / name), "--count", str(count), "--seed", str(seed), "--size", "32"]
        assert main(argv) == 0
    pictures = {name: [p.read_bytes() for p in sorted((tmp_path / name).glob("*.png"))] for name in "abc"}
    assert [len(pictures[name]) for name in "abc"] == [2, 3, 2]
    assert pictures["a"] == pictures["b"][:2] and pictures["a"] != pictures["c"]
    assert (tmp_path / "a" / "index.json").is_file()


def test_help_is_fast_and_lists_every_command():
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "ui.cli", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and all(command in done.stdout for command in COMMANDS)
    assert time.monotonic() - start < 2, "half a second on a quiet machine"


@pytest.mark.parametrize("command", ["demo", "generate", "estimate", "scenes"])
def test_help_of_a_command_explains_its_flags(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0 and "--out" in text and "default" in text and "--config" in text


def test_a_failed_run_is_one_line_and_status_1(monkeypatch, photo, models, tmp_path, capsys):
    from depth_model import DepthEstimator

    def fail(*args, **kwargs):
        raise MemoryError("no memory left\nat all")

    monkeypatch.setattr(DepthEstimator, "__call__", fail)
    argv = ["estimate", str(photo), "--depth-model", models["depth_model"], "--out", str(tmp_path / "out")]
    assert main(argv) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "no memory left" in lines[0] and "--debug" in lines[0]
    assert main([*argv, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupting_ends_with_130(monkeypatch, photo, models, tmp_path, capsys):
    from depth_model import DepthEstimator

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(DepthEstimator, "from_pretrained", interrupt)
    assert main(["estimate", str(photo), "--out", str(tmp_path / "out")]) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_words_that_a_small_model_does_not_know_are_one_warning(photo, models, tmp_path, capsys):
    argv = ["generate", str(photo), "--prompt", "red zeppelin", "--model", models["model"], "--steps", "1"]
    assert main([*argv, "--depth-model", models["depth_model"], "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("depth-control: warning: ") and "zeppelin" in lines[0]


@pytest.mark.skipif(not (EMBEDDED / "model_index.json").is_file(), reason="the embedded models are not made yet")
def test_demo_does_the_main_job(tmp_path, no_network, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    assert Image.open(out / "depth.png").mode == "I;16"
    pictures = [Image.open(out / f"image_{i}.png") for i in range(3)]
    assert all(min(picture.size) >= 128 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 3
    assert Image.open(out / "comparison.png").width >= 5 * pictures[0].width
    assert len(json.loads((out / "result.json").read_text())["images"]) == 3
    printed = capsys.readouterr()
    assert "comparison.png" in printed.out
    # On a slow machine there are lines of progress.
    assert all(" steps, " in line for line in printed.err.splitlines())
