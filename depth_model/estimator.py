"""The depth estimator: pictures in, depth maps out."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import DepthAnythingForDepthEstimation, DPTImageProcessorPil

from depth_model.data.transforms import preprocess
from depth_model.depth_map import DepthMap
from depth_model.errors import InputError
from depth_model.images import ImageSource, open_image
from depth_model.model_folder import default_processor, download, load_folder, quiet
from depth_model.modeling import PATCH, version_of
from depth_model.original import load_original

EMBEDDED = Path(__file__).parent / "embedded"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_BATCH = 8
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DepthEstimator:
    """A Depth Anything model with its preprocessing.

    Attributes:
        model: `transformers.DepthAnythingForDepthEstimation`, in evaluation mode.
        processor: the stock image processor whose fields hold the preprocessing. One field is ours: `antialias`, False
            (as published) when absent; see `depth_model.data.transforms.preprocess`.
        device, dtype: where and in what precision the model runs.
        kind: "disparity" or "metric", of the maps it makes.
    """

    def __init__(
        self,
        model: DepthAnythingForDepthEstimation,
        processor: DPTImageProcessorPil | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        """Wrap a model, which is moved to `device` and `dtype` and put in evaluation mode in place.

        Args:
            model: the network.
            processor: None for the one that belongs to the model's size.
            device: "cpu", "cuda", "mps" or such; None or "auto" for the best there is.
            dtype: "float32" (also None), "bfloat16" or "float16".

        Raises:
            InputError: a device that is not there, or an unknown dtype.
        """
        self.device, self.dtype = _pick_device(device), _pick_dtype(dtype)
        self.model = model.to(device=self.device, dtype=self.dtype).eval()
        self.processor = processor or default_processor(model.config)
        self.kind = "metric" if model.config.depth_estimation_type == "metric" else "disparity"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike = "embedded",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        preset: str | None = None,
    ) -> Self:
        """Load an estimator. Code in a checkpoint is never run.

        Args:
            name_or_path: "embedded" (ships with the package), a transformers folder with safetensors weights, a Hugging
                Face Hub id `ORG/NAME`, or an original Depth Anything V1 or V2 `.pth` file.
            device, dtype: as for the class.
            preset: what an original `.pth` is when its file name does not say; see
                `depth_model.original.load_original`.

        Raises:
            InputError: nothing there, no network, not a Depth Anything model, or damaged weights.
        """
        source = os.fspath(name_or_path)
        path = EMBEDDED if source == "embedded" else Path(source)
        if source == "embedded" and not (path / "config.json").is_file():
            raise InputError(
                "embedded: this installation has no embedded depth model; give a folder, a Hub id or a .pth"
            )
        if path.suffix.lower() in (".pth", ".pt") and not path.is_dir():
            return cls(load_original(path, preset), None, device, dtype)
        if preset is not None:
            raise InputError(
                f"{source}: preset= is for original .pth files only; a model folder says itself what it is"
            )
        if path.is_file():
            raise InputError(f"{source}: not a model; give a folder, a Hub id or an original .pth file")
        if path.is_dir():
            return cls(*load_folder(path, str(path)), device, dtype)
        if not _HUB_ID.fullmatch(source):
            raise InputError(
                f"{source}: no such file or folder; give 'embedded', a folder, a Hub id ORG/NAME or a .pth file"
            )
        return cls(*load_folder(download(source), source), device, dtype)

    def __call__(self, images: ImageSource | list[ImageSource] | tuple[ImageSource, ...]) -> DepthMap | list[DepthMap]:
        """Estimate depth.

        Args:
            images: anything `depth_model.images.open_image` takes, or a list or tuple of such. Neighbours in a list
                that have the same input size run as one batch.

        Returns:
            A map of the (upright) image's own height and width, or a list of them. Values are >= 0.

        Raises:
            InputError: an image that cannot be read.
            RuntimeError: the model gave NaN or infinity.
        """
        if not isinstance(images, list | tuple):
            return next(self._estimate([images]))
        return list(self._estimate(images))

    # Not inference_mode: its tensors could not enter a later training graph, and ControlNet training feeds on these.
    @torch.no_grad()
    def predict_tensor(self, pixel_values: Tensor, check: bool = True) -> Tensor:
        """Run the network alone.

        Args:
            pixel_values: normalised images [B, 3, h, w], h and w multiples of 14, on any device.
            check: False leaves NaN and infinity to the caller.

        Returns:
            float32 [B, h, w] on the model's device: disparity, or metres for a metric model.

        Raises:
            RuntimeError: the model gave NaN or infinity.
        """
        depth = self.model(pixel_values.to(self.device, self.dtype)).predicted_depth.float()
        if check and not depth.isfinite().all():
            raise RuntimeError(f"the depth model gave NaN or infinity in {self.dtype}; try dtype float32")
        return depth

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into normalised network input, float32 [1, 3, h, w] on the CPU."""
        fields = self.processor
        return preprocess(
            image,
            lower_bound=fields.size["height"],
            mean=fields.image_mean,
            std=fields.image_std,
            antialias=getattr(fields, "antialias", False),
            multiple=PATCH,
        )

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write a plain transformers model folder, in the estimator's dtype, that stock loaders and this class open."""
        with quiet():
            self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _estimate(self, sources: Iterable[ImageSource]) -> Iterator[DepthMap]:
        batch: list[Tensor] = []
        sizes: list[tuple[int, int]] = []
        for source in sources:
            image = open_image(source)
            pixels = self.preprocess(image)
            if batch and (batch[0].shape != pixels.shape or len(batch) == _BATCH):
                yield from self._run(batch, sizes)
                batch, sizes = [], []
            batch.append(pixels)
            sizes.append((image.height, image.width))
        if batch:
            yield from self._run(batch, sizes)

    def _run(self, batch: list[Tensor], sizes: list[tuple[int, int]]) -> Iterator[DepthMap]:
        depth = self.predict_tensor(torch.cat(batch)).cpu()
        # The two releases resize their output differently.
        align_corners = version_of(self.model.config) == "v2"
        for one, size in zip(depth, sizes, strict=True):
            resized = F.interpolate(one[None, None], size=size, mode="bilinear", align_corners=align_corners)
            yield DepthMap(resized[0, 0].clamp(min=0).numpy(), self.kind)


def _pick_device(device: str | torch.device | None) -> torch.device:
    if device in (None, "auto"):
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):
        raise InputError(f"device {str(device)!r} is not available here; give cpu or auto") from None


def _pick_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    picked = _DTYPES.get(dtype or "float32") if dtype is None or isinstance(dtype, str) else dtype
    if picked not in _DTYPES.values():
        raise InputError(f"dtype {str(dtype)!r} is unknown; give {', '.join(_DTYPES)}")
    return picked
