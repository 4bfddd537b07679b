"""Do not compute a ControlNet on the steps where it is off."""

from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.controlnets import MultiControlNetModel
from diffusers.models.controlnets.controlnet import ControlNetOutput

_NAME = "skip_control_at_zero_scale"


class _SkipAtZeroScale(ModelHook):
    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        scale = kwargs.get("conditioning_scale")
        # A tensor is how compiled pipelines pass the scale: looking into it would stop the device at every step.
        if scale is None or isinstance(scale, torch.Tensor) or scale != 0:
            return self.fn_ref.original_forward(*args, **kwargs)
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        # A batch of single zeros broadcasts wherever residuals are used: added by the UNet, summed over several
        # ControlNets, or concatenated by guess mode.
        zero = sample.new_zeros(len(sample), 1, 1, 1)
        down = [zero] * len(module.controlnet_down_blocks)
        return ControlNetOutput(down, zero) if kwargs.get("return_dict", True) else (down, zero)


def skip_at_zero_scale(controlnet: torch.nn.Module) -> None:
    """Make a ControlNet return zeros at once whenever its `conditioning_scale` is 0.

    Outside `control_guidance_start`..`control_guidance_end` the stock denoising loops run it at full cost and multiply
    by 0. Pictures stay bit-identical. Calling this again changes nothing.

    Args:
        controlnet: `ControlNetModel` or `MultiControlNetModel`, each of whose networks is skipped on its own.
    """
    for net in _networks(controlnet):
        registry = HookRegistry.check_if_exists_or_initialize(net)
        if registry.get_hook(_NAME) is None:
            registry.register_hook(_SkipAtZeroScale(), _NAME)


def always_compute(controlnet: torch.nn.Module) -> None:
    """Undo `skip_at_zero_scale`."""
    for net in _networks(controlnet):
        HookRegistry.check_if_exists_or_initialize(net).remove_hook(_NAME, recurse=False)


def _networks(controlnet: torch.nn.Module) -> list[torch.nn.Module]:
    return list(controlnet.nets) if isinstance(controlnet, MultiControlNetModel) else [controlnet]
