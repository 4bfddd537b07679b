"""The estimator on tiny random models of the real classes."""

import json
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from depth_model import DepthEstimator, DepthMap
from depth_model.errors import InputError
from depth_model.modeling import build_model


@pytest.fixture(scope="module")
def estimator():
    torch.manual_seed(0)
    return DepthEstimator(build_model("tiny"), device="cpu")


@pytest.fixture(scope="module")
def folder(estimator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    estimator.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def photo(height=60, width=90, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def test_folder_round_trip_and_stock_loader(estimator, folder):
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    again = DepthEstimator.from_pretrained(folder, device="cpu")
    np.testing.assert_array_equal(again(photo()).values, estimator(photo()).values)
    stock = AutoModelForDepthEstimation.from_pretrained(folder).eval()
    pixels = estimator.preprocess(photo())
    with torch.inference_mode():
        np.testing.assert_array_equal(stock(pixels).predicted_depth, estimator.predict_tensor(pixels))
    processor = AutoImageProcessor.from_pretrained(folder)
    stock_pixels = processor(images=photo(120, 180), return_tensors="pt")["pixel_values"]
    ours = estimator.preprocess(photo(120, 180))
    assert stock_pixels.shape == ours.shape and (stock_pixels - ours).abs().mean() < 0.05


def test_map_has_the_size_of_the_image(estimator):
    for height, width in ((1, 1), (1, 300), (300, 1), (97, 33), (112, 112)):
        depth = estimator(photo(height, width))
        assert isinstance(depth, DepthMap) and depth.kind == "disparity" and depth.valid is None
        assert depth.values.shape == (height, width) and depth.values.dtype == np.float32
        assert np.isfinite(depth.values).all() and depth.values.min() >= 0


def test_map_depends_on_the_image_and_is_upright(estimator, tmp_path):
    one, other = estimator([photo(seed=1), photo(seed=2)])
    assert np.abs(one.values - other.values).max() > 1e-3
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(60, 90).save(tmp_path / "turned.png", exif=exif)
    assert estimator(tmp_path / "turned.png").values.shape == (90, 60)


def test_list_gives_a_list_in_order_whatever_the_sizes(estimator, tmp_path):
    photo(50, 70, 5).save(tmp_path / "a.png")
    images = [photo(seed=s) for s in range(10)] + [tmp_path / "a.png", np.asarray(photo(40, 40)), photo(seed=3)]
    maps = estimator(images)
    assert len(maps) == len(images)
    for image, depth in zip(images, maps, strict=True):
        np.testing.assert_allclose(depth.values, estimator(image).values, atol=1e-5)
    assert estimator([]) == []


def test_predict_tensor_output_can_enter_training(estimator):
    depth = estimator.predict_tensor(torch.randn(2, 3, 56, 70))
    assert depth.shape == (2, 56, 70) and depth.dtype == torch.float32 and not depth.requires_grad
    weight = torch.ones(1, requires_grad=True)
    (depth * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01), (torch.float16, 0.01)])
def test_half_precision(estimator, folder, dtype, tolerance, tmp_path):
    half = DepthEstimator.from_pretrained(folder, device="cpu", dtype=dtype)
    depth = half(photo())
    assert depth.values.dtype == np.float32
    np.testing.assert_allclose(depth.values, estimator(photo()).values, atol=tolerance)
    half.save_pretrained(tmp_path)
    assert {w.dtype for w in load_file(tmp_path / "model.safetensors").values()} == {half.dtype}
    np.testing.assert_allclose(DepthEstimator.from_pretrained(tmp_path)(photo()).values, depth.values, atol=tolerance)


def test_metric_model_gives_metres(tmp_path):
    torch.manual_seed(1)
    estimator = DepthEstimator(build_model("tiny", depth_estimation_type="metric", max_depth=20))
    estimator.save_pretrained(tmp_path)
    depth = DepthEstimator.from_pretrained(tmp_path)(photo())
    assert depth.kind == "metric" and 0 < depth.values.min() and depth.values.max() < 20


def test_published_preprocessing_when_the_folder_says_nothing(copy):
    fields = json.loads((copy / "preprocessor_config.json").read_text())
    assert fields["antialias"] is True and fields["size"] == {"height": 112, "width": 112}
    del fields["antialias"]
    (copy / "preprocessor_config.json").write_text(json.dumps(fields))
    image = photo(600, 900)
    published = DepthEstimator.from_pretrained(copy).preprocess(image)
    (copy / "preprocessor_config.json").unlink()
    own = DepthEstimator.from_pretrained(copy).preprocess(image)
    assert published.shape == own.shape == (1, 3, 112, 168)
    assert not torch.equal(published, own)


def test_null_max_depth_of_early_releases(copy, estimator):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"max_depth": None}))
    np.testing.assert_array_equal(DepthEstimator.from_pretrained(copy)(photo()).values, estimator(photo()).values)


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def edit_config(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


def edit_weights(change):
    def edit(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def only_pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without("model.safetensors"), "no weights"),
        (without("config.json"), "no config.json"),
        (only_pickled, "no weights"),
        (truncate, "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("["), r"preprocessor_config\.json"),
        (lambda folder: (folder / "preprocessor_config.json").write_text('{"size": 1}'), r"preprocessor_config\.json"),
        (edit_config(model_type="dpt"), "dpt"),
        (edit_config(backbone_config={"model_type": "timm_backbone"}), "dinov2"),
        (edit_config(fusion_hidden_size=32), "cannot be loaded|wrong"),
        (edit_weights(lambda w: w.pop("head.conv1.weight")), r"head\.conv1\.weight"),
        (edit_weights(lambda w: w.update(extra=torch.zeros(2))), "extra"),
        (edit_weights(lambda w: w["head.conv1.weight"].fill_(float("nan"))), "NaN"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(copy, capfd, damage, reason):
    damage(copy)
    with pytest.raises(InputError, match=reason) as caught:
        DepthEstimator.from_pretrained(copy)
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_nan_output_is_an_error(folder):
    estimator = DepthEstimator.from_pretrained(folder)
    with torch.no_grad():
        estimator.model.head.conv3.bias.fill_(float("inf"))
    with pytest.raises(RuntimeError, match="NaN or infinity"):
        estimator(photo())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"name_or_path": "no-such-thing"}, "no such file or folder"),
        ({"name_or_path": "../no/such"}, "no such file or folder"),
        ({"name_or_path": "models/absent.pth"}, r"models/absent\.pth: no such file"),
        ({"device": "warp"}, "warp"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"dtype": "int8"}, "int8"),
        ({"dtype": torch.int8}, "int8"),
        ({"preset": "small-v1"}, "preset"),
    ],
)
def test_wrong_requests(folder, arguments, reason):
    with pytest.raises(InputError, match=reason):
        DepthEstimator.from_pretrained(**{"name_or_path": folder} | arguments)


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"model\.onnx"):
        DepthEstimator.from_pretrained(tmp_path / "model.onnx")


@pytest.mark.parametrize("answers", ["refuses", pytest.param("is silent", marks=pytest.mark.slow)])
def test_unreachable_hub_ends_soon_and_names_the_repository(monkeypatch, answers):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers == "is silent":
            server.listen(50)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(InputError, match=r"some-org/some-model.*cannot be reached.*embedded"):
            DepthEstimator.from_pretrained("some-org/some-model")
        assert time.monotonic() - start < 30


def test_package_import_needs_no_torch():
    code = "import depth_model, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
