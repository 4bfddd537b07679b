"""Training of a ControlNet on a frozen base."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionControlNetPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from depth_control import load_pipeline
from depth_control.pipelines import condition_range
from depth_model.config import dump
from depth_model.errors import InputError, RunError
from tests import tiny
from tests.train_controlnet.runs import assert_same_run, killed_at, rows, same, torchrun
from train_controlnet import prepare, release, train
from train_controlnet.cache import Cache
from train_controlnet.diffusion import denoised, min_snr_loss, noised, predict
from train_controlnet.networks import load_unet, open_embedding, start_controlnet
from train_controlnet.train import Config, main
from train_controlnet.validation import took_hold


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return tiny.save_pipeline(folder / "base", "kl"), tiny.save_estimator(folder / "depth")


@pytest.fixture(scope="module")
def cache(models, scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "cache"
    prepare.main(prepare.Config(scenes=scenes, base=str(models[0]), depth_model=str(models[1]), out=out, device="cpu"))
    return out


@pytest.fixture(scope="module")
def config(models, cache, scenes, tmp_path_factory):
    return Config(
        base=str(models[0]),
        cache=cache,
        out=tmp_path_factory.mktemp("controlnet") / "run",
        steps=4,
        batch=2,
        lr=1e-2,
        warmup=1,
        ema=0.9,
        caption_dropout=0.3,
        validation=scenes,
        validation_count=2,
        validation_steps=2,
        guidance_scale=1.0,
        validate_every=2,
        proxy_every=1,
        save_every=2,
        log_every=1,
    )


@pytest.fixture(scope="module")
def trained(config):
    frozen = load_file(f"{config.base}/unet/diffusion_pytorch_model.safetensors")
    main(config)
    after = load_file(f"{config.base}/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(frozen[name], after[name]) for name in frozen)
    return config.out


def test_a_killed_run_goes_on_bit_for_bit(config, trained, tmp_path):
    killed = killed_at(trained, tmp_path / "killed", 2, 4)
    main(replace(config, out=killed, resume="must"))
    assert_same_run(trained, killed, 4)
    file = "model/diffusion_pytorch_model.safetensors"
    assert same(trained / file, killed / file)
    assert [row["step"] for row in rows(killed) if "loss" in row] == [1, 2, 3, 4]
    with pytest.raises(InputError, match="batch: the run was started with 2, now it is 4"):
        main(replace(config, out=killed, batch=4))


def test_the_log_tells_fidelity_with_its_baselines(trained):
    log = rows(trained)
    measured = [row for row in log if "structure" in row]
    assert [row["step"] for row in measured] == [2, 4]
    assert measured[0].keys() >= {"detail", "rmse", "shuffled_structure", "no_control_structure", "proxy_structure"}
    assert measured[0]["no_control_structure"] == measured[1]["no_control_structure"] != measured[1]["structure"]
    assert [row["step"] for row in log if "proxy_structure" in row] == [0, 1, 2, 3, 4]
    strips = sorted((trained / "validation").glob("*.png"))
    assert [strip.name for strip in strips] == ["step-00000002.png", "step-00000004.png"]
    assert Image.open(strips[0]).size == (2 * 128, 4 * 128)
    best = max(measured, key=lambda row: row["structure"])["step"]
    assert json.loads((trained / "model" / "depth_control.json").read_text())["best"]["step"] == best
    assert same(
        trained / "best" / "diffusion_pytorch_model.safetensors",
        trained / "model" / "diffusion_pytorch_model.safetensors",
    )


def test_the_released_folder_is_a_stock_one_with_a_card(config, trained, models):
    folder = trained / "model"
    half = ControlNetModel.from_pretrained(folder, variant="fp16", dtype=torch.float16)
    full = ControlNetModel.from_pretrained(folder)
    assert full.dtype == torch.float32 and torch.equal(half.conv_in.weight, full.conv_in.weight.half())
    card = (folder / "README.md").read_text()
    assert config.base in card and "## Fidelity" in card and "no control" in card and "![curves](curves.png)" in card
    assert (folder / "pictures.png").is_file() and (folder / "curves.png").is_file()
    pipe = StableDiffusionControlNetPipeline.from_pretrained(config.base, controlnet=full, safety_checker=None)
    ours = load_pipeline(config.base, controlnet=str(folder), depth_model=str(models[1]), device="cpu")
    depth = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    draws = {"num_inference_steps": 2, "output_type": "np", "height": 64, "width": 64}
    picture = torch.from_numpy(depth).expand(1, 3, -1, -1)
    stock = pipe("red clay", image=picture, generator=torch.manual_seed(0), **draws).images[0]
    same_one = ours("red clay", depth=depth, generator=torch.manual_seed(0), **draws).images[0]
    np.testing.assert_allclose(stock, same_one, atol=2e-3)
    assert stock.std() > 0


def script_step(controlnet, unet, scheduler, latents, noise, timesteps, text, condition):
    """The loss of diffusers' examples/controlnet/train_controlnet.py, written from its description."""
    noisy = scheduler.add_noise(latents, noise, timesteps)
    down, middle = controlnet(
        noisy, timesteps, encoder_hidden_states=text, controlnet_cond=condition, return_dict=False
    )
    prediction = unet(
        noisy,
        timesteps,
        encoder_hidden_states=text,
        down_block_additional_residuals=list(down),
        mid_block_additional_residual=middle,
        return_dict=False,
    )[0]
    epsilon = scheduler.config.prediction_type == "epsilon"
    return F.mse_loss(prediction, noise if epsilon else scheduler.get_velocity(latents, noise, timesteps))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_one_step_equals_the_one_of_the_diffusers_script(config, cache, kind):
    unet, scheduler = load_unet(train.base_folder(config.base))
    scheduler = DDPMScheduler.from_config(scheduler.config, prediction_type=kind)
    batch = Cache(cache, seed=1).batch(3, 4)
    noisy, timesteps, target = noised(batch["latents"], scheduler, 1, 3)
    # The noise that x_t was made with: what epsilon-prediction aims at.
    noise = noised(batch["latents"], DDPMScheduler.from_config(scheduler.config, prediction_type="epsilon"), 1, 3)[2]
    theirs, ours = tiny.controlnet().train(), tiny.controlnet().train()
    arguments = batch["latents"], noise, timesteps, batch["text"], batch["controls"]
    expected = script_step(theirs, unet, scheduler, *arguments)
    expected.backward()
    fast = [net.to(memory_format=torch.channels_last) for net in (unet, ours)]
    loss = min_snr_loss(predict(*fast, batch, noisy, timesteps), target, scheduler, timesteps, 0.0)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for (name, p), q in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-5 * p.grad.norm() + 1e-9, name


def test_one_step_denoises_exactly_from_the_true_target(config):
    _, scheduler = load_unet(train.base_folder(config.base))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for kind in ("epsilon", "v_prediction"):
        schedule = DDPMScheduler.from_config(scheduler.config, prediction_type=kind)
        noisy, timesteps, target = noised(latents, schedule, 0, 0)
        torch.testing.assert_close(denoised(target, noisy, int(timesteps), schedule), latents, atol=1e-3, rtol=1e-3)


def test_the_range_is_the_pipelines_own(config):
    pipe = StableDiffusionControlNetPipeline.from_pretrained(config.base)
    assert condition_range(pipe) == (0, 1)
    pipe.control_image_processor.register_to_config(do_normalize=True)
    assert condition_range(pipe) == (-1, 1)
    samples = train.Batches(config, Cache(config.cache, 1), pipe.scheduler, slice(None), (-1.0, 1.0))
    plain = train.Batches(config, Cache(config.cache, 1), pipe.scheduler, slice(None), (0.0, 1.0))
    torch.testing.assert_close(samples[0]["controls"], 2 * plain[0]["controls"] - 1)


def test_parts_of_a_batch_add_up_to_the_whole(config, tmp_path):
    small = replace(config, validation=None, batch=4, steps=3, lr=1e-3)
    for accumulate in (1, 2):
        main(
            replace(small, out=tmp_path / str(accumulate), accumulate=accumulate, gradient_checkpointing=accumulate > 1)
        )
    one, two = (rows(tmp_path / run) for run in ("1", "2"))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-5)
    assert [row["gradient_norm"] for row in one] == pytest.approx([row["gradient_norm"] for row in two], rel=1e-4)
    assert "not measured" in (tmp_path / "1" / "model" / "README.md").read_text()


def test_a_run_starts_from_the_bases_own_controlnet_or_from_its_unet(config, tmp_path):
    folder = train.base_folder(config.base)
    unet, _ = load_unet(folder)
    own = ControlNetModel.from_pretrained(folder / "controlnet", dtype=torch.float32)
    assert torch.equal(start_controlnet(folder, unet, None, True, False).conv_in.weight, own.conv_in.weight)
    assert isinstance(unet, UNet2DConditionModel) and not any(p.requires_grad for p in unet.parameters())
    start = start_controlnet(folder, unet, None, False, False)
    assert torch.equal(start.conv_in.weight, unet.conv_in.weight)
    assert all(p.abs().sum() == 0 for p in start.controlnet_down_blocks.parameters())
    opened = start_controlnet(folder, unet, None, False, True)
    assert opened.controlnet_cond_embedding.conv_out.weight.abs().sum() > 0
    assert all(p.abs().sum() == 0 for p in opened.controlnet_down_blocks.parameters())
    other = ControlNetModel.from_config(own.config, cross_attention_dim=24)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="does not fit .*cross_attention_dim is 24, the UNet's is 16"):
        start_controlnet(folder, unet, str(tmp_path / "other"), False, False)


def test_an_opened_embedding_keeps_the_size_of_signals():
    net = ControlNetModel(block_out_channels=(32, 64), down_block_types=("DownBlock2D",) * 2, cross_attention_dim=16)
    torch.manual_seed(0)
    open_embedding(net)
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    with torch.no_grad():
        assert 0.1 < net.controlnet_cond_embedding(ramp).std() < 3


def test_what_does_not_fit_is_refused(config, models, cache, scenes, tmp_path):
    new = replace(config, out=tmp_path / "run")
    other = shutil.copytree(models[0], tmp_path / "other")
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(InputError, match="made with other autoencoder than those of .*prepare it again with --base"):
        main(replace(new, base=str(other)))
    without = prepare.Config(scenes=scenes, vae=models[0] / "vae", depth_model="exact", out=tmp_path / "cache")
    prepare.main(without)
    with pytest.raises(InputError, match="has no text embeddings: prepare it again with --base"):
        main(replace(new, cache=without.out))
    with pytest.raises(InputError, match="no complete cache"):
        main(replace(new, cache=tmp_path))
    with pytest.raises(InputError, match="has no model_index.json"):
        main(replace(new, base=str(tmp_path)))
    with pytest.raises(InputError, match="--batch 2 does not divide"):
        main(replace(new, accumulate=4))
    with pytest.raises(InputError, match="--push-to-hub name: must be ORG/NAME"):
        main(replace(new, push_to_hub="name"))
    with pytest.raises(InputError, match="--precision fp16"):
        main(replace(new, precision="fp16"))


def test_a_run_does_not_go_on_with_another_cache(config, trained, cache, tmp_path):
    killed = killed_at(trained, tmp_path / "killed", 2, 4)
    other = shutil.copytree(cache, tmp_path / "cache")
    index = json.loads((other / "index.json").read_text())
    index["samples"] = index["samples"][1:]
    (other / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="is not what the run was started with"):
        main(replace(config, out=killed, cache=other))


def test_gradients_that_stay_nan_end_the_run_and_keep_the_weights(config, monkeypatch, tmp_path):
    calls = iter(range(1000))

    def broken(*arguments):
        return min_snr_loss(*arguments) * (torch.nan if next(calls) >= 2 else 1)

    monkeypatch.setattr(train, "min_snr_loss", broken)
    run = replace(config, validation=None, out=tmp_path / "run", steps=40)
    with pytest.raises(RunError, match="NaN or infinite for 10 steps"):
        main(run)
    saved = load_file(sorted((run.out / "checkpoints").iterdir())[-1] / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in saved.values())


def test_a_model_is_pushed_whole_or_the_run_says_where_it_is(config, trained, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repository, exist_ok):
            calls.append((repository, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append((repo_id, {file.name for file in folder_path.iterdir()}))

    monkeypatch.setattr(release, "HfApi", Api)
    main(replace(config, push_to_hub="me/depth"))
    assert calls[0] == ("me/depth", True) and {"README.md", "config.json", "depth_control.json"} <= calls[1][1]
    monkeypatch.setattr(Api, "upload_folder", lambda *_, **__: 1 / 0)
    with pytest.raises(RunError, match="--push-to-hub me/depth: not uploaded .*complete in .*model"):
        main(replace(config, push_to_hub="me/depth"))


def test_when_control_took_hold():
    curve = [(0, -1.0), (500, -0.9), (1000, -0.8), (1500, 0.2), (2000, 0.3)]
    assert took_hold(curve, -1.0) == (1000, 1500)
    assert took_hold([(0, 0.0), (500, 0.05)], 0.0) is None and took_hold([], 0.0) is None


def test_sdxl_trains_and_draws(scenes, models, config, tmp_path):
    base = tiny.save_pipeline(tmp_path / "xl", "xl")
    new = {"base": str(base), "out": tmp_path / "cache"}
    prepare.main(prepare.Config(scenes=scenes, depth_model=str(models[1]), device="cpu", **new))
    batch = Cache(tmp_path / "cache").batch(0, 2)
    assert batch["pooled"].shape == (2, 16) and batch["text"].shape[2] == 32 and batch["time_ids"].shape == (2, 6)
    assert not Cache(tmp_path / "cache").text("")["pooled"].any(), "as the pipeline does without a negative prompt"
    run = replace(config, base=str(base), cache=tmp_path / "cache", out=tmp_path / "run", steps=1)
    main(run)
    pipe = load_pipeline(str(base), controlnet=str(run.out / "model"), depth_model=str(models[1]), device="cpu")
    photo = Image.open(scenes / "000000.png")
    output = pipe("red clay", depth_source=photo, num_inference_steps=2, output_type="np")
    assert type(pipe).__name__ == "DepthStableDiffusionXLControlNetPipeline"
    assert output.images[0].shape == (64, 64, 3) and output.control.shape == (64, 64)
    with pytest.raises(InputError, match="--controlnet .* does not fit"):
        load_pipeline(str(models[0]), controlnet=str(run.out / "model"), depth_model=str(models[1]), device="cpu")


@pytest.fixture
def own_accelerator():
    """Accelerate keeps the precision of a process's first run for all later ones."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_mixed_precision_keeps_the_weights_in_float32(config, own_accelerator, tmp_path):
    run = replace(config, precision="bf16", steps=2, out=tmp_path / "run")
    main(run)
    log = rows(run.out)
    assert all(np.isfinite(row["loss"]) for row in log if "loss" in row) and "structure" in log[-2]
    saved = load_file(run.out / "checkpoints" / "step-00000002" / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}


@pytest.mark.slow
def test_compiled_blocks_train_alike(config, tmp_path):
    small = replace(config, validation=None, steps=2, lr=1e-3)
    for compiled in (False, True):
        main(replace(small, out=tmp_path / str(compiled), compile=compiled))
    one, two = (rows(tmp_path / run) for run in ("False", "True"))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-4)
    names = (load_file(tmp_path / run / "model" / "diffusion_pytorch_model.safetensors") for run in ("False", "True"))
    assert next(names).keys() == next(names).keys()


@pytest.mark.slow
def test_two_processes_see_the_same_samples(config, tmp_path):
    small = replace(config, validation=None, batch=4, lr=1e-3)
    main(replace(small, out=tmp_path / "one"))
    dump(replace(small, out=tmp_path / "two"), tmp_path / "config.yaml")
    torchrun("train_controlnet", "--config", tmp_path / "config.yaml")
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_if_nothing_had_been(config, tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    straight = replace(config, validation=None, steps=30, out=tmp_path / "straight", save_every=3)
    killed, draws = replace(straight, out=tmp_path / "killed"), random.Random(0)

    def command(run):
        # Both runs start alike: sums of several threads round otherwise than those of one.
        dump(run, run.out.with_suffix(".yaml"))
        return [sys.executable, "-m", "train_controlnet", "--config", str(run.out.with_suffix(".yaml"))]

    subprocess.run(command(straight), env=env, stdout=subprocess.DEVNULL, check=True)
    for _ in range(12):
        process = subprocess.Popen(command(killed), env=env, process_group=0, stdout=subprocess.DEVNULL)
        log = killed.out / "log.jsonl"
        before = log.read_text() if log.exists() else ""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and log.read_text() != before:
                break
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 0.3))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command(killed), env=env, stdout=subprocess.DEVNULL).returncode == 0
    assert_same_run(straight.out, killed.out, 30)
