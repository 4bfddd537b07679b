"""Losses as pure functions of float32 tensors. Per image the mean over counted pixels, then the sum over images / B."""

import torch
from torch import Tensor

_LEAST_SCALE = 1e-6


def _masked_median(values: Tensor, valid: Tensor) -> Tensor:
    """Median of the valid entries of each row of [B, N] (the lower one of two); 0 where a row has none."""
    median = torch.where(valid, values, torch.nan).nanmedian(dim=1).values
    return torch.where(valid.any(1), median, 0.0)


def normalise(disparity: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(d - t(d)) / s(d): t the median and s the mean absolute deviation over valid pixels (V1 section 3.1, eq. 2-3).

    Args:
        disparity: [B, H, W]. valid: boolean [B, H, W].

    Returns:
        The normalised map [B, H, W], 0 where not valid, and whether each image [B] has any spread to normalise by.
    """
    flat, mask = disparity.flatten(1), valid.flatten(1)
    centred = torch.where(mask, flat - _masked_median(flat, mask)[:, None], 0.0)
    scale = centred.abs().sum(1) / mask.sum(1).clamp(min=1)
    magnitude = torch.where(mask, flat.detach().abs(), 0.0).amax(1)
    spread = scale.detach() > _LEAST_SCALE * magnitude.clamp(min=_LEAST_SCALE)
    safe = torch.where(spread, scale, 1.0)
    return (centred / safe[:, None]).view_as(disparity), spread


def _mean_over_images(per_pixel: Tensor, counted: Tensor) -> Tensor:
    """Mean over the counted pixels of each image, images with none contributing 0, then sum over images / B."""
    per_image = torch.where(counted, per_pixel, 0.0).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)
    return per_image.sum() / len(per_image)


def affine_invariant_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """L_l of V1 section 3.1, eq. 1-3: mean |d^ - d^*| of the maps normalised by median and mean absolute deviation.

    Args:
        prediction: disparity [B, H, W], up to a positive scale and a shift.
        target: disparity [B, H, W].
        valid: boolean [B, H, W]; values elsewhere never matter.

    Returns:
        A scalar >= 0. Images without valid pixels or with a constant target contribute 0.
    """
    target = torch.where(valid, target, 0.0)
    prediction = torch.where(valid, prediction, 0.0)
    normalised_target, counts = normalise(target, valid)
    normalised_prediction, _ = normalise(prediction, valid)
    counted = valid & counts[:, None, None]
    return _mean_over_images((normalised_prediction - normalised_target).abs(), counted)


def gradient_matching_loss(prediction: Tensor, target: Tensor, valid: Tensor, scales: int = 4) -> Tensor:
    """L_gm of MiDaS (1907.01341, eq. 11), used by V2 section 5.2: |dx R| + |dy R| of R = d^ - d^*, over some strides.

    Args:
        prediction, target: disparity [B, H, W]; both sides are normalised here. valid: boolean [B, H, W].
        scales: number of resolutions, each a stride-2 subsampling of the one before.

    Returns:
        A scalar >= 0: per scale the sum of differences whose two pixels are valid over the number of valid pixels.
    """
    normalised_target, counts = normalise(torch.where(valid, target, 0.0), valid)
    normalised_prediction, _ = normalise(torch.where(valid, prediction, 0.0), valid)
    residual = normalised_prediction - normalised_target
    mask = valid & counts[:, None, None]
    total = residual.new_zeros(())
    for scale in range(scales):
        r, m = residual[:, :: 2**scale, :: 2**scale], mask[:, :: 2**scale, :: 2**scale]
        dx = torch.where(m[:, :, 1:] & m[:, :, :-1], (r[:, :, 1:] - r[:, :, :-1]).abs(), 0.0)
        dy = torch.where(m[:, 1:] & m[:, :-1], (r[:, 1:] - r[:, :-1]).abs(), 0.0)
        per_image = (dx.flatten(1).sum(1) + dy.flatten(1).sum(1)) / m.flatten(1).sum(1).clamp(min=1)
        total = total + per_image.sum() / len(per_image)
    return total
