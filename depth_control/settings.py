"""What `generate` can be told, checked before any model is loaded. Needs no torch."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from depth_control.conditioning import check_window
from depth_model.errors import InputError

SIDES = (64, 4096)
MAX_STEPS = 1000
MAX_IMAGES = 1000
MAX_SCALE = 10.0
MAX_GUIDANCE = 100.0


@dataclass(frozen=True)
class Settings:
    """Settings of one run of `generate`.

    Raises:
        InputError: A value out of range; the message names the command line flag.
    """

    model: str = "embedded"
    """Text-to-image model: embedded, sd15, sdxl, a diffusers folder, or a Hugging Face Hub id."""
    controlnet: str | None = None
    """ControlNet folder or Hub id, or depth-anything (the authors' own, for SD 1.5). Default: the model's."""
    depth_model: str | None = None
    """Depth estimator: embedded, a folder, or a Hub id. Default: the model's."""
    judge: str | None = None
    """Depth estimator that measures how well the pictures obey. Default: the depth model."""
    depth_kind: Literal["disparity", "metric"] | None = None
    """What the depth file holds when it does not say: disparity (near bright), or metric (metres)."""
    seed: int = 0
    """Picture i starts from the noise of seed + i."""
    num_images: int = 1
    """Pictures for each prompt."""
    steps: int = 20
    """Denoising steps."""
    negative_prompt: str = ""
    """What the pictures should not show."""
    guidance_scale: float | None = None
    """How strictly to follow the prompt; 1 or less: no guidance, at half the time. Default: what suits the model."""
    control_scale: float = 1.0
    """How strongly the depth acts; 0: not at all."""
    control_start: float = 0.0
    """Share of the steps after which the depth starts to act, 0 to 1."""
    control_end: float = 1.0
    """Share of the steps after which the depth stops acting, 0 to 1."""
    near: float = 0.0
    """Where white begins, on the map's own scale: 0 is the nearest point, 1 the farthest."""
    far: float = 1.0
    """Where black begins, on the same scale."""
    gamma: float = 1.0
    """Exponent applied to the depth condition; above 1 darkens the middle distance."""
    invert: bool = False
    """Make far white, for ControlNets trained that way."""
    size: str | None = None
    """Size of the pictures as WxH, in pixels, multiples of 8. Default: the whole photo at the model's native area."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the best there is."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Precision of the networks. Default: float16 on CUDA, else float32."""

    def __post_init__(self) -> None:
        _check_range("--seed", self.seed, 0, 2**63 - 1 - MAX_IMAGES**2, whole=True)
        _check_range("--num-images", self.num_images, 1, MAX_IMAGES, whole=True)
        _check_range("--steps", self.steps, 1, MAX_STEPS, whole=True)
        if self.guidance_scale is not None:
            _check_range("--guidance-scale", self.guidance_scale, 0.0, MAX_GUIDANCE)
        _check_range("--control-scale", self.control_scale, 0.0, MAX_SCALE)
        _check_range("--control-start", self.control_start, 0.0, 1.0)
        _check_range("--control-end", self.control_end, 0.0, 1.0)
        if self.control_start >= self.control_end:
            raise InputError(
                f"--control-start ({self.control_start}) must be less than --control-end ({self.control_end}); "
                "for no control at all give --control-scale 0"
            )
        check_window(self.near, self.far, self.gamma, prefix="--")
        _ = self.width_height

    @property
    def width_height(self) -> tuple[int, int] | tuple[None, None]:
        """`size` as numbers, pixels."""
        if self.size is None:
            return None, None
        match = re.fullmatch(r"\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*", self.size)
        if match is None:
            raise InputError(f"--size must be WIDTHxHEIGHT in pixels, such as 512x384, not {self.size!r}")
        width, height = (int(side) for side in match.groups())
        for side in (width, height):
            if side % 8 or not SIDES[0] <= side <= SIDES[1]:
                raise InputError(f"--size {self.size}: sides must be multiples of 8 from {SIDES[0]} to {SIDES[1]}")
        return width, height


def _check_range(flag: str, value: float, low: float, high: float, whole: bool = False) -> None:
    if whole and (not isinstance(value, int) or isinstance(value, bool)):
        raise InputError(f"{flag} must be a whole number, not {value!r}")
    if not math.isfinite(value) or not low <= value <= high:
        raise InputError(f"{flag} must be from {low} to {high}, not {value}")
