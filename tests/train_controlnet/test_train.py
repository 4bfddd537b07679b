"""Training of a ControlNet on a frozen base."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UNet2DConditionModel

from depth_model.errors import InputError
from tests.train_controlnet.runs import assert_same_run, killed_at, rows, same
from train_controlnet.train import Config, load_base, main


@pytest.fixture(scope="module")
def config(base_model, cache_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("controlnet") / "run"
    return Config(
        base=base_model, cache=cache_config.out, out=out, steps=4, batch=2, warmup=1, save_every=2, log_every=1
    )


@pytest.fixture(scope="module")
def trained(config):
    frozen = (config.base / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    main(config)
    assert (config.base / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == frozen
    return config.out


def test_a_killed_run_goes_on_bit_for_bit(config, trained, tmp_path):
    killed = killed_at(trained, tmp_path / "killed", 2, 4)
    main(replace(config, out=killed, resume="must"))
    assert_same_run(trained, killed, 4)
    file = "model/diffusion_pytorch_model.safetensors"
    assert same(trained / file, killed / file) and [row["step"] for row in rows(killed)] == [1, 2, 3, 4]
    with pytest.raises(InputError, match="batch: the run was started with 2, now it is 4"):
        main(replace(config, out=killed, batch=4))


def test_the_trained_controlnet_works_in_stock_diffusers(config, trained):
    controlnet = ControlNetModel.from_pretrained(trained / "model", dtype=torch.float32)
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        config.base, controlnet=controlnet, dtype=torch.float32, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    depth = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    draws = {"num_inference_steps": 2, "output_type": "np", "height": 32, "width": 32}
    image = pipe("gold", image=depth, generator=torch.manual_seed(0), **draws).images[0]
    assert image.shape == (32, 32, 3) and np.isfinite(image).all()


def test_training_moves_the_controlnet(config, trained):
    before = ControlNetModel.from_pretrained(config.base / "controlnet", dtype=torch.float32).state_dict()
    after = ControlNetModel.from_pretrained(trained / "model", dtype=torch.float32).state_dict()
    assert sum(not torch.equal(before[name], after[name]) for name in before) > len(before) // 2


def test_a_run_starts_from_the_bases_own_controlnet_or_from_its_unet(config, tmp_path):
    own = ControlNetModel.from_pretrained(config.base / "controlnet", dtype=torch.float32)
    pipeline, start = load_base(config.base, from_base=True)
    assert torch.equal(start.conv_in.weight, own.conv_in.weight)
    assert isinstance(pipeline.unet, UNet2DConditionModel) and pipeline.unet.dtype == torch.float32
    for folder, from_base in ((config.base, False), (shutil.copytree(config.base, tmp_path / "base"), True)):
        if from_base:
            shutil.rmtree(folder / "controlnet")
        _, start = load_base(folder, from_base)
        assert torch.equal(start.conv_in.weight, pipeline.unet.conv_in.weight)
        assert all(p.abs().sum() == 0 for p in start.controlnet_down_blocks.parameters())


def test_wrong_folders_are_refused(config, tmp_path):
    with pytest.raises(InputError, match="--base .*: no model_index.json there"):
        main(replace(config, base=tmp_path, out=tmp_path / "run"))
    with pytest.raises(InputError, match="no complete cache"):
        main(replace(config, cache=tmp_path, out=tmp_path / "run"))
