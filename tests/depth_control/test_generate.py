import hashlib
import json
import shutil
import time
import warnings

import numpy as np
import pytest
from PIL import Image

import depth_control.presets
from depth_control import generate, load_pipeline
from depth_model import DepthMap
from depth_model.errors import InputError
from tests import tiny

DEPTH = np.add.outer(np.linspace(0, 1, 48), np.linspace(0, 1, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    folders = {"model": tiny.save_pipeline(root / "pipe"), "depth_model": tiny.save_estimator(root / "depth")}
    return {name: str(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray((np.random.default_rng(0).random((48, 64, 3)) * 255).astype(np.uint8)).save(path)
    return path


def silent(*_):
    pass


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_everything_is_written(photo, models, tmp_path):
    steps = []
    report = generate(
        photo, ["red clay", "blue ice"], out=tmp_path, steps=3, progress=lambda *a: steps.append(a), **models
    )
    depth = Image.open(tmp_path / "depth.png")
    assert depth.mode.startswith("I;16") and depth.size == (64, 48)
    assert Image.open(tmp_path / "depth_color.png").size == (64, 48)
    pictures = [Image.open(tmp_path / f"image_{i}.png") for i in range(2)]
    assert {picture.size for picture in pictures} == {(40, 32)}
    strip = Image.open(tmp_path / "comparison.png")
    assert strip.width == 4 * 40 and strip.height >= 32
    np.testing.assert_array_equal(np.asarray(strip)[-32:, -40:], np.asarray(pictures[1]))
    assert report == json.loads((tmp_path / "result.json").read_text())
    assert report["finished"] and report["prompt"] == ["red clay", "blue ice"] and report["seed"] == 0
    assert report["models"]["depth_model"] == report["judge"] == models["depth_model"]
    assert set(report["timings"]) == {"load", "depth", "total"} and report["versions"]["torch"]
    assert [entry["seed"] for entry in report["images"]] == [0, 1]
    for entry in report["images"]:
        assert set(entry["fidelity"]) == {"structure", "detail", "spearman", "rmse"}
    assert steps[-1][:2] == (6, 6) and len(steps) == 6
    assert not list(tmp_path.glob(".*"))


def test_pictures_depend_on_seed_and_place_only(photo, models, tmp_path):
    for name, options in {"a": {"num_images": 2}, "b": {"num_images": 2}, "c": {"seed": 1}}.items():
        generate(photo, "red clay", out=tmp_path / name, steps=2, progress=silent, **options, **models)
    for file in ("image_0.png", "image_1.png", "depth.png", "depth_color.png", "comparison.png"):
        assert digest(tmp_path / "a" / file) == digest(tmp_path / "b" / file)
    assert digest(tmp_path / "a" / "image_0.png") != digest(tmp_path / "a" / "image_1.png")
    assert digest(tmp_path / "c" / "image_0.png") == digest(tmp_path / "a" / "image_1.png")


def test_depth_file_instead_of_a_photo(models, tmp_path):
    metres = 1 / (DEPTH + 0.5)
    DepthMap(metres, "metric").save_npz(tmp_path / "metric.npz")
    Image.fromarray(np.round(metres * 1000).astype(np.uint16)).save(tmp_path / "metric.png")
    np.save(tmp_path / "disparity.npy", DEPTH)
    options = {"steps": 2, "progress": silent, "size": "64x64"} | models
    cases = {"metric.npz": None, "metric.png": "metric", "disparity.npy": None}
    for file, kind in cases.items():
        generate(prompt="red", depth=tmp_path / file, depth_kind=kind, out=tmp_path / file[-3:], **options)
    pictures = [np.asarray(Image.open(tmp_path / file[-3:] / "image_0.png")).astype(int) for file in cases]
    assert pictures[0].shape == (64, 64, 3)
    assert np.abs(pictures[0] - pictures[2]).max() <= 1 and np.abs(pictures[1] - pictures[2]).max() <= 8
    depth = np.asarray(Image.open(tmp_path / "npz" / "depth.png"))
    assert depth[-1, -1] > depth[0, 0], "near must be white for metric maps too"


def test_depth_png_can_be_fed_back(photo, models, tmp_path):
    options = {"steps": 2, "progress": silent, "near": 0.2, "gamma": 1.5} | models
    generate(photo, "red", out=tmp_path / "a", **options)
    generate(photo, "red", depth=tmp_path / "a" / "depth.png", out=tmp_path / "b", **options)
    one, two = (np.asarray(Image.open(tmp_path / x / "image_0.png")).astype(int) for x in "ab")
    assert np.abs(one - two).max() <= 1


def test_what_is_made_survives_a_failure(photo, models, tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "image_7.png")

    def fail_in_the_second(done, total, text):
        if done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(photo, "red", out=tmp_path, num_images=3, steps=2, progress=fail_in_the_second, **models)
    assert {p.name for p in tmp_path.iterdir()} == {
        *("image_0.png", "image_7.png", "depth.png", "depth_color.png", "comparison.png", "result.json")
    }
    report = json.loads((tmp_path / "result.json").read_text())
    assert not report["finished"] and [entry["file"] for entry in report["images"]] == ["image_0.png"]


def test_a_second_judge_can_measure(photo, models, tmp_path):
    report = generate(photo, "red", out=tmp_path, steps=1, progress=silent, judge=models["depth_model"], **models)
    assert report["judge"] == models["depth_model"] and np.isfinite(report["images"][0]["fidelity"]["structure"])


def test_words_outside_a_small_vocabulary_are_named(photo, models, tmp_path):
    with pytest.warns(UserWarning, match="zebra, jungle; it knows: .*clay.*red"):
        generate(photo, "Red zebra on a jungle", out=tmp_path, steps=1, progress=silent, **models)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        generate(photo, "red clay, blue ICE on a room.", out=tmp_path, steps=1, progress=silent, **models)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompt": "  "}, "--prompt"),
        ({"prompt": []}, "--prompt"),
        ({"image": None}, "--depth"),
        ({"image": "no.jpg"}, "no.jpg"),
        ({"depth": "no.png"}, "no.png"),
        ({"depth": np.full((4, 4), np.nan)}, "--depth"),
        ({"depth_kind": "metric"}, "--depth-kind"),
        ({"steps": 0}, "--steps"),
        ({"num_images": 0}, "--num-images"),
        ({"seed": -1}, "--seed"),
        ({"seed": 1.5}, "--seed"),
        ({"control_scale": float("nan")}, "--control-scale"),
        ({"control_scale": -1.0}, "--control-scale"),
        ({"guidance_scale": float("inf")}, "--guidance-scale"),
        ({"control_start": 0.6, "control_end": 0.4}, "--control-start"),
        ({"near": 0.9, "far": 0.1}, "--near"),
        ({"gamma": float("nan")}, "--gamma"),
        ({"size": "100x128"}, "multiples of 8"),
        ({"size": "big"}, "--size"),
        ({"model": "sd99"}, "embedded"),
        ({"device": "abacus"}, "--device"),
        ({"dtype": "int3"}, "--dtype"),
    ],
)
def test_wrong_requests_name_the_flag(photo, models, tmp_path, options, named):
    with pytest.raises(InputError, match=named) as error:
        generate(**{"image": photo, "prompt": "red", "out": tmp_path / "out", **models, **options})
    assert "\n" not in str(error.value)


def test_out_that_is_a_file_is_refused(photo, models):
    with pytest.raises(InputError, match="--out"):
        generate(photo, "red", out=photo, **models)


def test_folders_that_are_incomplete_are_refused(models, tmp_path):
    with pytest.raises(InputError, match="model_index.json"):
        load_pipeline(models["depth_model"])
    with pytest.raises(InputError, match="safetensors"):
        load_pipeline(models["model"], controlnet=models["depth_model"])
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(InputError, match="FluxPipeline"):
        load_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(InputError, match="--controlnet"):
        load_pipeline(str(tmp_path))


def test_pickled_weights_are_never_read(models, tmp_path):
    folder = shutil.copytree(models["model"], tmp_path / "pipe")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match="safetensors"):
        load_pipeline(str(folder), depth_model=models["depth_model"])


@pytest.mark.parametrize("part", ["name", "controlnet"])
def test_unreachable_repository_is_named_quickly(models, part, monkeypatch, tmp_path):
    # A port where nothing listens stands for a machine without a network.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(InputError, match="some-body/some-thing.*(folder|embedded)"):
        load_pipeline(**{"name": models["model"], part: "some-body/some-thing"})
    assert time.monotonic() - start < 15


def test_folder_says_its_guidance_and_brings_its_estimator(models, tmp_path):
    pipe = load_pipeline(models["model"], depth_model=models["depth_model"])
    folder = tmp_path / "all"
    pipe.save_pretrained(folder)
    (folder / depth_control.presets.DEFAULTS_FILE).write_text('{"guidance_scale": 3.0}')
    report = generate(depth=DEPTH, prompt="red", out=tmp_path / "out", steps=1, progress=silent, model=str(folder))
    assert report["settings"]["guidance_scale"] == 3.0
    assert report["models"]["depth_model"] == f"{folder}/depth_estimator"
