"""How well a depth ControlNet is obeyed: pictures for fixed images, prompts and seeds, and their pooled fidelity.

Scenes bring their captions as prompts; photos take turns with `PROMPTS`.

python -m train_controlnet.validate --images DIR --count 24 --control-scales 1 0
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from depth_control import load_pipeline, to_control
from depth_control.metrics import pooled_fidelity
from depth_control.presets import default_guidance
from depth_model import DepthEstimator
from depth_model.config import run_module
from depth_model.errors import InputError
from depth_model.images import list_images, open_image
from train_controlnet.validation import save_strip

PROMPTS = (
    "red clay shapes in a white marble room in indoor light",
    "a gold model of a room at noon",
    "oak wood shapes on green grass hills at sunset",
    "blue ice boxes and balls on a black stone plain at noon",
    "pink plastic shapes in a brick room in indoor light",
    "white marble shapes on yellow sand hills at noon",
    "a grey concrete model of the scene at sunset",
    "checkerboard shapes in an oak wood room in indoor light",
)


@dataclass(frozen=True)
class Config:
    """Measures the fidelity of a pipeline's pictures on a folder of images."""

    images: Path
    """Folder of images that were in no training set."""
    count: int = 24
    """How many of them, evenly spread over the sorted folder."""
    model: str = "embedded"
    """Pipeline: embedded, sd15, a folder or a Hub id."""
    controlnet: str | None = None
    """Another ControlNet than the pipeline's own: a folder or a Hub id."""
    depth_model: str | None = None
    """Estimator of the conditions: embedded, a folder or a Hub id."""
    judge: str | None = None
    """Estimator that measures the pictures; by default the one of the conditions. Another one is the fairer judge."""
    control_scales: tuple[float, ...] = (1.0, 0.0)
    """Strengths of the control to compare, with the same seeds."""
    guidance_scale: float | None = None
    """Classifier-free guidance; the model's default when not given."""
    steps: int = 20
    """Denoising steps."""
    seed: int = 0
    """Image i uses seed + i."""
    out: Path = Path("validation")
    """Folder for strip_SCALE.png (photo, condition, picture, its depth) and fidelity.json."""


def _captions(folder: Path) -> dict[str, str]:
    """Captions by file name of a folder written by `depth-control scenes`; none of any other."""
    try:
        return {row["file"]: row["caption"] for row in json.loads((folder / "index.json").read_text())}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def main(config: Config) -> dict[str, dict[str, float]]:
    """Runs the measurement and returns pooled fidelity by control scale.

    Raises:
        InputError: an empty folder, or models that cannot be loaded.
    """
    files = list_images(config.images)
    if not files:
        raise InputError(f"--images {config.images}: no images there")
    files = [files[i] for i in np.linspace(0, len(files) - 1, min(config.count, len(files))).astype(int)]
    captions = _captions(config.images)
    pipe = load_pipeline(config.model, config.controlnet, config.depth_model)
    pipe.set_progress_bar_config(disable=True)
    judge = DepthEstimator(pipe.depth_estimator, pipe.depth_processor, pipe.device, pipe.depth_estimator.dtype)
    if config.judge is not None:
        judge = DepthEstimator.from_pretrained(config.judge, pipe.device)
    guidance = default_guidance(config.model) if config.guidance_scale is None else config.guidance_scale
    config.out.mkdir(parents=True, exist_ok=True)
    report = {}
    for scale in config.control_scales:
        pairs, photos, pictures = [], [], []
        for i, file in enumerate(files):
            photo = open_image(file)
            output = pipe(
                captions.get(file.name, PROMPTS[i % len(PROMPTS)]),
                depth_source=photo,
                num_inference_steps=config.steps,
                guidance_scale=guidance,
                controlnet_conditioning_scale=float(scale),
                generator=torch.Generator().manual_seed(config.seed + i),
            )
            result = to_control(judge(output.images[0]))
            pairs.append((output.control, result))
            photos.append(photo)
            pictures.append(output.images[0])
        controls, results = zip(*pairs, strict=True)
        save_strip(config.out / f"strip_{scale:g}.png", photos, controls, pictures, results)
        report[f"{scale:g}"] = pooled_fidelity(pairs)
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in report[f"{scale:g}"].items())
        print(f"{len(pairs)} images, control scale {scale:g}, guidance {guidance:g}: {numbers}", flush=True)
    (config.out / "fidelity.json").write_text(json.dumps(report, indent=1))
    return report


if __name__ == "__main__":
    run_module(Config, main, "train_controlnet.validate")
