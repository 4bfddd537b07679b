"""Diffusers pipelines that take a photo, or its depth, instead of a ready ControlNet condition.

They are generated subclasses: two more components and a `__call__` that fills in the condition; the denoising loop,
saving, loading, offloading, callbacks and adapters are the base class's own.
"""

import inspect
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    MultiControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from depth_control.conditioning import as_depth_map, resize_map, to_control
from depth_control.hooks import skip_at_zero_scale
from depth_model import DepthEstimator, DepthMap
from depth_model.errors import InputError
from depth_model.images import open_image

SIDE_MULTIPLE = 8
SHORTEST_SIDE = 128
LONGEST_ASPECT = 4.0


class _DepthCall:
    """What `with_depth` puts in front of a pipeline class."""

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> DiffusionPipeline:
        """Make this pipeline from another one's components, without loading them again.

        Unlike the stock method it keeps the dtype (the stock default casts the shared weights to float32) and any
        autoencoder class.
        """
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", pipeline.dtype)
        wanted, _ = cls._get_signature_keys(cls)
        shared = {name: part for name, part in pipeline.components.items() if name in wanted}
        return super().from_pipe(pipeline, **(shared | kwargs))

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        depth_source: Any = None,
        depth: Any = None,
        near: float = 0.0,
        far: float = 1.0,
        gamma: float = 1.0,
        invert: bool = False,
        depth_kind: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate pictures that keep the geometry of a photo.

        Args:
            *args: Positional arguments of the base class, the prompt first.
            depth_source: Photo (PIL or path) whose depth is estimated, or a list with one for each prompt.
            depth: The depth itself, or a list: `DepthMap`, array [H, W], grey PIL image of 8 or 16 bits.
            near: See `to_control`.
            far: See `to_control`.
            gamma: See `to_control`.
            invert: See `to_control`.
            depth_kind: What `depth` holds, see `to_control`.
            **kwargs: Anything else the base class takes. `height` and `width` (pixels, multiples of 8) default to the
                whole photo at its aspect and about the model's native area. Image-to-image starts from `image`, by
                default from `depth_source`. With several ControlNets, the depth condition goes where the list of
                conditions holds None, and to all of them if no list is given.

        Returns:
            The base class's output with `depth` (`DepthMap`) and `control` (float32 [height, width], near = 1), lists
            where a list came in; its plain tuple with `return_dict=False`. Without `depth_source` and `depth`: exactly
            what the base class does.

        Raises:
            InputError: Depth arguments that do not fit together, cannot be read, or are out of range.
        """
        if depth_source is None and depth is None:
            return super().__call__(*args, **kwargs)
        call = dict(zip(_parameters(type(self)), args, strict=False)) | kwargs
        photos, maps = self._depth_maps(depth_source, depth, depth_kind)
        _check_batch(call, len(maps))
        height, width = self._size(maps, call.get("height"), call.get("width"))
        controls = [resize_map(to_control(m, near, far, gamma, invert), height, width) for m in maps]
        call |= {"height": height, "width": width}
        self._place(call, torch.from_numpy(np.stack(controls))[:, None].expand(-1, 3, -1, -1), photos)
        output = super().__call__(**call)
        if call.get("return_dict", True):
            several = isinstance(depth_source if depth is None else depth, list | tuple)
            output["depth"] = maps if several else maps[0]
            output["control"] = controls if several else controls[0]
        return output

    def _depth_maps(self, source: Any, depth: Any, kind: str | None) -> tuple[list[Image.Image], list[DepthMap]]:
        if source is not None and depth is not None:
            raise InputError("pass depth_source (a photo to estimate depth from) or depth (the map itself), not both")
        if source is None:
            items = list(depth) if isinstance(depth, list | tuple) else [depth]
            return [], [as_depth_map(item, kind) for item in items]
        if kind is not None:
            raise InputError("depth_kind says what depth= holds; depth_source= is a photo and needs none")
        if self.depth_estimator is None or self.depth_processor is None:
            raise InputError(
                "depth_source needs a depth estimator: load the pipeline with depth_estimator= and depth_processor= "
                "(the model and processor of a DepthEstimator), or pass depth="
            )
        photos = [open_image(item) for item in (source if isinstance(source, list | tuple) else [source])]
        estimator = DepthEstimator(
            self.depth_estimator, self.depth_processor, self._execution_device, self.depth_estimator.dtype
        )
        return photos, [estimator(photo) for photo in photos]

    def _size(self, maps: list[DepthMap], height: int | None, width: int | None) -> tuple[int, int]:
        for name, side in (("height", height), ("width", width)):
            if side is not None and (side < SIDE_MULTIPLE or side % SIDE_MULTIPLE):
                raise InputError(f"{name} must be a multiple of {SIDE_MULTIPLE}, not {side}")
        sample = self.unet.config.sample_size
        native = float(np.sqrt(np.prod(sample) if isinstance(sample, list | tuple) else sample**2))
        sizes = {picture_size(*m.values.shape, native * self.vae_scale_factor, height, width) for m in maps}
        if len(sizes) > 1:
            raise InputError("photos of one batch must have the same shape: pass height= and width=, or one at a time")
        return sizes.pop()

    def _place(self, call: dict[str, Any], control: torch.Tensor, photos: list[Image.Image]) -> None:
        """Put the condition, and the image to start from, where the base class looks for them."""
        parameters = _parameters(type(self))
        slot = "control_image" if "control_image" in parameters else "image"
        given = call.get(slot)
        if isinstance(self.controlnet, MultiControlNetModel):
            conditions = given if given is not None else [None] * len(self.controlnet.nets)
            call[slot] = [control if condition is None else condition for condition in conditions]
        elif given is not None:
            raise InputError(f"{slot} is the condition itself: pass it alone, or a photo or depth, not both")
        else:
            call[slot] = control
        if slot == "control_image" and call.get("image") is None:
            if not photos:
                raise InputError("image-to-image needs image=, the picture to start from, beside depth=")
            call["image"] = photos


@cache
def with_depth(base: type[DiffusionPipeline]) -> type[DiffusionPipeline]:
    """Make a ControlNet pipeline class that reads photos and depth maps.

    Args:
        base: A Stable Diffusion ControlNet pipeline class (text-to-image, image-to-image).

    Returns:
        A subclass named `Depth<base>` with two optional components, `depth_estimator` (a transformers depth model) and
        `depth_processor` (its image processor). Folders it saves load in stock diffusers, and the other way round.

    Raises:
        InputError: `base` has no ControlNet beside a UNet. Those of transformers take the condition through the
            autoencoder, in [-1, 1].
    """
    names = inspect.signature(base.__init__).parameters
    if "controlnet" not in names or "unet" not in names:
        raise InputError(f"{base.__name__} has no ControlNet beside a UNet: with_depth needs a Stable Diffusion one")
    return type(
        f"Depth{base.__name__}",
        (_DepthCall, base),
        {
            "__init__": _init_of(base),
            "__doc__": f"`{base.__name__}` that also takes `depth_source=` or `depth=`.",
            "__module__": __name__,
            "model_cpu_offload_seq": f"depth_estimator->{base.model_cpu_offload_seq}",
            # Its weights must be in reach between layers, which sequential offloading does not give.
            "_exclude_from_cpu_offload": [*base._exclude_from_cpu_offload, "depth_estimator"],
            "_optional_components": [*base._optional_components, "depth_estimator", "depth_processor"],
        },
    )


def condition_range(pipe: DiffusionPipeline) -> tuple[float, float]:
    """What the pipeline's own processor makes of a black and of a white condition: (0, 1) for Stable Diffusion.

    Training must feed the same.
    """
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("black", "white")]
    black, white = (pipe.control_image_processor.preprocess(picture) for picture in pictures)
    return float(black.mean()), float(white.mean())


def picture_size(
    rows: int, columns: int, native: float, height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """Choose the size of a picture of a whole photo.

    Args:
        rows: Height of the photo.
        columns: Width of the photo.
        native: Side of the square pictures that the model was trained on, pixels.
        height: Rows wanted, or None.
        width: Columns wanted, or None; a single given side leaves the other to the photo's aspect.

    Returns:
        Height and width, multiples of 8: the photo's aspect (at most 4:1) at the native area, with no side under
        128 pixels (or the native side, if that is less).
    """
    if height and width:
        return height, width
    aspect = min(max(columns / rows, 1 / LONGEST_ASPECT), LONGEST_ASPECT)
    if height or width:
        return height or _round(width / aspect), width or _round(height * aspect)
    short = max(native / max(aspect, 1 / aspect) ** 0.5, min(SHORTEST_SIDE, native))
    return _round(short * max(1.0, 1 / aspect)), _round(short * max(1.0, aspect))


def _round(side: float) -> int:
    return max(SIDE_MULTIPLE, round(side / SIDE_MULTIPLE) * SIDE_MULTIPLE)


def _init_of(base: type[DiffusionPipeline]) -> Any:
    """`__init__` with two more components; diffusers reads a pipeline's components from the signature."""

    def __init__(self, *args: Any, depth_estimator=None, depth_processor=None, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)
        self.register_modules(depth_estimator=depth_estimator, depth_processor=depth_processor)
        if isinstance(self.controlnet, ControlNetModel | MultiControlNetModel):
            skip_at_zero_scale(self.controlnet)

    signature = inspect.signature(base.__init__)
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in (("depth_estimator", PreTrainedModel), ("depth_processor", BaseImageProcessor))
    ]
    __init__.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *extra])
    return __init__


def _parameters(cls: type[DiffusionPipeline]) -> list[str]:
    """Names that the base class's `__call__` takes, in order."""
    return list(inspect.signature(super(_DepthCall, cls).__call__).parameters)[1:]


def _check_batch(call: dict[str, Any], maps: int) -> None:
    prompt = call.get("prompt")
    embeds = call.get("prompt_embeds")
    prompts = len(prompt) if isinstance(prompt, list) else 1 if embeds is None else len(embeds)
    if maps not in (1, prompts):
        raise InputError(f"got {maps} photos or depth maps for {prompts} prompts: pass one, or one for each prompt")


DepthStableDiffusionControlNetPipeline = with_depth(StableDiffusionControlNetPipeline)
DepthStableDiffusionControlNetImg2ImgPipeline = with_depth(StableDiffusionControlNetImg2ImgPipeline)
DepthStableDiffusionXLControlNetPipeline = with_depth(StableDiffusionXLControlNetPipeline)
DepthStableDiffusionXLControlNetImg2ImgPipeline = with_depth(StableDiffusionXLControlNetImg2ImgPipeline)
