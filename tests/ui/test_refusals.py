"""Wrong requests: each ends with status 2 and one clear line."""

import os
import pickle
import time
from pathlib import Path

import pytest
import torch

from tests.ui.spoil import absent, huge_header, text_renamed, truncated_jpeg
from ui.cli import main


def refused(argv: list, capsys) -> str:
    """Run a wrong request and return its one line."""
    assert main([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("depth-control: ") and captured.out == ""
    return lines[0]


BAD_FILES = [text_renamed, truncated_jpeg, huge_header, absent]


@pytest.mark.parametrize("command", ["estimate", "generate"])
@pytest.mark.parametrize("spoil", BAD_FILES, ids=lambda spoil: spoil.__name__)
def test_a_bad_photo_is_named(command, spoil, tmp_path, models, capsys):
    spoil(tmp_path / "bad.png")
    argv = [command, tmp_path / "bad.png", "--depth-model", models["depth_model"], "--out", tmp_path / "out"]
    argv += ["--prompt", "red clay", "--model", models["model"]] if command == "generate" else []
    assert "bad.png" in refused(argv, capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt", ""], ["--prompt"]),
        (["--prompt", "  "], ["--prompt"]),
        (["--control-scale", "nan"], ["--control-scale"]),
        (["--guidance-scale", "inf"], ["--guidance-scale"]),
        (["--steps", "0"], ["--steps"]),
        (["--steps", "many"], ["--steps", "'many'"]),
        (["--num-images", "0"], ["--num-images"]),
        (["--size", "100x"], ["--size"]),
        (["--near", "0.8", "--far", "0.2"], ["--near"]),
        (["--gamma", "-1"], ["--gamma"]),
        (["--control-start", "0.9", "--control-end", "0.1"], ["--control-start"]),
        (["--device", "toaster"], ["toaster"]),
        (["--dtype", "float7"], ["float7"]),
        (["--depth-kind", "inverse"], ["--depth-kind", "disparity"]),
        (["--step", "3"], ["--step", "--steps"]),
        (["--depth", "absent.png"], ["absent.png"]),
        (["--config", "absent.yaml"], ["absent.yaml"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_flag_of_generate_is_named(flags, words, photo, models, tmp_path, capsys):
    flags = flags if "--prompt" in flags else ["--prompt", "red clay", *flags]
    line = refused(["generate", photo, "--model", models["model"], "--out", tmp_path / "out", *flags], capsys)
    assert all(word in line for word in words), line


def test_generate_needs_a_photo_or_a_depth(models, tmp_path, capsys):
    line = refused(["generate", "--prompt", "red", "--model", models["model"], "--out", tmp_path / "out"], capsys)
    assert "--depth" in line


@pytest.mark.parametrize("flag", ["--model", "--controlnet", "--depth-model"])
@pytest.mark.parametrize("name", ["no-such-org/no-such-model", "no-such-model"])
def test_an_unknown_model_without_network_says_what_to_pass(flag, name, photo, models, no_network, tmp_path, capsys):
    # The last --model counts, so the tiny one serves where another flag is wrong.
    argv = ["generate", photo, "--prompt", "red", "--model", models["model"], "--out", tmp_path / "out", flag, name]
    start = time.monotonic()
    line = refused(argv, capsys)
    assert time.monotonic() - start < 20
    assert name in line and "folder" in line and "embedded" in line


def test_estimate_with_an_unknown_model_without_network(photo, no_network, tmp_path, capsys):
    argv = ["estimate", photo, "--depth-model", "no-such-org/no-such-model", "--out", tmp_path / "out"]
    assert "no-such-org/no-such-model" in refused(argv, capsys)


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("container", ["zip", "plain"])
def test_a_pickle_payload_is_never_run(container, photo, tmp_path, capsys):
    canary, weights = tmp_path / "canary", tmp_path / "depth_anything_v2_vits.pth"
    if container == "zip":
        torch.save({"pretrained.cls_token": Payload(canary)}, weights)
    else:
        weights.write_bytes(pickle.dumps(Payload(canary)))
    assert weights.name in refused(["estimate", photo, "--depth-model", weights, "--out", tmp_path / "out"], capsys)
    assert not canary.exists()


def test_a_folder_without_weights_is_named(photo, models, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in refused(["estimate", photo, "--depth-model", empty, "--out", tmp_path / "out"], capsys)
    argv = ["generate", photo, "--prompt", "red", "--out", tmp_path / "out", "--depth-model", models["depth_model"]]
    assert "empty" in refused([*argv, "--model", empty], capsys)
    (empty / "config.json").write_text((Path(models["depth_model"]) / "config.json").read_text())
    line = refused(["estimate", photo, "--depth-model", empty, "--out", tmp_path / "out"], capsys)
    assert "empty" in line and "weights" in line


def test_an_unwritable_out_is_named(photo, models, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = ["estimate", photo, "--depth-model", models["depth_model"], "--out", tmp_path / "file" / "out"]
    assert "--out" in refused(argv, capsys)


def test_backends_of_later_versions_are_refused(photo, capsys):
    line = refused(["estimate", photo, "--backend", "onnx"], capsys)
    assert "onnx" in line and "torch" in line


@pytest.mark.parametrize("command", ["estimate", "generate", "scenes", "demo"])
def test_an_unknown_flag_names_the_nearest(command, capsys):
    line = refused([command, "--ouut", "x"], capsys)
    assert "--ouut" in line and "--out" in line


def test_an_unknown_command_names_the_nearest(capsys):
    assert "'generate'" in refused(["generat", "photo.jpg"], capsys)


def test_estimate_without_photos(tmp_path, capsys):
    assert "image" in refused(["estimate"], capsys)
    (tmp_path / "none").mkdir()
    assert "none" in refused(["estimate", tmp_path / "none"], capsys)


@pytest.mark.parametrize("flags", [["--count", "0"], ["--count", "2", "--size", "3"]])
def test_wrong_scenes_are_refused(flags, tmp_path, capsys):
    assert flags[-2] in refused(["scenes", "--out", tmp_path / "out", *flags], capsys)
