"""How fast is training? Ours beside diffusers' example script, in turns, on a quarter-width Stable Diffusion 1.5.

    depth-control benchmark-controlnet --script diffusers/examples/controlnet/train_controlnet.py

Random weights of the true classes, random pictures, float32. Each turn is a process of its own, so that peak memory can
be compared. The script runs as it is; where torchvision is missing, the five transforms that it uses are stood in for
by Pillow. It needs the package `datasets`.
"""

import importlib.util
import json
import os
import resource
import runpy
import statistics
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import CLIPTextConfig, CLIPTextModel

from depth_model.config import run_module
from depth_model.errors import InputError, RunError
from depth_model.images import open_image
from train_controlnet import encoders, prepare
from train_controlnet.maker import Maker
from train_controlnet.sources import open_captioned
from train_controlnet.vocabulary import build_tokenizer

WORDS = "a red blue green room hill with an old chair and two balls on sand at noon".split()
_CHILD = "import sys; from train_controlnet.benchmark import child; child(sys.argv[1], sys.argv[2:])"


@dataclass(frozen=True)
class Config:
    """Measures samples per second and peak memory of training, and what preparation costs beyond its networks."""

    script: Path | None = None
    """diffusers' examples/controlnet/train_controlnet.py; without it ours is measured alone."""
    out: Path = Path("runs/benchmark")
    """Folder for models, data and report.json."""
    depth_model: str = "embedded"
    """Estimator of the conditions."""
    images: int = 48
    """Random pictures."""
    resolution: int = 256
    """Their side, pixels."""
    batch: int = 4
    """Images in a batch."""
    steps: int = 8
    """Steps in each turn; the first two are not counted."""
    turns: int = 2
    """Turns of each kind."""


def build_base(folder: Path, resolution: int) -> None:
    """Writes a random Stable Diffusion 1.5 of a quarter of its width."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([" ".join(WORDS)], length=77)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=12,
        num_attention_heads=3,
        projection_dim=192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=resolution // 8,
        block_out_channels=(80, 160, 320, 320),
        cross_attention_dim=192,
        attention_head_dim=8,
        norm_num_groups=16,  # 80 channels do not divide by the stock 32
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDPMScheduler(**noise),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def build_images(folder: Path, count: int, side: int) -> None:
    """Random pictures with captions and, for the script, a condition beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for i in range(count):
        for name in (f"{i:04d}.jpg", f"{i:04d}_depth.jpg"):
            blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC).save(folder / name)
        caption = " ".join(rng.choice(WORDS, 8))
        rows.append(
            {"file_name": f"{i:04d}.jpg", "conditioning_image_file_name": f"{i:04d}_depth.jpg", "text": caption}
        )
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def child(report: str, arguments: list[str]) -> None:
    """One turn in this process: a script or a module with its arguments; writes step times and peak memory."""
    stamps, work = [], []
    register_optimizer_step_post_hook(lambda *_: (stamps.append(time.perf_counter()), work.append(time.process_time())))
    program, sys.argv = arguments[0], arguments
    try:
        if program.endswith(".py"):
            # These libraries look for torchvision when they are imported, and must not find the stand-in.
            import diffusers  # noqa: F401
            import transformers  # noqa: F401

            if importlib.util.find_spec("torchvision") is None:
                _stand_in()
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__")
    except SystemExit as error:
        if error.code not in (0, None):
            raise
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    Path(report).write_text(json.dumps({"stamps": stamps, "work": work, "peak_bytes": peak}))


def _stand_in() -> None:
    """Puts a `torchvision.transforms` with what the script uses into this process."""

    def resize(side, interpolation=None):
        def apply(image):
            scale = side / min(image.size)
            return image.resize([round(s * scale) for s in image.size], Image.Resampling.BILINEAR)

        return apply

    def centre(side):
        def apply(image):
            left, top = (image.width - side) // 2, (image.height - side) // 2
            return image.crop((left, top, left + side, top + side))

        return apply

    def compose(steps):
        def apply(value):
            for step in steps:
                value = step(value)
            return value

        return apply

    transforms = types.ModuleType("torchvision.transforms")
    transforms.Compose, transforms.Resize, transforms.CenterCrop = compose, resize, centre
    transforms.ToTensor = lambda: lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    transforms.Normalize = lambda mean, std: lambda tensor: (tensor - mean[0]) / std[0]
    transforms.InterpolationMode = types.SimpleNamespace(BILINEAR="bilinear")
    package = types.ModuleType("torchvision")
    package.transforms, package.__path__ = transforms, []
    for name, module in (("torchvision", package), ("torchvision.transforms", transforms)):
        module.__spec__ = ModuleSpec(name, None)
        sys.modules[name] = module


def _turn(config: Config, kind: str, number: int) -> dict:
    """Runs one turn; seconds and CPU seconds (which other programs disturb less) of each counted step, peak bytes."""
    report, run = config.out / f"{kind}-{number}.json", config.out / f"{kind}-{number}"
    base, steps = config.out / "base", str(config.steps)
    arguments = ["train_controlnet", "--base", str(base), "--cache", str(config.out / "cache"), "--steps", steps]
    arguments += ["--batch", str(config.batch), "--save-every", "1000000", "--out", str(run), "--resume", "never"]
    if kind == "script":
        arguments = [str(config.script), f"--pretrained_model_name_or_path={base}", f"--output_dir={run}"]
        arguments += [f"--train_data_dir={config.out / 'images'}", "--image_column=image", "--caption_column=text"]
        arguments += ["--conditioning_image_column=conditioning_image", f"--resolution={config.resolution}", "--seed=0"]
        arguments += [f"--train_batch_size={config.batch}", f"--max_train_steps={steps}", "--report_to=tensorboard"]
        arguments += [f"--cache_dir={config.out / 'hf'}"]
    command = [sys.executable, "-c", _CHILD, str(report), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    if done.returncode or not report.is_file():
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"the {kind} failed: {reason}")
    content = json.loads(report.read_text())
    seconds, work = (list(np.diff(content[name][1:])) for name in ("stamps", "work"))
    return {"seconds": seconds, "work": work, "peak_bytes": content["peak_bytes"]}


def measure_preparation(config: Config) -> tuple[float, float]:
    """Seconds of a preparation from nothing, models loaded, and of the bare forward passes that it needs."""
    source = open_captioned(config.out / "images")
    options = {"images": config.out / "images", "base": str(config.out / "base"), "depth_model": config.depth_model}
    preparation = prepare.Config(**options, out=config.out / "cache", resolution=config.resolution, device="cpu")
    with Maker(preparation, source) as maker:
        began = time.perf_counter()
        prepare.fill(preparation, source, maker)
        whole = time.perf_counter() - began
        photos = [open_image(source.encoded(i)) for i in range(len(source)) if source.caption(i)]
        estimator = maker.estimators[0].network
        inputs = [estimator.preprocess(photo) for photo in photos]
        pixels = [np.asarray(photo)[None] for photo in photos for _ in range(2)]
        captions = ["", *dict.fromkeys(source.caption(i) for i in range(len(source)) if source.caption(i))]
        pipeline = encoders.text_pipeline(maker.base, maker.device)
        began, size = time.perf_counter(), preparation.batch
        for i in range(0, len(pixels), size):
            encoders.encode(maker.vae, np.concatenate(pixels[i : i + size]))
        for i in range(0, len(inputs), size):
            estimator.predict_tensor(torch.cat(inputs[i : i + size]))
        for i in range(0, len(captions), 32):
            encoders.embed(pipeline, captions[i : i + 32])
        return whole, time.perf_counter() - began


def main(config: Config) -> dict:
    """Runs the measurement, prints it and writes `report.json`.

    Raises:
        InputError: no such script. RunError: a turn failed.
    """
    if config.script is not None and not config.script.is_file():
        raise InputError(f"--script {config.script}: no such file")
    if config.steps < 4 or config.turns < 1:
        raise InputError("--steps must be at least 4 and --turns at least 1")
    config.out.mkdir(parents=True, exist_ok=True)
    if any(config.out.iterdir()):
        raise InputError(f"--out {config.out}: is not empty; a measurement begins from nothing")
    build_base(config.out / "base", config.resolution)
    build_images(config.out / "images", config.images, config.resolution)
    whole, bare = measure_preparation(config)
    print(f"preparation {whole:.1f} s, its bare forward passes {bare:.1f} s: {whole / bare:.2f} x", flush=True)
    kinds = ["script", "ours"] if config.script else ["ours"]
    turns: dict[str, list[dict]] = {kind: [] for kind in kinds}
    for number in range(config.turns):
        for kind in kinds:
            turns[kind].append(_turn(config, kind, number))
    report = {"preparation": {"seconds": whole, "bare_seconds": bare}}
    for kind, measured in turns.items():
        step = statistics.median(second for turn in measured for second in turn["seconds"])
        work = statistics.median(second for turn in measured for second in turn["work"])
        peak, speed = max(turn["peak_bytes"] for turn in measured), config.batch / step
        report[kind] = {"seconds_per_step": step, "cpu_seconds_per_step": work, "samples_per_second": speed}
        report[kind]["peak_bytes"] = peak
        print(
            f"{kind}: {step:.2f} s a step, {speed:.2f} samples/s, {work:.2f} CPU s a step, peak {peak / 1e9:.2f} GB",
            flush=True,
        )
    if config.script:
        report["speedup"] = report["script"]["seconds_per_step"] / report["ours"]["seconds_per_step"]
        print(f"ours trains {report['speedup']:.2f} x as many samples per second", flush=True)
    (config.out / "report.json").write_text(json.dumps(report, indent=1))
    return report


if __name__ == "__main__":
    run_module(Config, main, "train_controlnet.benchmark")
