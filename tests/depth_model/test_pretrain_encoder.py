"""The encoder of the CPU recipe."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from depth_model.encoder import initialise_from_encoder, load_encoder
from depth_model.errors import InputError
from depth_model.modeling import build_model
from depth_model.pretrain_encoder import Config, main
from tests.depth_model.conftest import rows


@pytest.fixture
def config(scenes, tmp_path):
    return Config(scenes=scenes, out=tmp_path / "run", lower_bound=28, steps=4, batch=2, save_every=2, log_every=1)


def test_it_goes_on_bit_for_bit_and_gives_an_encoder(config, tmp_path):
    main(config)
    killed = tmp_path / "killed"
    shutil.copytree(config.out, killed)
    shutil.rmtree(killed / "checkpoints" / "step-00000004")
    main(replace(config, out=killed, resume="must"))
    one, two = (load_file(out / "model" / "model.safetensors") for out in (config.out, killed))
    assert all(torch.equal(one[name], two[name]) for name in one) and rows(config.out) == rows(killed)
    model = build_model("tiny")
    initialise_from_encoder(model, load_encoder(str(config.out / "model")))
    assert {"loss", "accuracy"} <= rows(config.out)[0].keys()


def test_scenes_without_labels_are_refused(config, tmp_path):
    from tests.depth_model.test_labeled import write_pairs

    with pytest.raises(InputError, match="no class labels"):
        main(replace(config, scenes=write_pairs(tmp_path / "pairs")))


@pytest.mark.slow
def test_it_learns(config):
    main(replace(config, steps=150, batch=8, log_every=10, save_every=150))
    log = rows(config.out)
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
