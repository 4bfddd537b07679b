"""Depth metrics on numpy maps, one image at a time."""

import numpy as np


def align_least_squares(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
    """(scale, shift) minimising the sum of (scale * prediction + shift - target)^2 over valid pixels.

    Args:
        prediction, target: [H, W] in the same space: disparity in the zero-shot protocol (MiDaS, 1907.01341 section 5).
        valid: boolean [H, W].

    Returns:
        Two floats. A constant prediction, or fewer than two valid pixels, gives scale 0 and the target's mean.
    """
    p, t = prediction[valid].astype(np.float64), target[valid].astype(np.float64)
    if not len(p):
        return 0.0, 0.0
    centred = p - p.mean()
    variance = (centred**2).sum()
    if variance <= 1e-12 * max(1.0, (p**2).sum()):
        return 0.0, float(t.mean())
    scale = float((centred * (t - t.mean())).sum() / variance)
    return scale, float(t.mean() - scale * p.mean())


def depth_metrics(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """The errors and accuracies of Eigen et al. (1406.2283) over valid pixels.

    Args:
        prediction, target: depth [H, W] in metres, already aligned, > 0 where valid. valid: boolean [H, W].

    Returns:
        abs_rel, sq_rel, rmse, rmse_log, log10, silog (100 * sqrt(var of log error)), and delta1, delta2, delta3 (shares
        in [0, 1]).

    Raises:
        ValueError: no valid pixel, or a depth that is not positive and finite.
    """
    y, z = prediction[valid].astype(np.float64), target[valid].astype(np.float64)
    if not len(z):
        raise ValueError("no valid pixel to measure")
    if not (np.isfinite(y).all() and np.isfinite(z).all() and (y > 0).all() and (z > 0).all()):
        raise ValueError("depths must be positive and finite where valid")
    error, log_error, ratio = y - z, np.log(y) - np.log(z), np.maximum(y / z, z / y)
    return {
        "abs_rel": float(np.mean(np.abs(error) / z)),
        "sq_rel": float(np.mean(error**2 / z)),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "rmse_log": float(np.sqrt(np.mean(log_error**2))),
        "log10": float(np.mean(np.abs(log_error)) / np.log(10)),
        "silog": float(100 * np.sqrt(max(0.0, np.mean(log_error**2) - np.mean(log_error) ** 2))),
        **{f"delta{k}": float(np.mean(ratio < 1.25**k)) for k in (1, 2, 3)},
    }


def relative_depth_metrics(
    disparity: np.ndarray, depth: np.ndarray, valid: np.ndarray, nearest: float = 1e-3, farthest: float = 10.0
) -> dict[str, float]:
    """`depth_metrics` of an affine-invariant disparity map: least-squares fit to 1 / depth, floored at 1 / `farthest`.

    Args:
        disparity: prediction [H, W], larger = nearer. depth: metres [H, W]. valid: boolean [H, W].
        nearest, farthest: the range of depths that are measured, metres.

    Raises:
        ValueError: no valid pixel in the range.
    """
    valid = valid & (depth > nearest) & (depth < farthest)
    inverse = 1 / np.where(valid, depth, 1.0)
    scale, shift = align_least_squares(disparity, inverse, valid)
    aligned = np.maximum(scale * disparity + shift, 1 / farthest)
    return depth_metrics(1 / aligned, depth, valid)
