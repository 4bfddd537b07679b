"""Original checkpoints are compared with a second, independent writing of the authors' network in plain functions."""

import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from depth_model import DepthEstimator
from depth_model.errors import InputError
from depth_model.modeling import version_of
from depth_model.original import load_original

WIDTH, LAYERS, HEADS, FUSION, NECK = 384, 12, 6, 64, (48, 96, 192, 384)


def original_weights():
    """ViT-S weights under the authors' names, random but of a size that keeps the signal alive."""
    generator = torch.Generator().manual_seed(3)
    state = {}

    def add(name, *shape, fan_in=None, bias=True):
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (fan_in or np.prod(shape[1:])) ** -0.5
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0] if fan_in is None else shape[1], generator=generator) * 0.1

    coarse = torch.randn(1, WIDTH, 5, 5, generator=generator)
    positions = F.interpolate(coarse, size=(37, 37), mode="bicubic").flatten(2).transpose(1, 2)
    state["pretrained.cls_token"] = torch.randn(1, 1, WIDTH, generator=generator)
    state["pretrained.mask_token"] = torch.zeros(1, WIDTH)
    state["pretrained.pos_embed"] = torch.cat([torch.randn(1, 1, WIDTH, generator=generator), positions], dim=1)
    add("pretrained.patch_embed.proj", WIDTH, 3, 14, 14)
    for i in range(LAYERS):
        block = f"pretrained.blocks.{i}"
        for name in (f"{block}.norm1", f"{block}.norm2"):
            state[f"{name}.weight"] = 1 + 0.1 * torch.randn(WIDTH, generator=generator)
            state[f"{name}.bias"] = 0.1 * torch.randn(WIDTH, generator=generator)
        for name in (f"{block}.ls1.gamma", f"{block}.ls2.gamma"):
            state[name] = 0.3 + 0.1 * torch.randn(WIDTH, generator=generator)
        add(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        add(f"{block}.attn.proj", WIDTH, WIDTH)
        add(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH)
        add(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
    state["pretrained.norm.weight"], state["pretrained.norm.bias"] = torch.ones(WIDTH), torch.zeros(WIDTH)
    for i, channels in enumerate(NECK):
        add(f"depth_head.projects.{i}", channels, WIDTH, 1, 1)
        add(f"depth_head.scratch.layer{i + 1}_rn", FUSION, channels, 3, 3, bias=False)
        for unit in (1, 2):
            for conv in (1, 2):
                add(f"depth_head.scratch.refinenet{i + 1}.resConfUnit{unit}.conv{conv}", FUSION, FUSION, 3, 3)
        add(f"depth_head.scratch.refinenet{i + 1}.out_conv", FUSION, FUSION, 1, 1)
    add("depth_head.resize_layers.0", NECK[0], NECK[0], 4, 4, fan_in=NECK[0])
    add("depth_head.resize_layers.1", NECK[1], NECK[1], 2, 2, fan_in=NECK[1])
    add("depth_head.resize_layers.3", NECK[3], NECK[3], 3, 3)
    add("depth_head.scratch.output_conv1", FUSION // 2, FUSION, 3, 3)
    add("depth_head.scratch.output_conv2.0", 32, FUSION // 2, 3, 3)
    add("depth_head.scratch.output_conv2.2", 1, 32, 1, 1)
    return state


def cubic_matrix(size, source):
    """OpenCV's INTER_CUBIC along one axis as a matrix [size, source]."""
    matrix, a = np.zeros((size, source)), -0.75
    for row in range(size):
        centre = (row + 0.5) * source / size - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            d = abs(centre - tap)
            near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            matrix[row, min(max(tap, 0), source - 1)] += near if d <= 1 else far
    return matrix


def original_encoder(state, pixels, taps):
    p = {key.removeprefix("pretrained."): value for key, value in state.items() if key.startswith("pretrained.")}
    height, width = pixels.shape[2] // 14, pixels.shape[3] // 14
    x = F.conv2d(pixels, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=14).flatten(2).transpose(1, 2)
    grid = p["pos_embed"][:, 1:].reshape(1, 37, 37, WIDTH).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((height + 0.1) / 37, (width + 0.1) / 37), mode="bicubic")
    positions = torch.cat([p["pos_embed"][:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    x = torch.cat([p["cls_token"], x], dim=1) + positions
    norm = lambda x, name: F.layer_norm(x, (WIDTH,), p[f"{name}.weight"], p[f"{name}.bias"], 1e-6)  # noqa: E731
    linear = lambda x, name: F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])  # noqa: E731
    features = []
    for i in range(LAYERS):
        b = f"blocks.{i}"
        qkv = linear(norm(x, f"{b}.norm1"), f"{b}.attn.qkv").reshape(1, -1, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-1, -2)) * (WIDTH // HEADS) ** -0.5).softmax(-1) @ v
        mixed = linear(mixed.transpose(1, 2).reshape(1, -1, WIDTH), f"{b}.attn.proj")
        x = x + p[f"{b}.ls1.gamma"] * mixed
        wide = F.gelu(linear(norm(x, f"{b}.norm2"), f"{b}.mlp.fc1"))
        x = x + p[f"{b}.ls2.gamma"] * linear(wide, f"{b}.mlp.fc2")
        if i in taps:
            features.append(norm(x, "norm")[:, 1:].transpose(1, 2).reshape(1, WIDTH, height, width))
    return features


def original_head(state, features):
    p = {key.removeprefix("depth_head."): value for key, value in state.items() if key.startswith("depth_head.")}
    height, width = (14 * side for side in features[0].shape[2:])

    def conv(x, name, **options):
        weight = p[f"{name}.weight"]
        return F.conv2d(x, weight, p.get(f"{name}.bias"), padding=weight.shape[-1] // 2, **options)

    def unit(x, name):
        return x + conv(F.relu(conv(F.relu(x), f"{name}.conv1")), f"{name}.conv2")

    maps = [conv(x, f"projects.{i}") for i, x in enumerate(features)]
    for i, factor in ((0, 4), (1, 2)):
        name = f"resize_layers.{i}"
        maps[i] = F.conv_transpose2d(maps[i], p[f"{name}.weight"], p[f"{name}.bias"], stride=factor)
    maps[3] = conv(maps[3], "resize_layers.3", stride=2)
    maps = [conv(x, f"scratch.layer{i + 1}_rn") for i, x in enumerate(maps)]
    path = None
    for level in (3, 2, 1, 0):
        name = f"scratch.refinenet{level + 1}"
        path = maps[level] if path is None else path + unit(maps[level], f"{name}.resConfUnit1")
        size = maps[level - 1].shape[2:] if level else [2 * side for side in path.shape[2:]]
        path = F.interpolate(unit(path, f"{name}.resConfUnit2"), size=size, mode="bilinear", align_corners=True)
        path = conv(path, f"{name}.out_conv")
    x = conv(path, "scratch.output_conv1")
    x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)
    return F.relu(conv(F.relu(conv(x, "scratch.output_conv2.0")), "scratch.output_conv2.2"))


@torch.inference_mode()
def original_disparity(state, image, version):
    """What the released code computes for a 512 x 384 image, float32 [384, 512]."""
    rgb = np.asarray(image, dtype=np.float64) / 255
    rgb = np.einsum("hy,yxc->hxc", cubic_matrix(518, 384), rgb)
    rgb = np.einsum("wx,hxc->hwc", cubic_matrix(686, 512), rgb)
    rgb = (rgb - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()
    features = original_encoder(state, pixels, (8, 9, 10, 11) if version == "v1" else (2, 5, 8, 11))
    disparity = original_head(state, features)
    resized = F.interpolate(disparity, size=(384, 512), mode="bilinear", align_corners=version == "v2")
    return resized[0, 0].numpy()


@pytest.fixture(scope="module")
def weights():
    return original_weights()


@pytest.fixture(scope="module")
def photo():
    y, x = np.mgrid[:384, :512].astype(np.float32)
    rgb = np.stack([y / 384, x / 512, 0.5 + 0.5 * np.sin(x / 9) * np.cos(y / 14)], axis=-1)
    rgb[(x - 170) ** 2 + (y - 220) ** 2 < 90**2] = (0.8, 0.3, 0.1)
    rgb[60:200, 300:430] *= 0.3
    return Image.fromarray((rgb * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("version", "file"), [("v1", "depth_anything_vits14.pth"), ("v2", "depth_anything_v2_vits.pth")]
)
def test_original_checkpoint_gives_the_original_disparity(tmp_path, weights, photo, version, file):
    expected = original_disparity(weights, photo, version)
    assert expected.std() > 0.05 and (expected > 0).mean() > 0.5, "the comparison itself must mean something"
    torch.save(weights, tmp_path / file)
    depth = DepthEstimator.from_pretrained(tmp_path / file, device="cpu")(photo)
    assert depth.kind == "disparity"
    assert np.corrcoef(depth.values.ravel(), expected.ravel())[0, 1] > 0.999
    assert np.abs(depth.values - expected).mean() < 0.01 * expected.std()


def test_file_name_or_preset_decides_the_version(tmp_path, weights):
    unknown = tmp_path / "mine.pth"
    torch.save(weights, unknown)
    with pytest.raises(InputError, match=r"mine\.pth.*preset='small-v1'"):
        load_original(unknown)
    assert version_of(load_original(unknown, "small-v1").config) == "v1"
    assert version_of(load_original(unknown, "small-v2").config) == "v2"
    with pytest.raises(InputError, match="size small, not base"):
        load_original(unknown, "base-v2")
    with pytest.raises(InputError, match="nonsense"):
        load_original(unknown, "nonsense")


@pytest.mark.parametrize(("scene", "metres"), [("hypersim", 20), ("vkitti", 80)])
def test_metric_release_is_metric(tmp_path, weights, scene, metres):
    path = tmp_path / f"depth_anything_v2_metric_{scene}_vits.pth"
    # As the authors' trainer writes it, and without the weights that no forward pass uses.
    kept = {k: v for k, v in weights.items() if "mask_token" not in k and "refinenet4.resConfUnit1" not in k}
    torch.save({"model": {f"module.{key}": value for key, value in kept.items()}, "epoch": 3}, path)
    config = load_original(path).config
    assert (config.depth_estimation_type, config.max_depth) == ("metric", metres)


class Payload:
    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.filterwarnings("error")
def test_pickle_payload_is_never_run(tmp_path, write):
    path = tmp_path / "depth_anything_v2_vits.pth"
    write({"pretrained.cls_token": Payload(tmp_path / "canary")}, path)
    with pytest.raises(InputError, match=r"depth_anything_v2_vits\.pth"):
        DepthEstimator.from_pretrained(path)
    assert not (tmp_path / "canary").exists()


def drop_one(weights):
    del weights["pretrained.blocks.7.attn.qkv.bias"]


def add_one(weights):
    weights["pretrained.surprise"] = torch.zeros(3)


def reshape_one(weights):
    weights["depth_head.projects.0.weight"] = torch.zeros(5, WIDTH, 1, 1)


def spoil_one(weights):
    weights["pretrained.norm.weight"] = torch.full((WIDTH,), float("nan"))


@pytest.mark.parametrize("damage", [drop_one, add_one, reshape_one, spoil_one])
def test_damaged_checkpoint_is_refused(tmp_path, weights, damage):
    damaged = dict(weights)
    damage(damaged)
    path = tmp_path / "depth_anything_v2_vits.pth"
    torch.save(damaged, path)
    with pytest.raises(InputError, match=r"depth_anything_v2_vits\.pth"):
        load_original(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken zip"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "depth_anything_v2_vits.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"depth_anything_v2_vits\.pth"):
        load_original(path)
    with pytest.raises(InputError, match="no such file"):
        load_original(tmp_path / "absent.pth")
