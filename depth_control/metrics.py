"""How well a generated picture obeys its depth: the re-estimated map against the condition.

Estimated depth has no scale and no zero, so the result is first fitted to the condition by a least-squares scale
(never negative: an inverted picture earns nothing) and shift. Rank correlation alone misleads, since in most pictures
near is below and far is above; `structure` counts only what is better than knowing each row's mean, `detail` only what
is left when an 8 x 8 grid of averages is taken away.
"""

from collections.abc import Iterable

import numpy as np

from depth_control.conditioning import resize_map
from depth_model.errors import InputError

GRID = 8

# A condition with less than this share of its power left has nothing to be measured against but rounding.
NEGLIGIBLE = 1e-12


def fidelity(condition: np.ndarray, result: np.ndarray) -> dict[str, float]:
    """Compare the depth of a generated picture with its condition.

    Args:
        condition: [H, W], near = 1, as fed to the ControlNet.
        result: [h, w], near = 1 on any scale: `to_control` of the depth estimated on the picture. Resized to the
            condition when the shapes differ.

    Returns:
        Finite floats. With c the condition, r the result, s >= 0 and t their least-squares scale and shift:
        `structure`: 1 - sum((c - s r - t)^2) / sum((c - row_mean(c))^2); 1 identical, 0 no better than row means.
        `detail`: the same ratio on both maps less their average over an 8 x 8 grid of cells, against sum(c'^2).
        `spearman`: rank correlation, ties averaged.
        `rmse`: of c - s r - t, on the 0-255 scale.
        Where the condition leaves nothing to compare (flat, or constant along rows or cells) the value is 0.

    Raises:
        InputError: A map is not [H, W], is empty, or holds a value that is not finite.
    """
    return pooled_fidelity([(condition, result)])


def pooled_fidelity(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """`fidelity` over a set of pictures.

    Args:
        pairs: (condition, result) maps as in `fidelity`.

    Returns:
        As `fidelity`: both sums of `structure` and `detail` are pooled before dividing, `rmse` is over all pixels,
        `spearman` is the mean over pictures.

    Raises:
        InputError: No pairs, or a map as in `fidelity`.
    """
    rows = [_compare(_checked(condition, "condition"), _checked(result, "result")) for condition, result in pairs]
    if not rows:
        raise InputError("fidelity needs at least one pair of maps")
    total = {name: sum(row[name] for row in rows) for name in rows[0]}
    return {
        "structure": _explained(total["error"], total["structure"], total["power"]),
        "detail": _explained(total["detail_error"], total["detail"], total["power"]),
        "spearman": total["spearman"] / len(rows),
        "rmse": 255.0 * float(np.sqrt(total["error"] / total["pixels"])),
    }


def _compare(condition: np.ndarray, result: np.ndarray) -> dict[str, float]:
    """Every sum that the numbers are made of."""
    result = resize_map(result.astype(np.float32), *condition.shape).astype(np.float64)
    fine, fine_result = condition - _cell_means(condition), result - _cell_means(result)
    return {
        "error": _fit_error(condition, result),
        "structure": float(((condition - condition.mean(axis=1, keepdims=True)) ** 2).sum()),
        "detail_error": _fit_error(fine, fine_result),
        "detail": float((fine**2).sum()),
        "power": float((condition**2).sum()),
        "spearman": _correlation(_ranks(condition), _ranks(result)),
        "pixels": float(condition.size),
    }


def _fit_error(condition: np.ndarray, result: np.ndarray) -> float:
    """Least squares over scale >= 0 and shift, closed form: the sum of squares that is left."""
    c, r = condition - condition.mean(), result - result.mean()
    power = (r * r).sum()
    scale = max(0.0, (c * r).sum() / power) if power > 0 else 0.0
    return float(((c - scale * r) ** 2).sum())


def _explained(error: float, total: float, power: float) -> float:
    return 1.0 - error / total if total > NEGLIGIBLE * power else 0.0


def _cell_means(values: np.ndarray) -> np.ndarray:
    """[H, W], each pixel the mean of its cell; sides need not be multiples of the grid."""
    row, column = (np.arange(side) * GRID // side for side in values.shape)
    cells = row[:, None] * GRID + column
    counts = np.bincount(cells.ravel(), minlength=GRID**2)
    sums = np.bincount(cells.ravel(), weights=values.ravel(), minlength=GRID**2)
    return (sums / np.maximum(counts, 1))[cells]


def _ranks(values: np.ndarray) -> np.ndarray:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index.ravel()]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    power = np.sqrt((a * a).sum()) * np.sqrt((b * b).sum())
    return float((a * b).sum() / power) if power > 0 else 0.0


def _checked(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size:
        raise InputError(f"{name} must have the shape [H, W], not {list(values.shape)}")
    if not np.isfinite(values).all():
        raise InputError(f"{name} must be finite: pass to_control(depth)")
    return values
