"""Images to network input, as published (Depth Anything V1 and V2, released preprocessing)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_ASPECT = 4


def network_size(height: int, width: int, lower_bound: int, multiple: int = 14) -> tuple[int, int]:
    """Size of the network input for an image, (height, width) in pixels.

    The image is scaled until both sides reach `lower_bound`; each side is then rounded to the nearest multiple, and up
    where that falls below the bound. Beyond 4:1 the long side is squeezed to four times the short one, to bound memory.
    """
    scale = max(lower_bound / height, lower_bound / width)

    def constrain(side: int) -> int:
        # Halves round to even, as numpy does in the released code.
        rounded = round(scale * side / multiple) * multiple
        return rounded if rounded >= lower_bound else math.ceil(scale * side / multiple) * multiple

    new_height, new_width = constrain(height), constrain(width)
    longest = MAX_ASPECT * min(new_height, new_width)
    return min(new_height, longest), min(new_width, longest)


def preprocess(
    image: Image.Image,
    lower_bound: int = 518,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    antialias: bool = False,
    multiple: int = 14,
) -> Tensor:
    """Turn an RGB image into normalised network input, float32 [1, 3, h, w].

    Args:
        image: 8-bit RGB.
        lower_bound: shortest side of the input, pixels.
        mean: subtracted per channel, in the 0..1 range.
        std: divided by per channel.
        antialias: False is the published resizing (OpenCV's INTER_CUBIC: a = -0.75, four taps however strong the
            reduction, border replicated); True filters before reducing, for small networks that would otherwise see
            only every tenth pixel of a photo.
        multiple: what both sides are a multiple of, pixels.
    """
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)[None].float() / 255
    size = network_size(image.height, image.width, lower_bound, multiple)
    resized = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=antialias)
    shape = (1, 3, 1, 1)
    return ((resized - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)).contiguous()
