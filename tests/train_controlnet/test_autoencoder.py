"""The small autoencoder's training."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from depth_model.errors import InputError
from tests.train_controlnet.runs import assert_same_run, killed_at, rows, same
from train_controlnet.autoencoder import Crops, main, reconstruction_loss


def test_reconstruction_loss_by_hand():
    image = torch.zeros(1, 3, 4, 4)
    assert reconstruction_loss(image + 0.5, image).item() == pytest.approx(0.5)
    stripes = torch.tensor([0.0, 1, 0, 1]).expand(1, 3, 4, 4)
    # Half of the pixels are off by 1, and so is every horizontal difference.
    assert reconstruction_loss(stripes, image).item() == pytest.approx(0.5 + 0.5)


def test_crops_are_a_function_of_their_key(tmp_path):
    Image.effect_noise((40, 24), 90).convert("RGB").save(tmp_path / "a.png")
    crops = Crops([tmp_path / "a.png"], 16, seed=0)
    crop = crops[0, 3, 0]
    assert crop.shape == (3, 16, 16) and -1 <= crop.min() < 0 < crop.max() <= 1
    assert torch.equal(crop, Crops([tmp_path / "a.png"], 16, seed=0)[9, 3, 0])
    assert not torch.equal(crop, crops[0, 4, 0])
    with pytest.raises(InputError, match="a.png: .* smaller than --crop 32"):
        Crops([tmp_path / "a.png"], 32, seed=0)[0, 0, 0]


def test_a_killed_run_goes_on_bit_for_bit(autoencoder_config, vae, tmp_path):
    killed = killed_at(autoencoder_config.out, tmp_path / "killed", 2, 4)
    main(replace(autoencoder_config, out=killed, resume="must"))
    assert_same_run(autoencoder_config.out, killed, 4)
    assert same(vae / "diffusion_pytorch_model.safetensors", killed / "model" / "diffusion_pytorch_model.safetensors")
    assert [row["step"] for row in rows(killed)] == [1, 2, 3, 4]
    with pytest.raises(InputError, match="seed: the run was started with 0, now it is 3"):
        main(replace(autoencoder_config, out=killed, seed=3))


def test_the_saved_model_scales_latents_to_unit_variance(vae, scenes):
    model = AutoencoderTiny.from_pretrained(vae)
    latents = []
    for file in sorted(scenes.glob("*.png")):
        pixels = torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8)
        image = pixels.reshape(1, *Image.open(file).size[::-1], 3).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            z = model.encode(image).latents
            assert z.shape[1:] == (4, image.shape[2] // 8, image.shape[3] // 8)
            assert model.decode(z).sample.shape == image.shape
        latents.append(z.flatten())
    assert (torch.cat(latents).std() * model.config.scaling_factor).item() == pytest.approx(1, abs=1e-3)


def test_a_folder_without_images_is_refused(autoencoder_config, tmp_path):
    with pytest.raises(InputError, match="--images .*: no images there"):
        main(replace(autoencoder_config, images=tmp_path))


@pytest.mark.slow
def test_training_learns(autoencoder_config, tmp_path):
    main(replace(autoencoder_config, out=tmp_path / "run", channels=8, steps=150, batch=8, noise=0.0))
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
