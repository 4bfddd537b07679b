"""Depth as a ControlNet condition: conversion, pipelines, presets, fidelity, generation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depth_control.conditioning import to_control
    from depth_control.generation import generate
    from depth_control.metrics import fidelity, pooled_fidelity
    from depth_control.pipelines import (
        DepthStableDiffusionControlNetImg2ImgPipeline,
        DepthStableDiffusionControlNetPipeline,
        DepthStableDiffusionXLControlNetImg2ImgPipeline,
        DepthStableDiffusionXLControlNetPipeline,
        with_depth,
    )
    from depth_control.presets import load_pipeline

# No module shares its name with a function: importing it would put the module in the function's place.
_EXPORTS = {
    "DepthStableDiffusionControlNetImg2ImgPipeline": "depth_control.pipelines",
    "DepthStableDiffusionControlNetPipeline": "depth_control.pipelines",
    "DepthStableDiffusionXLControlNetImg2ImgPipeline": "depth_control.pipelines",
    "DepthStableDiffusionXLControlNetPipeline": "depth_control.pipelines",
    "fidelity": "depth_control.metrics",
    "generate": "depth_control.generation",
    "load_pipeline": "depth_control.presets",
    "pooled_fidelity": "depth_control.metrics",
    "to_control": "depth_control.conditioning",
    "with_depth": "depth_control.pipelines",
}

__all__ = [
    "DepthStableDiffusionControlNetImg2ImgPipeline",
    "DepthStableDiffusionControlNetPipeline",
    "DepthStableDiffusionXLControlNetImg2ImgPipeline",
    "DepthStableDiffusionXLControlNetPipeline",
    "fidelity",
    "generate",
    "load_pipeline",
    "pooled_fidelity",
    "to_control",
    "with_depth",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that the command line can show its help without torch.
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
