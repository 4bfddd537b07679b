"""A few small scenes with an autoencoder and a cache, made once by the project's own stages."""

import pytest

from depth_model.data.scenes import write_scenes
from train_controlnet import autoencoder, base, prepare


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    list(write_scenes(folder, 6, seed=1, size=32, aspects=(1.0, 1.5)))
    return folder


@pytest.fixture(scope="session")
def autoencoder_config(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("autoencoder") / "run"
    return autoencoder.Config(
        images=scenes, out=out, channels=4, latent_channels=4, crop=16, steps=4, batch=2, save_every=2, log_every=1
    )


@pytest.fixture(scope="session")
def vae(autoencoder_config):
    autoencoder.main(autoencoder_config)
    return autoencoder_config.out / "model"


@pytest.fixture(scope="session")
def cache_config(scenes, vae, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "cache"
    config = prepare.Config(scenes=scenes, vae=vae, depth_model="exact", out=out)
    prepare.main(config)
    return config


@pytest.fixture(scope="session")
def base_config(cache_config, vae, tmp_path_factory):
    return base.Config(
        cache=cache_config.out,
        vae=vae,
        out=tmp_path_factory.mktemp("base") / "run",
        channels=(32, 32),
        text_width=16,
        condition_channels=(4, 4, 8, 8),
        control_share=0.6,
        coarsest=4,
        steps=4,
        batch=3,
        warmup=1,
        save_every=2,
        log_every=1,
    )


@pytest.fixture(scope="session")
def base_model(base_config):
    base.main(base_config)
    return base_config.out / "model"
