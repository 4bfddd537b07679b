"""A few small scenes, their pictures as an unlabelled set, a teacher and a frozen encoder, made once."""

import json

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from depth_model.data.scenes import write_scenes
from depth_model.engine import label
from tests.tiny import save_estimator


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    list(write_scenes(folder, 6, seed=1, size=64))
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Seven pictures in a tree of folders, and a file that is none."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    list(write_scenes(folder / "b", 7, seed=2, size=64, aspects=(1.0, 1.5)))
    for file in [*(folder / "b").glob("*.npz"), folder / "b" / "index.json"]:
        file.unlink()
    (folder / "a.jpg").write_text("not a picture")
    return folder


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    return save_estimator(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="session")
def labels(photos, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("labels") / "labels"
    label.main(label.Config(images=f"images={photos}", teacher=str(teacher), out=out, per_shard=3))
    return out


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A random DINOv2 of the size of `tiny`."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("models") / "encoder"
    sizes = {"hidden_size": 192, "num_hidden_layers": 8, "num_attention_heads": 3, "image_size": 112}
    Dinov2Model(Dinov2Config(**sizes, patch_size=14)).save_pretrained(folder)
    return folder


def rows(out):
    """The log of a run without the measured speed."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]
