"""Joint training of the small base and a ControlNet."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from depth_model.config import dump
from depth_model.errors import InputError
from tests.train_controlnet.runs import assert_same_run, killed_at, rows, same, torchrun
from train_controlnet.base import build_parts, build_scheduler, coarsen, main
from train_controlnet.diffusion import min_snr_loss, noised


def test_a_killed_run_goes_on_bit_for_bit(base_config, base_model, tmp_path):
    killed = killed_at(base_config.out, tmp_path / "killed", 2, 4)
    main(replace(base_config, out=killed, resume="must"))
    assert_same_run(base_config.out, killed, 4)
    for part in ("unet", "controlnet"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        assert same(base_model / file, killed / "model" / file)
    assert [row["step"] for row in rows(killed)] == [1, 2, 3, 4]
    with pytest.raises(InputError, match=f"lr: the run was started with {base_config.lr}, now it is 0.1"):
        main(replace(base_config, out=killed, lr=0.1))


def test_training_changes_every_part(base_model):
    pipe = StableDiffusionControlNetPipeline.from_pretrained(base_model)
    # Biases start at zero, so they say whether the optimiser ever reached the part.
    assert any(block.bias.abs().sum() > 0 for block in pipe.controlnet.controlnet_down_blocks)
    assert pipe.unet.conv_out.bias.abs().sum() > 0
    assert any("bias" in n and p.abs().sum() > 0 for n, p in pipe.text_encoder.named_parameters())


def test_the_folder_opens_in_stock_diffusers_and_draws(base_model):
    pipe = StableDiffusionControlNetPipeline.from_pretrained(base_model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    depth = torch.linspace(0, 1, 64).expand(1, 3, 48, 64)
    draws = {"num_inference_steps": 2, "output_type": "np", "height": 48, "width": 64}
    image = pipe("brick boxes in a gold room", image=depth, generator=torch.manual_seed(0), **draws).images[0]
    assert image.shape == (48, 64, 3) and np.isfinite(image).all()
    assert pipe.scheduler.config.prediction_type == "v_prediction" and pipe.scheduler.config.rescale_betas_zero_snr
    parts = {name: part for name, part in pipe.components.items() if name not in ("controlnet", "image_encoder")}
    plain = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    assert np.isfinite(plain("gold", **draws).images[0]).all()


def test_weights_are_half_precision_safetensors(base_model):
    files = {file.suffix for file in base_model.rglob("*") if file.is_file()}
    assert ".safetensors" in files and not files & {".bin", ".pt", ".pkl", ".ckpt"}
    weights = [load_file(base_model / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae")]
    assert {w.dtype for group in weights for w in group.values()} == {torch.float16}


def test_a_run_can_start_from_an_earlier_one(base_config, base_model, tmp_path):
    later = replace(base_config, init=base_model, out=tmp_path / "later", lr=1e-9, steps=1)
    main(later)
    file = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(base_model / file), load_file(later.out / "model" / file)
    assert all(torch.allclose(before[name].float(), after[name].float(), atol=1e-5) for name in before)
    words = "brick boxes in a gold room"
    tokenizers = [CLIPTokenizer.from_pretrained(folder / "tokenizer") for folder in (base_model, later.out / "model")]
    assert tokenizers[0](words).input_ids == tokenizers[1](words).input_ids
    with pytest.raises(InputError, match="unet does not fit"):
        main(replace(later, out=tmp_path / "wider", channels=(64, 64)))
    with pytest.raises(InputError, match="no tokenizer"):
        main(replace(later, out=tmp_path / "none", init=tmp_path))


def test_a_new_controlnet_acts_from_the_first_step(base_config, base_model):
    tokenizer = CLIPTokenizer.from_pretrained(base_model / "tokenizer")
    torch.manual_seed(0)
    net = build_parts(base_config, 4, len(tokenizer), tokenizer)["controlnet"].eval()
    noisy, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, base_config.text_width)
    with torch.no_grad():
        near, far = (net(noisy, 10, text, torch.full((1, 3, 64, 64), c)).mid_block_res_sample for c in (0.0, 1.0))
    assert (near - far).abs().max() > 1e-3


def test_a_gain_is_a_control_scale_that_stays(base_config, base_model, tmp_path):
    later = replace(base_config, init=base_model, out=tmp_path / "later", lr=1e-9, steps=1, ema=0.0)
    main(later)
    main(replace(later, out=tmp_path / "amplified", control_gain=2.0))
    nets = [
        StableDiffusionControlNetPipeline.from_pretrained(f / "model", dtype=torch.float32).controlnet
        for f in (later.out, tmp_path / "amplified")
    ]
    draws = torch.randn(1, 4, 8, 8), 10, torch.randn(1, 5, base_config.text_width), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain, double = nets[0](*draws, conditioning_scale=2.0), nets[1](*draws)
    torch.testing.assert_close(double.mid_block_res_sample, plain.mid_block_res_sample, atol=1e-3, rtol=1e-2)
    assert plain.mid_block_res_sample.abs().max() > 0


def test_a_missing_cache_is_refused(base_config, tmp_path):
    with pytest.raises(InputError, match="no complete cache"):
        main(replace(base_config, cache=tmp_path, out=tmp_path / "run"))


def test_noise_and_target_agree():
    scheduler, latents = build_scheduler(), torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    noisy, timesteps, target = noised(latents, scheduler, seed=1, step=5)
    assert all(
        torch.equal(a, b) for a, b in zip(noised(latents, scheduler, 1, 5), (noisy, timesteps, target), strict=True)
    )
    assert not torch.equal(noised(latents, scheduler, 1, 6)[0], noisy)
    assert (timesteps.diff() > 0).all() and timesteps.min() < 1000 / 6 and timesteps.max() >= 5000 / 6
    # x = sqrt(a) x_t - sqrt(1 - a) v for v-prediction.
    a = scheduler.alphas_cumprod[timesteps][:, None, None, None]
    torch.testing.assert_close(a.sqrt() * noisy - (1 - a).sqrt() * target, latents, atol=1e-4, rtol=1e-4)


def test_a_shift_draws_noisy_steps_more_often():
    scheduler, latents = build_scheduler(), torch.zeros(64, 1, 2, 2)
    plain, shifted = (noised(latents, scheduler, 0, 0, shift)[1].float() for shift in (1.0, 3.0))
    # Of the uniform u, 3 u / (1 + 2 u) lies above a half where u is above a quarter.
    assert (plain > 500).float().mean() == pytest.approx(0.5, abs=0.05)
    assert (shifted > 500).float().mean() == pytest.approx(0.75, abs=0.05) and shifted.max() < 1000


def test_min_snr_weighs_clean_steps_down():
    scheduler = build_scheduler()
    zero, one = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    weights = [min_snr_loss(one, zero, scheduler, torch.tensor([t]), 5.0).item() for t in range(0, 1000, 111)]
    snr = [(a / (1 - a).clamp(min=1e-8)).item() for a in scheduler.alphas_cumprod[::111]]
    assert weights == pytest.approx([max(min(s, 5) / (s + 1), 0.05) for s in snr], rel=1e-4)
    assert min_snr_loss(one, zero, scheduler, torch.tensor([999]), 5.0) > 0, "sampling starts there"
    assert min_snr_loss(one, zero, scheduler, torch.tensor([3]), 0.0) == 1


def test_coarse_conditions_keep_their_mean_and_lose_detail():
    control = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    coarse = coarsen(control, 4)
    assert coarse.shape == control.shape and torch.equal(coarsen(control, 1), control)
    assert coarse.mean().item() == pytest.approx(control.mean().item(), abs=0.02) and coarse.std() < 0.5 * control.std()


@pytest.mark.slow
def test_training_learns(base_config, tmp_path):
    main(replace(base_config, out=tmp_path / "run", steps=150, batch=8, save_every=150))
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_two_processes_train_as_one(base_config, tmp_path):
    config = replace(base_config, batch=4, lr=1e-4, control_share=0.5)
    main(replace(config, out=tmp_path / "one"))
    dump(replace(config, out=tmp_path / "two"), tmp_path / "config.yaml")
    torchrun("train_controlnet.base", "--config", tmp_path / "config.yaml")
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    a, b = (load_file(tmp_path / run / "model/unet/diffusion_pytorch_model.safetensors") for run in ("one", "two"))
    assert all(torch.allclose(a[name].float(), b[name].float(), atol=2e-3) for name in a)
