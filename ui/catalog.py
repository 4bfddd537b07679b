"""The models on the app's menus, with what a person wants to know before choosing one."""

import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from depth_control.presets import EMBEDDED, PRESETS
from depth_model.errors import InputError
from depth_model.estimator import EMBEDDED as EMBEDDED_DEPTH


@dataclass(frozen=True)
class Choice:
    """One entry of a menu."""

    name: str
    """What `load_pipeline` or `DepthEstimator.from_pretrained` takes."""
    title: str
    size: str
    licence: str
    teraflops: float | None = None
    """Of one denoising step with its ControlNet at the native size; None where only a run can tell."""

    @property
    def label(self) -> str:
        """One line for a menu."""
        return f"{self.title} · {self.size} · {self.licence}"


# Sizes are of the float32 safetensors that `load_pipeline` downloads; FLOPs count 2 for each multiplication.
HUB_IMAGE = (
    Choice("sd15", "Stable Diffusion 1.5", "5.8 GB, downloaded once", "CreativeML OpenRAIL-M", 1.1),
    Choice("sdxl", "Stable Diffusion XL", "19 GB, downloaded once", "CreativeML OpenRAIL++-M", 9.8),
)
HUB_CONTROLNET = (
    Choice("depth-anything", "Depth Anything's own, for SD 1.5", "1.5 GB, downloaded once", "Apache-2.0"),
)
HUB_DEPTH = (
    Choice("depth-anything/Depth-Anything-V2-Small-hf", "Depth Anything V2 Small", "99 MB, downloaded", "Apache-2.0"),
    Choice("depth-anything/Depth-Anything-V2-Base-hf", "Depth Anything V2 Base", "390 MB, downloaded", "CC-BY-NC-4.0"),
    Choice(
        "depth-anything/Depth-Anything-V2-Large-hf", "Depth Anything V2 Large", "1.3 GB, downloaded", "CC-BY-NC-4.0"
    ),
)


@dataclass(frozen=True)
class Catalog:
    """All menus."""

    image: tuple[Choice, ...]
    controlnet: tuple[Choice, ...]
    depth: tuple[Choice, ...]

    def check(self, image: str, controlnet: str = "", depth: str = "") -> None:
        """Refuse what is on no menu: people on a network choose, they do not name folders of this machine.

        Raises:
            InputError: names the menu.
        """
        for value, menu, name in (
            (image, self.image, "image model"),
            (controlnet, self.controlnet, "ControlNet"),
            (depth, self.depth, "depth model"),
        ):
            if value and value not in (choice.name for choice in menu):
                raise InputError(f"{name}: {value[:80]!r} is not on the menu")

    def teraflops(self, image: str) -> float | None:
        """See `Choice.teraflops`."""
        return next(choice.teraflops for choice in self.image if choice.name == image)


def read_catalog(models_dir: Path | None = None) -> Catalog:
    """The embedded models, those on the Hub that we stand for, and the folders directly in `models_dir`.

    Raises:
        InputError: `models_dir` is no folder.
    """
    own: dict[str, list[Choice]] = {"image": [], "controlnet": [], "depth": []}
    if models_dir is not None:
        if not models_dir.is_dir():
            raise InputError(f"--models-dir {models_dir}: no such folder")
        for path in sorted(models_dir.iterdir()):
            if kind := _kind(path):
                own[kind].append(Choice(str(path.resolve()), path.name, _size(path), _licence(path)))
    packaged = [
        Choice(
            "embedded",
            "Embedded" if kind == "depth" else "Embedded, draws simple scenes",
            f"{_size(folder)}, in the package",
            "Apache-2.0" if kind == "image" else _licence(folder),
        )
        for kind, folder in (("image", EMBEDDED), ("depth", EMBEDDED_DEPTH))
    ]
    return Catalog(
        (packaged[0], *own["image"], *HUB_IMAGE),
        (*own["controlnet"], *HUB_CONTROLNET),
        (packaged[1], *own["depth"], *HUB_DEPTH),
    )


def default_depth(image: str) -> str:
    """Depth model that a preset brings; "embedded" for every folder without one."""
    return (PRESETS[image].depth_model if image in PRESETS else None) or "embedded"


@cache
def machine_flops() -> float:
    """Floating point operations per second of this machine in one kind of convolution; takes a tenth of a second."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, weight = torch.randn(4, 128, 64, 64, device=device), torch.randn(128, 128, 3, 3, device=device)
    flops = 2 * 4 * 128 * 128 * 9 * 64 * 64
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        torch.nn.functional.conv2d(images, weight, padding=1)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return flops / min(seconds)


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _kind(path: Path) -> str | None:
    if path.is_file():
        return "depth" if path.suffix == ".pth" else None
    if (path / "model_index.json").is_file():
        return "image"
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    if config.get("_class_name") == "ControlNetModel":
        return "controlnet"
    return "depth" if config.get("model_type") == "depth_anything" else None


def _size(path: Path) -> str:
    files = [path] if path.is_file() else list(path.rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _licence(path: Path) -> str:
    """The licence that a model card states; "other" is what cards say of a notice beside the weights."""
    try:
        lines = (path / "README.md").read_text(encoding="utf-8", errors="replace")[:4000].splitlines()
    except OSError:
        return "licence not stated"
    stated = [line.partition(":")[2].strip() for line in lines if line.startswith("license:")]
    if not stated or not stated[0]:
        return "licence not stated"
    return "see its notice" if stated[0] == "other" else stated[0][:60]
