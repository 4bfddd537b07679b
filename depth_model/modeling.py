"""Depth Anything as transformers modules: sizes and random initialisation.

The network is `transformers.DepthAnythingForDepthEstimation` (a DINOv2 encoder, a DPT neck and head). V1 taps the last
four encoder blocks, V2 taps blocks spread over the depth; nothing else differs between the two networks.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from depth_model.errors import InputError

PATCH = 14
"""Side of the encoder's patches, pixels."""

UNUSED_WEIGHTS = ("backbone.embeddings.mask_token", "neck.fusion_stage.layers.0.residual_layer1.")
"""In the network but never used by its forward pass, so a checkpoint may lack them (key prefixes)."""


@dataclass(frozen=True)
class Preset:
    """One size of the network (V1 section 4.1 and the released code for everything but `tiny`)."""

    hidden: int
    """Width of the encoder."""
    layers: int
    """Encoder blocks."""
    heads: int
    """Attention heads."""
    taps: tuple[int, int, int, int]
    """Blocks whose outputs feed the neck in V2, counted from 1."""
    neck: tuple[int, int, int, int]
    """Channels of the four reassembled feature maps, finest first."""
    fusion: int
    """Channels of the fusion blocks."""
    head: int = 32
    """Channels of the last hidden convolution."""
    lower_bound: int = 518
    """Shortest side of the network input, pixels."""
    position_size: int = 518
    """Side of the square image whose patches have a position embedding each, pixels."""
    swiglu: bool = False
    """Gated feed-forward layers (DINOv2 giant)."""


PRESETS = {
    "tiny": Preset(192, 8, 3, (2, 4, 6, 8), (16, 32, 64, 128), 24, head=12, lower_bound=112, position_size=112),
    "small": Preset(384, 12, 6, (3, 6, 9, 12), (48, 96, 192, 384), 64),
    "base": Preset(768, 12, 12, (3, 6, 9, 12), (96, 192, 384, 768), 128),
    "large": Preset(1024, 24, 16, (5, 12, 18, 24), (256, 512, 1024, 1024), 256),
    "giant": Preset(1536, 40, 24, (10, 20, 30, 40), (1536, 1536, 1536, 1536), 384, swiglu=True),
}


def model_config(
    preset: str, version: str = "v2", depth_estimation_type: str = "relative", max_depth: int | None = None
) -> DepthAnythingConfig:
    """Describe one network.

    Args:
        preset: a key of `PRESETS`.
        version: "v1" (last four blocks tapped) or "v2" (spread taps).
        depth_estimation_type: "relative" (disparity, ReLU output) or "metric" (metres, sigmoid times `max_depth`).
        max_depth: metres at the sigmoid's upper end; needed for "metric", not used for "relative".

    Raises:
        InputError: an unknown preset, version or type, or a metric model without `max_depth`.
    """
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    if version not in ("v1", "v2"):
        raise InputError(f"unknown version {version!r}; choose v1 or v2")
    if depth_estimation_type not in ("relative", "metric"):
        raise InputError(f"unknown depth_estimation_type {depth_estimation_type!r}; choose relative or metric")
    metric = depth_estimation_type == "metric"
    if metric and not (max_depth and max_depth > 0):
        raise InputError("a metric model needs max_depth, a whole number of metres, such as 20 indoors or 80 outdoors")
    size = PRESETS[preset]
    encoder = Dinov2Config(
        image_size=size.position_size,
        patch_size=PATCH,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        use_swiglu_ffn=size.swiglu,
        out_indices=list(size.taps if version == "v2" else _last_four(size.layers)),
        reshape_hidden_states=False,
    )
    return DepthAnythingConfig(
        backbone_config=encoder,
        patch_size=PATCH,
        reassemble_hidden_size=size.hidden,
        neck_hidden_sizes=list(size.neck),
        fusion_hidden_size=size.fusion,
        head_hidden_size=size.head,
        depth_estimation_type=depth_estimation_type,
        max_depth=int(max_depth) if metric else 1,
    )


def version_of(config: DepthAnythingConfig) -> str:
    """Return "v1" when the last four encoder blocks are tapped, else "v2"."""
    encoder = config.backbone_config
    return "v1" if tuple(encoder.out_indices) == _last_four(encoder.num_hidden_layers) else "v2"


def build_model(
    preset: str, version: str = "v2", depth_estimation_type: str = "relative", max_depth: int | None = None
) -> DepthAnythingForDepthEstimation:
    """Build a randomly initialised network that can be trained from scratch; arguments as in `model_config`.

    Draws from torch's global generator: seed it first for the same weights again.
    """
    model = DepthAnythingForDepthEstimation(model_config(preset, version, depth_estimation_type, max_depth))
    initialise_decoder(model)
    return model


@torch.no_grad()
def initialise_decoder(model: DepthAnythingForDepthEstimation) -> None:
    """Draw new weights for the neck and the head in place, for training from scratch or on a pretrained encoder."""
    for part in (model.neck, model.head):
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                # Keeps the variance; the transformers default (0.02) makes the signal vanish in layers this narrow.
                # The kernels of the transposed convolutions do not overlap: one tap of each reaches a pixel.
                taps = 1 if isinstance(module, nn.ConvTranspose2d) else math.prod(module.kernel_size)
                nn.init.normal_(module.weight, std=(module.in_channels * taps) ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    for block in model.neck.fusion_stage.layers:
        for unit in (block.residual_layer1, block.residual_layer2):
            # Residual units start as the identity, so that the seven of them in a row do not blow the signal up.
            nn.init.zeros_(unit.convolution2.weight)
    # A final ReLU over a zero-mean output is dead wherever it is negative, and for many seeds that is the whole image:
    # no gradient ever comes back. The bias lifts the start to about 1 with small variations, which costs nothing,
    # since the losses ignore scale and shift.
    nn.init.normal_(model.head.conv3.weight, std=0.2 * model.config.head_hidden_size**-0.5)
    if model.config.depth_estimation_type == "relative":
        nn.init.ones_(model.head.conv3.bias)


@torch.no_grad()
def initialise_encoder(model: DepthAnythingForDepthEstimation) -> None:
    """Draw encoder weights from which a small transformer learns without pretraining, in place.

    Mimetic initialisation (2305.09828, section 3): per head W_Q^T W_K is about 0.7 Z + 0.7 I, so that tokens begin by
    looking at tokens like themselves, and W_O W_V is about 0.4 Z - 0.4 I, with Z normal of variance 1 / width; position
    embeddings are sinusoids, so that likeness means nearness. From the stock initialisation our `tiny` drew the mean
    map for 30,000 images and more.
    """
    config = model.config.backbone_config
    width, heads = config.hidden_size, config.num_attention_heads
    size = width // heads

    def near_identity(noise: float, identity: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.linalg.svd(noise * torch.randn(width, width) * width**-0.5 + identity * torch.eye(width))

    for layer in model.backbone.encoder.layer:
        attention = layer.attention
        for head in range(heads):
            left, values, right = near_identity(0.7, 0.7)
            rows, scale = slice(head * size, (head + 1) * size), values[:size].sqrt()
            attention.q_proj.weight[rows] = (left[:, :size] * scale).T
            attention.k_proj.weight[rows] = scale[:, None] * right[:size]
        left, values, right = near_identity(0.4, -0.4)
        attention.o_proj.weight.copy_(left * values.sqrt())
        attention.v_proj.weight.copy_(values.sqrt()[:, None] * right)
    grid = config.image_size // config.patch_size
    model.backbone.embeddings.position_embeddings[:, 1:] = _sinusoids(grid, width)


@torch.no_grad()
def initialise_patch_embedding(model: DepthAnythingForDepthEstimation, images: list[Tensor]) -> None:
    """Make the patch embedding a projection on the principal components of the patches of some images, in place.

    Components are divided by the square root of their standard deviation, halfway to whitening: a random projection of
    patches is nearly all mean colour, and edges, which tell depth, wait long for their turn. What an encoder is wider
    than a patch keeps its weights, and images without any contrast change nothing.

    Args:
        model: untrained network.
        images: normalised images [3, h, w], sides multiples of 14; a few thousand patches in all.
    """
    layer = model.backbone.embeddings.patch_embeddings.projection
    patches = torch.cat([nn.functional.unfold(image, PATCH, stride=PATCH).T for image in images]).double()
    mean = patches.mean(0)
    variance, basis = torch.linalg.eigh((patches - mean).mT @ (patches - mean) / len(patches))
    if variance[-1] < 1e-12:
        return
    count = min(layer.out_channels, len(mean))
    # Directions that these images lack start at zero, or they would be blown up in others.
    gain = torch.where(variance > 1e-6 * variance[-1], variance.clamp(min=1e-12) ** -0.25, 0.0)
    basis = (basis * gain).flip(1)[:, :count]
    # As strong as the sinusoids of the position embeddings.
    basis *= (0.5 / ((patches - mean) @ basis).square().mean()).sqrt()
    layer.weight[:count] = basis.T.reshape(count, *layer.weight.shape[1:]).float()
    layer.bias[:count] = -(mean @ basis).float()


def _sinusoids(grid: int, width: int) -> Tensor:
    """Position embeddings [1, grid * grid, width]: a quarter each of sines and cosines of x and of y."""
    frequencies = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = waves[:, None].expand(grid, grid, -1), waves[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], -1).reshape(1, grid * grid, -1)


def check_finite(model: nn.Module, source: str | Path) -> None:
    """Raise `InputError` when a weight is NaN or infinite; `source` is what the message names."""
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise InputError(f"{source}: the weight {name} holds NaN or infinity; download or export the model again")


def _last_four(layers: int) -> tuple[int, ...]:
    return tuple(range(layers - 3, layers + 1))
