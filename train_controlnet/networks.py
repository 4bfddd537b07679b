"""The networks of a ControlNet's training: the frozen UNet of a base, and the ControlNet that starts from it."""

from pathlib import Path

import torch
from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from torch import nn

from depth_control.pipelines import condition_range
from depth_control.presets import check_fit, controlnet_folder, load_parts
from depth_model.errors import InputError
from train_controlnet.diffusion import training_scheduler
from train_controlnet.encoders import TEXT_PARTS

_COMPILED = ("BasicTransformerBlock", "ResnetBlock2D")


def load_unet(folder: Path) -> tuple[UNet2DConditionModel, DDPMScheduler]:
    """The frozen UNet of a base folder in float32, and its noise schedule.

    Raises:
        InputError: they cannot be loaded.
    """
    unet = _load(UNet2DConditionModel, folder / "unet", "--base")
    try:
        scheduler = DDPMScheduler.load_config(str(folder / "scheduler"))
    except (OSError, ValueError) as error:
        raise InputError(f"--base {folder}: has no scheduler ({str(error).splitlines()[0]})") from error
    return unet.eval().requires_grad_(False), training_scheduler(scheduler, f"--base {folder}")


def pipeline_range(folder: Path) -> tuple[float, float]:
    """What a base's own pipeline feeds a ControlNet for black and for white; nothing heavy is loaded."""
    left_out = {part: None for part in ("unet", "controlnet", "vae")}
    left_out |= {part: None for part in TEXT_PARTS if (folder / part).is_dir()}
    return condition_range(load_parts(folder, **left_out))


def start_controlnet(
    folder: Path, unet: UNet2DConditionModel, controlnet: str | None, from_base: bool, opened: bool
) -> ControlNetModel:
    """The ControlNet that training starts from, in float32.

    Args:
        folder: the base. controlnet: a folder or Hub id to go on from. from_base: take the base's own where it has one,
            else a copy of the UNet's encoder. opened: give that copy an `open_embedding`.

    Raises:
        InputError: a ControlNet that cannot be loaded, or does not fit.
    """
    if controlnet is not None:
        network = _load(ControlNetModel, controlnet_folder(controlnet), "--controlnet")
    elif from_base and (folder / "controlnet" / "config.json").is_file():
        network = _load(ControlNetModel, folder / "controlnet", "--base")
    else:
        network = ControlNetModel.from_unet(unet)
        if opened:
            open_embedding(network)
    check_fit(network, unet, f"--controlnet {controlnet or folder}", f"--base {folder}")
    return network


@torch.no_grad()
def open_embedding(controlnet: ControlNetModel) -> None:
    """Draws weights of the condition's embedding under which signals keep their size, in place.

    The stock start is a zero convolution behind layers that shrink the condition a thousandfold, so that a small
    network sees nothing of it for thousands of steps. The zero convolutions at the ControlNet's end, which keep it from
    disturbing the base (2302.05543, section 3.2), are left alone.
    """
    embedding = controlnet.controlnet_cond_embedding
    for layer in (embedding.conv_in, *embedding.blocks, embedding.conv_out):
        # SiLU nearly halves small signals; with this gain they reach the end at a size that the encoder sees.
        nn.init.normal_(layer.weight, std=1.7 * (layer.in_channels * 9) ** -0.5)
        nn.init.zeros_(layer.bias)


def compile_blocks(*networks: nn.Module) -> None:
    """Compiles the repeated blocks of the networks in place, each kind once: minutes less than compiling all."""
    for network in networks:
        for module in network.modules():
            if type(module).__name__ in _COMPILED:
                module.compile()


def _load(kind: type, folder: Path, flag: str):
    try:
        return kind.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{flag} {folder}: cannot be loaded as {kind.__name__} ({reason})") from error
