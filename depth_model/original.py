"""The authors' own checkpoints (`.pth`), opened as transformers modules."""

import math
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DepthAnythingForDepthEstimation
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from depth_model.errors import InputError
from depth_model.modeling import PATCH, PRESETS, UNUSED_WEIGHTS, check_finite, model_config


def load_original(path: str | Path, preset: str | None = None) -> DepthAnythingForDepthEstimation:
    """Load an original Depth Anything V1 or V2 checkpoint, in float32, to compute what the original code does.

    V1 and V2 have the same keys, so the release file name decides, or `preset` when given. The size follows from the
    weights.

    Args:
        path: a `.pth` file. Read with `weights_only=True`: code in it is never run.
        preset: "SIZE-v1", "SIZE-v2" or "SIZE-v2-metric-METRES", such as "small-v1" or "base-v2-metric-20".

    Raises:
        InputError: not a checkpoint, not a Depth Anything checkpoint, damaged, or the version is not known.
    """
    path = Path(path)
    weights = _rename(_read_state_dict(path), path)
    width = weights["backbone.embeddings.cls_token"].shape[-1]
    size = next((name for name, p in PRESETS.items() if p.hidden == width and name != "tiny"), None)
    if size is None:
        raise InputError(f"{path}: no Depth Anything model is {width} wide; give a released or compatible checkpoint")
    named_size, version, max_depth = _parse_preset(preset) if preset else _parse_file_name(path, size)
    if named_size != size:
        raise InputError(f"{path}: the weights are of size {size}, not {named_size}; give preset='{size}-{version}'")
    kind = "relative" if max_depth is None else "metric"
    with torch.device("meta"):
        model = DepthAnythingForDepthEstimation(model_config(size, version, kind, max_depth))
    _assign(model, weights, path)
    embeddings = model.backbone.embeddings
    embeddings.interpolate_pos_encoding = MethodType(_original_positions, embeddings)
    return model.eval()


_RELEASE = re.compile(r"depth_anything_(?P<v2>v2_)?(?:metric_(?P<scene>hypersim|vkitti)_)?vit(?P<size>[sblg])(?:14)?")
_RELEASE_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
_METRES = {"hypersim": 20, "vkitti": 80}
_ASKED = re.compile(r"(?P<size>[a-z]+)-(?P<version>v1|v2)(?:-metric-(?P<metres>[1-9]\d{0,3}))?")


def _parse_file_name(path: Path, size: str) -> tuple[str, str, int | None]:
    match = _RELEASE.fullmatch(path.stem.lower())
    if match is None or (match["scene"] and not match["v2"]):
        raise InputError(
            f"{path}: the file name does not tell whether this is Depth Anything V1 or V2; "
            f"give preset='{size}-v1', '{size}-v2' or, for metres, '{size}-v2-metric-20'"
        )
    return _RELEASE_SIZES[match["size"]], "v2" if match["v2"] else "v1", _METRES.get(match["scene"])


def _parse_preset(preset: str) -> tuple[str, str, int | None]:
    match = _ASKED.fullmatch(preset)
    if match is None or match["size"] not in PRESETS:
        raise InputError(f"unknown preset {preset!r}; give SIZE-v1, SIZE-v2 or SIZE-v2-metric-METRES, such as small-v1")
    return match["size"], match["version"], int(match["metres"]) if match["metres"] else None


def _original_positions(self: Dinov2Embeddings, tokens: Tensor, height: int, width: int) -> Tensor:
    """Resize the position embeddings as the original code does, to [1, 1 + patches, C].

    It adds 0.1 to the number of patches, against rounding down, and so samples up to a tenth of a patch elsewhere than
    transformers, which a folder saved from this model goes back to.
    """
    table = self.position_embeddings
    side = math.isqrt(table.shape[1] - 1)
    rows, columns = height // PATCH, width // PATCH
    if rows == columns == side:
        return table
    grid = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, scale_factor=((rows + 0.1) / side, (columns + 0.1) / side), mode="bicubic")
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: refused, because it is damaged or holds Python objects other than weights; nothing in it was run"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a readable PyTorch checkpoint ({_first_line(error)})") from None
    # The authors' metric trainer wraps the weights: {"model": {"module.pretrained...": ...}, "optimizer": ...}.
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path}: not a Depth Anything checkpoint (a dictionary of tensors was expected)")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


# To the live module names of transformers 5; the names on disk differ (`attention.attention.query` and so on).
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^pretrained\.(cls_token|mask_token)$", r"backbone.embeddings.\1"),
        (r"^pretrained\.pos_embed$", r"backbone.embeddings.position_embeddings"),
        (r"^pretrained\.patch_embed\.proj\.", r"backbone.embeddings.patch_embeddings.projection."),
        (r"^pretrained\.norm\.", r"backbone.layernorm."),
        (r"^pretrained\.blocks\.", r"backbone.encoder.layer."),
        (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
        (r"\.attn\.proj\.", r".attention.o_proj."),
        (r"\.mlp\.w3\.", r".mlp.down_proj."),
        (r"^depth_head\.projects\.(\d)\.", r"neck.reassemble_stage.layers.\1.projection."),
        (r"^depth_head\.resize_layers\.(\d)\.", r"neck.reassemble_stage.layers.\1.resize."),
        *((rf"^depth_head\.scratch\.layer{j}_rn\.", f"neck.convs.{j - 1}.") for j in range(1, 5)),
        *((rf"^depth_head\.scratch\.refinenet{j}\.", f"neck.fusion_stage.layers.{4 - j}.") for j in range(1, 5)),
        (r"\.out_conv\.", r".projection."),
        (r"\.resConfUnit([12])\.conv([12])\.", r".residual_layer\1.convolution\2."),
        (r"^depth_head\.scratch\.output_conv1\.", r"head.conv1."),
        (r"^depth_head\.scratch\.output_conv2\.0\.", r"head.conv2."),
        (r"^depth_head\.scratch\.output_conv2\.2\.", r"head.conv3."),
    )
)
# Stacked projections, in the order of their rows.
_SPLITS = {
    ".attn.qkv.": (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj."),
    ".mlp.w12.": (".mlp.gate_proj.", ".mlp.up_proj."),
}


def _rename(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    if "pretrained.cls_token" not in state:
        raise InputError(f"{path}: not a Depth Anything checkpoint (it has no pretrained.cls_token)")
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, replacement in _RENAMES:
            key = pattern.sub(replacement, key)
        stacked = next((old for old in _SPLITS if old in key), None)
        if stacked is None:
            renamed[key] = value
        else:
            parts = _SPLITS[stacked]
            renamed |= {
                key.replace(stacked, new): rows for new, rows in zip(parts, value.chunk(len(parts)), strict=True)
            }
    return renamed


def _assign(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    for key in expected.keys() - weights.keys():
        if key.startswith(UNUSED_WEIGHTS):
            weights[key] = torch.zeros(expected[key].shape)
    wrong = sorted(expected.keys() ^ weights.keys())
    wrong += [key for key in expected if key in weights and expected[key].shape != weights[key].shape]
    if wrong:
        raise InputError(
            f"{path}: {len(wrong)} weights are missing, unknown or of the wrong shape, such as {wrong[:3]}"
        )
    model.load_state_dict({key: value.float().contiguous() for key, value in weights.items()}, assign=True)
    check_finite(model, path)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
