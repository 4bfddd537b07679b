"""Losses as pure functions of float32 tensors. Per image the mean over counted pixels, then the sum over images / B.

Images with nothing to count contribute 0, with a gradient of 0.
"""

import torch
import torch.nn.functional as F
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
    return _image_means(per_pixel, counted).sum() / len(per_pixel)


def _image_means(per_pixel: Tensor, counted: Tensor) -> Tensor:
    """[B]: the mean over the counted pixels of each image, 0 where there are none."""
    return torch.where(counted, per_pixel, 0.0).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)


def discard_largest(per_pixel: Tensor, counted: Tensor, share: float) -> Tensor:
    """The counted pixels without the `share` of them that has the largest loss, per image (V2 section 5.2: 10 %).

    Args:
        per_pixel: loss [B, H, W]. counted: boolean [B, H, W]. share: in [0, 1).

    Returns:
        Boolean [B, H, W]. Of pixels with equal losses at the limit, all stay.
    """
    if share <= 0:
        return counted
    losses = torch.where(counted, per_pixel.detach(), torch.inf).flatten(1).sort(dim=1).values
    kept = (counted.flatten(1).sum(1) * (1 - share)).ceil().long().clamp(min=1)
    limit = losses.gather(1, kept[:, None] - 1)
    return counted & (per_pixel.detach() <= limit[..., None])


def _affine_invariant_map(prediction: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """rho of V1 eq. 2 for each pixel, and which pixels count: valid ones of images whose target has any spread."""
    normalised_target, counts = normalise(torch.where(valid, target, 0.0), valid)
    normalised_prediction, _ = normalise(torch.where(valid, prediction, 0.0), valid)
    return (normalised_prediction - normalised_target).abs(), valid & counts[:, None, None]


def affine_invariant_loss(prediction: Tensor, target: Tensor, valid: Tensor, discard: float = 0.0) -> Tensor:
    """L_l of V1 section 3.1, eq. 1-3: mean |d^ - d^*| of the maps normalised by median and mean absolute deviation.

    Args:
        prediction: disparity [B, H, W], up to a positive scale and a shift.
        target: disparity [B, H, W].
        valid: boolean [B, H, W]; values elsewhere never matter.
        discard: share of each image's pixels, those of the largest loss, that is left out.

    Returns:
        A scalar >= 0. Images without valid pixels or with a constant target contribute 0.
    """
    loss, counted = _affine_invariant_map(prediction, target, valid)
    return _mean_over_images(loss, discard_largest(loss, counted, discard))


def cutmix_affine_invariant_loss(
    prediction: Tensor,
    target_a: Tensor,
    target_b: Tensor,
    mask: Tensor,
    valid_a: Tensor | None = None,
    valid_b: Tensor | None = None,
    discard: float = 0.0,
) -> Tensor:
    """L_u of V1 section 3.2, eq. 6-8: each region of a mixed image normalised on its own, weighted by its area.

    Args:
        prediction: disparity [B, H, W] of the mixed image.
        target_a, target_b: the teacher's disparity [B, H, W] of the two clean images.
        mask: boolean [B, H, W], M of eq. 5; True where the mixed image shows a. All True is an unmixed image.
        valid_a, valid_b: boolean [B, H, W]; None for everywhere.
        discard: share of each mixed image's pixels, those of the largest loss, that is left out (V2 section 5.2).

    Returns:
        A scalar >= 0. A region without valid pixels or with a constant target contributes 0.
    """
    loss, counted, areas = torch.zeros_like(prediction), torch.zeros_like(mask), []
    for region, target, valid in ((mask, target_a, valid_a), (~mask, target_b, valid_b)):
        inside = region if valid is None else region & valid
        region_loss, region_counted = _affine_invariant_map(prediction, target, inside)
        loss, counted = torch.where(inside, region_loss, loss), counted | region_counted
        areas.append(region.flatten(1).float().mean(1))
    counted = discard_largest(loss, counted, discard)
    weighted = areas[0] * _image_means(loss, counted & mask) + areas[1] * _image_means(loss, counted & ~mask)
    return weighted.sum() / len(weighted)


def least_squares_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """L_ssi with least squares: mean (s d + t - d*)^2 / 2 for the s and t that fit best (MiDaS, 1907.01341, eq. 3-4).

    The variant that the authors named for V2 (its issue 137); the paper's is `affine_invariant_loss`.

    Args:
        prediction, target: disparity [B, H, W]. valid: boolean [B, H, W]; values elsewhere never matter.

    Returns:
        A scalar >= 0 in the target's unit squared. A constant prediction is fitted by the target's mean.
    """
    count = valid.flatten(1).sum(1).clamp(min=1)

    def centred(values: Tensor) -> Tensor:
        values = torch.where(valid, values, 0.0).flatten(1)
        return torch.where(valid.flatten(1), values - (values.sum(1) / count)[:, None], 0.0)

    p, t = centred(prediction), centred(target)
    power = p.square().sum(1)
    usable = power.detach() > _LEAST_SCALE**2 * torch.where(valid, prediction.detach(), 0.0).flatten(1).square().sum(1)
    scale = torch.where(usable, (p * t).sum(1) / torch.where(usable, power, 1.0), 0.0)
    return _mean_over_images((scale[:, None] * p - t).square().view_as(target) / 2, valid)


def gradient_matching_loss(prediction: Tensor, target: Tensor, valid: Tensor, scales: int = 4) -> Tensor:
    """L_gm of MiDaS (1907.01341, eq. 11), used by V2 section 5.2: |dx R| + |dy R| of R = d^ - d^*, over some strides.

    Args:
        prediction, target: disparity [B, H, W]; both sides are normalised here. valid: boolean [B, H, W].
        scales: number of resolutions, each a stride-2 subsampling of the one before.

    Returns:
        A scalar >= 0: per scale the sum of differences whose two pixels are valid over the number of valid pixels.
    """
    return _gradient_matching(prediction, target, valid, scales).sum() / len(prediction)


def cutmix_gradient_matching_loss(
    prediction: Tensor, target_a: Tensor, target_b: Tensor, mask: Tensor, scales: int = 4
) -> Tensor:
    """`gradient_matching_loss` of a mixed image: each region on its own, weighted by its area, as in V1 eq. 8.

    Args:
        prediction: disparity [B, H, W] of the mixed image. target_a, target_b: the teacher's of the clean images.
        mask: boolean [B, H, W], True where the mixed image shows a.
    """
    share = mask.flatten(1).float().mean(1)
    regions = (
        share * _gradient_matching(prediction, target_a, mask, scales),
        (1 - share) * _gradient_matching(prediction, target_b, ~mask, scales),
    )
    return sum(regions).sum() / len(prediction)


def _gradient_matching(prediction: Tensor, target: Tensor, valid: Tensor, scales: int) -> Tensor:
    """[B]: `gradient_matching_loss` of each image."""
    normalised_target, counts = normalise(torch.where(valid, target, 0.0), valid)
    normalised_prediction, _ = normalise(torch.where(valid, prediction, 0.0), valid)
    residual = normalised_prediction - normalised_target
    mask = valid & counts[:, None, None]
    total = residual.new_zeros(len(residual))
    for scale in range(scales):
        r, m = residual[:, :: 2**scale, :: 2**scale], mask[:, :: 2**scale, :: 2**scale]
        dx = torch.where(m[:, :, 1:] & m[:, :, :-1], (r[:, :, 1:] - r[:, :, :-1]).abs(), 0.0)
        dy = torch.where(m[:, 1:] & m[:, :-1], (r[:, 1:] - r[:, :-1]).abs(), 0.0)
        total = total + (dx.flatten(1).sum(1) + dy.flatten(1).sum(1)) / m.flatten(1).sum(1).clamp(min=1)
    return total


def feature_alignment_loss(student: Tensor, frozen: Tensor, tolerance: float = 0.85) -> Tensor:
    """L_feat of V1 section 3.3, eq. 9: 1 - cosine similarity over patches, those above the tolerance not counted.

    Args:
        student: features [B, N, C] of the student's last encoder block. frozen: those of the frozen encoder.
        tolerance: alpha; patches more alike than this keep what makes them differ.

    Returns:
        A scalar >= 0: per image the sum over counted patches / N, so that few distant patches weigh little.
    """
    cosine = F.cosine_similarity(student, frozen, dim=-1, eps=1e-6)
    counted = cosine.detach() <= tolerance
    return (torch.where(counted, 1 - cosine, 0.0).sum(1) / cosine.shape[1]).mean()


def silog_loss(prediction: Tensor, target: Tensor, valid: Tensor, variance_focus: float = 0.5) -> Tensor:
    """The scale-invariant log loss of metric fine-tuning: sqrt(mean(g^2) - lambda mean(g)^2), g = ln d* - ln d.

    Eigen et al. (1406.2283, eq. 4) with the root and lambda of the released V2 metric code, per image.

    Args:
        prediction, target: metres [B, H, W], > 0 where valid. valid: boolean [B, H, W].
        variance_focus: lambda, 0 to 1.
    """
    safe_prediction = torch.where(valid, prediction, 1.0).clamp(min=1e-6)
    g = torch.where(valid, target, 1.0).log() - safe_prediction.log()
    squared = _image_means(g.square(), valid) - variance_focus * _image_means(g, valid).square()
    # The root has no gradient at 0.
    positive = squared > 1e-12
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0).sum() / len(prediction)
