"""A photo and a prompt in; a depth map, pictures that obey it, and a record of how they were made out."""

import importlib.metadata
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from depth_control.conditioning import as_depth_map, to_control
from depth_control.metrics import fidelity
from depth_control.presets import choose, default_guidance, load_pipeline
from depth_control.settings import Settings
from depth_control.words import known_words, unknown_words
from depth_model import DepthEstimator, DepthMap
from depth_model.errors import InputError
from depth_model.images import open_image

Progress = Callable[[int, int, str], None]

CAPTION_HEIGHT = 16


def generate(
    image: Any = None,
    prompt: str | Sequence[str] = "",
    *,
    depth: Any = None,
    out: str | os.PathLike = "out",
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Generate pictures that keep a photo's geometry, and write everything to a folder.

    Written: `depth.png` (16-bit grey, near = white), `depth_color.png`, `image_0.png` and on (by prompt, then by
    number), `comparison.png` (photo, depth, pictures) and `result.json`. Each file appears when it is complete,
    pictures as soon as they are made. Picture i depends on the seed and on i, never on how many there are; on a CPU the
    same inputs give the same bytes.

    Args:
        image: Photo: a path or PIL image. May be left out when `depth` is given.
        prompt: What to draw, or several prompts for the same depth.
        depth: The depth itself, instead of an estimate: anything `to_control` takes.
        out: Folder for the results; made if missing. Other files in it stay.
        progress: Called as `progress(steps_done, steps_in_all, text)`. Without it each picture shows a tqdm bar.
        **settings: Fields of `Settings`.

    Returns:
        What `result.json` holds: prompt, seed, models, settings, versions, timings (seconds), and for each of `images`
        its file, prompt, seed, seconds and `fidelity` (see `fidelity`), as measured by `judge`.

    Raises:
        InputError: A request that cannot be served as it was made; nearly all are found before a model is loaded.
    """
    clock = time.perf_counter()
    checked = Settings(**settings)
    prompts = _check_prompts(prompt)
    photo, depth_map = _open_inputs(image, depth, checked.depth_kind)
    folder = _make_folder(out)
    pipe = load_pipeline(checked.model, checked.controlnet, checked.depth_model, checked.device, checked.dtype)
    estimator = estimator_of(pipe)
    judge = DepthEstimator.from_pretrained(checked.judge, estimator.device) if checked.judge else estimator
    _warn_of_unknown_words(pipe, [*prompts, checked.negative_prompt])
    report = _start_report(prompt if isinstance(prompt, str) else prompts, checked, pipe)
    loaded = time.perf_counter()
    depth_map = depth_map or estimator(photo)
    report["timings"] = {"load": loaded - clock, "depth": time.perf_counter() - loaded}
    _write(folder / "depth.png", depth_map.save_png)
    _write(folder / "depth_color.png", depth_map.save_color)
    pipe.set_progress_bar_config(disable=progress is not None)
    on_step = _step_callback(progress, len(prompts) * checked.num_images, checked.steps)
    made = make_pictures(pipe, judge, depth_map, prompts, checked, on_step)
    _write_pictures(made, photo, depth_map, folder, report)
    report["timings"]["total"] = time.perf_counter() - clock
    report["finished"] = True
    _write_report(folder, report)
    return report


def _start_report(prompt: str | list[str], settings: Settings, pipe: DiffusionPipeline) -> dict[str, Any]:
    models = choose(settings.model, settings.controlnet, settings.depth_model)
    used = {
        "base": models.base,
        "controlnet": models.controlnet or f"{models.base}/controlnet",
        "depth_model": models.depth_model or f"{models.base}/depth_estimator",
    }
    return {
        "finished": False,
        "prompt": prompt,
        "seed": settings.seed,
        "models": used,
        "judge": settings.judge or used["depth_model"],
        "settings": asdict(settings)
        | {
            "guidance_scale": _guidance(settings),
            "device": str(pipe.device),
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "scheduler": type(pipe.scheduler).__name__,
        },
        "versions": _versions(),
        "timings": {},
        "images": [],
    }


@dataclass(frozen=True)
class Picture:
    """One picture and how well it keeps its depth."""

    image: Image.Image
    prompt: str
    seed: int
    seconds: float
    """What drawing it took, without measuring it."""
    control: np.ndarray
    """float32 [H, W], near = 1: what the ControlNet saw."""
    own_depth: DepthMap
    """Depth of the picture, as the judge sees it."""
    fidelity: dict[str, float]
    """`fidelity(control, to_control(own_depth))`."""


def make_pictures(
    pipe: DiffusionPipeline,
    judge: DepthEstimator,
    depth_map: DepthMap,
    prompts: Sequence[str],
    settings: Settings,
    on_step: Callable | None = None,
) -> Iterator[Picture]:
    """Draw pictures one after the other and measure each.

    Args:
        pipe: From `load_pipeline`.
        judge: Estimator of the pictures' own depth.
        depth_map: What they shall keep.
        prompts: `settings.num_images` pictures are drawn for each.
        settings: Checked settings. Picture i starts from `seed + i` and depends on nothing else of its place.
        on_step: `callback_on_step_end` of diffusers; what it raises ends the drawing.

    Yields:
        By prompt, then by number.
    """
    for i, text in enumerate(text for text in prompts for _ in range(settings.num_images)):
        start = time.perf_counter()
        output = pipe(
            text,
            depth=depth_map,
            generator=torch.Generator().manual_seed(settings.seed + i),
            callback_on_step_end=on_step,
            **_call_arguments(settings),
        )
        seconds = time.perf_counter() - start
        own_depth = judge(output.images[0])
        measured = fidelity(output.control, to_control(own_depth))
        yield Picture(output.images[0], text, settings.seed + i, seconds, output.control, own_depth, measured)


def _write_pictures(
    made: Iterator[Picture], photo: Image.Image | None, depth_map: DepthMap, folder: Path, report: dict[str, Any]
) -> None:
    """Write one picture after the other; what is done stays, whatever happens to the next."""
    pictures: list[Picture] = []
    _write_report(folder, report)
    try:
        for i, picture in enumerate(made):
            name = f"image_{i}.png"
            _write(folder / name, picture.image.save)
            pictures.append(picture)
            entry = {"file": name} | {key: getattr(picture, key) for key in ("prompt", "seed", "seconds", "fidelity")}
            report["images"].append(entry)
            report["settings"]["size"] = f"{picture.image.width}x{picture.image.height}"
            _write_report(folder, report)
    finally:
        if pictures:
            strip = _draw_strip(photo, depth_map, [p.image for p in pictures], [p.prompt for p in pictures])
            _write(folder / "comparison.png", strip.save)


def _call_arguments(settings: Settings) -> dict[str, Any]:
    width, height = settings.width_height
    return {
        "width": width,
        "height": height,
        "num_inference_steps": settings.steps,
        "guidance_scale": _guidance(settings),
        "negative_prompt": settings.negative_prompt or None,
        "controlnet_conditioning_scale": float(settings.control_scale),
        "control_guidance_start": float(settings.control_start),
        "control_guidance_end": float(settings.control_end),
        "near": settings.near,
        "far": settings.far,
        "gamma": settings.gamma,
        "invert": settings.invert,
    }


def _guidance(settings: Settings) -> float:
    return default_guidance(settings.model) if settings.guidance_scale is None else settings.guidance_scale


def _step_callback(progress: Progress | None, pictures: int, steps: int) -> Callable | None:
    if progress is None:
        return None
    index = -1

    def report_step(pipe: DiffusionPipeline, step: int, timestep: Any, tensors: dict) -> dict:
        nonlocal index
        index += step == 0
        # Some schedulers take more calls than steps.
        done = index * steps + min(step + 1, steps)
        progress(done, pictures * steps, f"picture {index + 1} of {pictures}")
        return tensors

    return report_step


def _check_prompts(prompt: str | Sequence[str]) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts or not all(isinstance(text, str) and text.strip() for text in prompts):
        raise InputError("--prompt is empty: say what the pictures should show")
    return prompts


def _open_inputs(image: Any, depth: Any, kind: str | None) -> tuple[Image.Image | None, DepthMap | None]:
    if image is None and depth is None:
        raise InputError("nothing to work from: give a photo, or a depth map with --depth")
    if depth is None and kind is not None:
        raise InputError("--depth-kind says what the file of --depth holds: give --depth too, or leave both out")
    photo = None if image is None else open_image(image)
    if depth is None:
        return photo, None
    depth_map = as_depth_map(depth, kind)
    if depth_map.valid is not None and not depth_map.valid.any():
        raise InputError("--depth holds no valid pixel: distances must be finite and, in metres, above 0")
    return photo, depth_map


def _make_folder(out: str | os.PathLike) -> Path:
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made into a folder ({error.strerror})") from None
    if not os.access(out, os.W_OK):
        raise InputError(f"--out {out}: no permission to write there")
    return Path(out)


def estimator_of(pipe: DiffusionPipeline) -> DepthEstimator:
    model = pipe.depth_estimator
    return DepthEstimator(model, pipe.depth_processor, model.device, model.dtype)


def _warn_of_unknown_words(pipe: DiffusionPipeline, texts: list[str]) -> None:
    if unknown := unknown_words(pipe.tokenizer, texts):
        known = ", ".join(known_words(pipe.tokenizer))
        warnings.warn(f"this model does not know the words {', '.join(unknown)}; it knows: {known}", stacklevel=3)


def _draw_strip(
    photo: Image.Image | None, depth_map: DepthMap, pictures: list[Image.Image], captions: list[str]
) -> Image.Image:
    """Photo, depth and pictures side by side, each under a short caption."""
    width, height = pictures[0].size
    tiles = [("photo", photo), ("depth", depth_map.colorize()), *zip(captions, pictures, strict=False)]
    tiles = [(text, tile.resize((width, height), Image.Resampling.LANCZOS)) for text, tile in tiles if tile is not None]
    strip = Image.new("RGB", (width * len(tiles), height + CAPTION_HEIGHT), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(CAPTION_HEIGHT - 5)
    for i, (text, tile) in enumerate(tiles):
        strip.paste(tile, (i * width, CAPTION_HEIGHT))
        while text and draw.textlength(text, font) > width - 6:
            text = text[:-2].rstrip(" .…") + "…" if len(text) > 2 else ""
        draw.text((i * width + 3, 1), text, fill="black", font=font)
    return strip


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for name in ("depth-control", "torch", "diffusers", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _write_report(folder: Path, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False)
    _write(folder / "result.json", lambda path: path.write_text(text + "\n", encoding="utf-8"))


def _write(path: Path, save: Callable[[Path], Any]) -> None:
    """A file is there whole or not at all, and replaces an older one only then."""
    # Pillow goes by the suffix, so the name changes in front.
    temporary = path.with_name(f".{path.name}")
    try:
        save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
