"""Monocular depth: the estimator, and everything that trains, evaluates and exports it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depth_model.depth_map import DepthMap
    from depth_model.estimator import DepthEstimator

_EXPORTS = {"DepthEstimator": "depth_model.estimator", "DepthMap": "depth_model.depth_map"}

__all__ = ["DepthEstimator", "DepthMap"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that the command line can show its help without torch.
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
