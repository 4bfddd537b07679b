"""The training cache."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from depth_control import to_control
from depth_model import DepthEstimator, DepthMap
from depth_model.data.labeled import PairFolder
from depth_model.errors import InputError
from tests.tiny import save_estimator
from train_controlnet.prepare import Cache, main


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.safetensors")}


def test_the_cache_holds_what_the_models_make(cache_config):
    cache, pairs = Cache(cache_config.out, seed=0), PairFolder(cache_config.scenes, scenes=True)
    vae = AutoencoderTiny.from_pretrained(cache_config.vae)
    assert len(cache.captions) == 6 and cache.latent_channels == 4
    sizes = {tuple(tensors["controls"].shape[1:]): (tensors, captions) for tensors, captions in cache.sizes}
    assert set(sizes) == {(32, 32), (32, 48)}
    tensors, captions = sizes[32, 48]
    pair = pairs.read(3)  # the second of its size
    assert captions[1] == pairs.rows[3]["caption"]
    control = to_control(DepthMap(pair.disparity, "disparity"))
    np.testing.assert_allclose(tensors["controls"][1].float(), control, atol=1e-3)
    for mirrored in (0, 1):
        image = (pair.image[:, ::-1] if mirrored else pair.image).copy()
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            latents = vae.encode(pixels).latents[0] * vae.config.scaling_factor
        torch.testing.assert_close(tensors["latents"][1, mirrored].float(), latents, atol=5e-3, rtol=5e-3)


def test_a_batch_is_a_function_of_seed_and_step(cache_config):
    cache = Cache(cache_config.out, seed=0)
    latents, controls, captions = cache.batch(7, 5)
    assert len(captions) == 5 and latents.dtype == controls.dtype == torch.float32
    assert latents.shape[:2] == (5, 4) and controls.shape[:2] == (5, 3)
    assert controls.shape[2] == 8 * latents.shape[2] and controls.shape[3] == 8 * latents.shape[3]
    assert 0 <= controls.min() and controls.max() <= 1 and (controls[:, 0] == controls[:, 2]).all()
    again = Cache(cache_config.out, seed=0).batch(7, 5)
    assert torch.equal(latents, again[0]) and torch.equal(controls, again[1]) and captions == again[2]
    assert {tuple(cache.batch(step, 5)[0].shape) for step in range(12)} == {(5, 4, 4, 4), (5, 4, 4, 6)}
    assert any(cache.batch(7, 5)[2] != Cache(cache_config.out, seed).batch(7, 5)[2] for seed in (1, 2, 3))


def test_latents_and_conditions_are_mirrored_together(cache_config):
    cache = Cache(cache_config.out, seed=0)
    for step in range(6):
        latents, controls, _ = cache.batch(step, 4)
        (tensors,) = [t for t, _ in cache.sizes if t["controls"].shape[1:] == controls.shape[2:]]
        for one, control in zip(latents, controls[:, 0], strict=True):
            i, mirrored = next(
                (i, m) for i in range(3) for m in (0, 1) if torch.equal(tensors["latents"][i, m].float(), one)
            )
            stored = tensors["controls"][i].float()
            assert torch.equal(control, stored.flip(-1) if mirrored else stored)


def test_preparing_again_is_a_no_op_and_an_interrupted_one_goes_on(cache_config, tmp_path):
    config = replace(cache_config, out=tmp_path / "cache")
    shutil.copytree(cache_config.out, config.out)
    before = contents(config.out)
    main(config)
    assert contents(config.out) == before
    (config.out / "32x48.safetensors").unlink()
    (config.out / "captions.json").unlink()
    with pytest.raises(InputError, match="no complete cache"):
        Cache(config.out, 0)
    main(config)
    after = contents(config.out)
    assert after["32x32.safetensors"] == before["32x32.safetensors"]
    assert after["32x48.safetensors"][0] == before["32x48.safetensors"][0]


def test_conditions_come_from_the_estimator_that_is_named(cache_config, tmp_path):
    model = save_estimator(tmp_path / "estimator")
    main(replace(cache_config, depth_model=str(model), out=tmp_path / "cache"))
    pairs = PairFolder(cache_config.scenes)
    control = to_control(DepthEstimator.from_pretrained(model)(pairs.read(0).image))
    (tensors,) = [t for t, _ in Cache(tmp_path / "cache", 0).sizes if t["controls"].shape[1:] == (32, 32)]
    np.testing.assert_allclose(tensors["controls"][0].float(), control, atol=2e-3)
    with pytest.raises(InputError, match="holds a cache of other data or models"):
        main(replace(cache_config, depth_model=str(model)))


def test_a_cache_of_other_scenes_is_refused(cache_config, scenes, tmp_path):
    other = tmp_path / "scenes"
    shutil.copytree(scenes, other)
    rows = json.loads((other / "index.json").read_text())
    (other / "index.json").write_text(json.dumps(rows[:4]))
    with pytest.raises(InputError, match="holds a cache of other data or models"):
        main(replace(cache_config, scenes=other))


def test_wrong_folders_are_refused(cache_config, scenes, tmp_path):
    with pytest.raises(InputError, match="--vae .*: no autoencoder there"):
        main(replace(cache_config, vae=tmp_path))
    with pytest.raises(InputError, match="index.json: cannot be read"):
        main(replace(cache_config, scenes=tmp_path))
    other = tmp_path / "scenes"
    shutil.copytree(scenes, other)
    rows = [{k: v for k, v in row.items() if k != "caption"} for row in json.loads((other / "index.json").read_text())]
    (other / "index.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="every row needs a caption"):
        main(replace(cache_config, scenes=other, out=tmp_path / "cache"))
    with pytest.raises(InputError, match="no complete cache .*run depth-control prepare-controlnet"):
        Cache(tmp_path / "nothing", 0)
