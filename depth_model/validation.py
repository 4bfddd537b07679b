"""Validation while training: numbers on pair folders, and the same images each time as a picture."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from depth_model.data.labeled import PairFolder
from depth_model.errors import InputError
from depth_model.estimator import DepthEstimator
from depth_model.losses import affine_invariant_loss
from depth_model.metrics import relative_depth_metrics


def validate(estimator: DepthEstimator, folders: list[PairFolder], count: int, out: Path) -> dict[str, float]:
    """AbsRel and delta1 of `estimator`, least-squares aligned in disparity per image, 0.001 to 10 m, mean over images.

    Pairs that cannot be read, or hold no depth in that range, are left out. Also writes `grid_NAME.png` into `out`, the
    photos, truths and estimates of the first six of each folder.

    Args:
        folders: what to measure on. count: pairs of each.

    Returns:
        NAME_abs_rel, NAME_delta1, NAME_loss (the affine-invariant loss at full resolution) and NAME_images, how many
        were measured, for each folder's name; nothing for folders without any.
    """
    numbers = {}
    for folder in folders:
        rows, tiles = [], []
        for i in range(min(count, len(folder))):
            try:
                pair = folder.read(i)
            except InputError as error:
                print(f"validation leaves out {error}", flush=True)
                continue
            if folder.rows[i]["kind"] != "depth" or not (pair.valid & (pair.disparity > 0.1)).any():
                continue
            values = estimator(Image.fromarray(pair.image)).values
            maps = (torch.from_numpy(array)[None] for array in (values, pair.disparity, pair.valid))
            metrics = relative_depth_metrics(values, *folder.depth(i))
            rows.append((metrics["abs_rel"], metrics["delta1"], affine_invariant_loss(*maps).item()))
            if len(tiles) < 6:
                tile = np.concatenate([pair.image, _grey(pair.disparity), _grey(values)], 0)
                tiles.append(np.asarray(Image.fromarray(tile).resize((160, 160 * tile.shape[0] // tile.shape[1]))))
        if not rows:
            continue
        name = Path(folder.folder).name
        height = min(tile.shape[0] for tile in tiles)
        Image.fromarray(np.concatenate([tile[:height] for tile in tiles], 1)).save(out / f"grid_{name}.png")
        means = np.mean(rows, 0).tolist()
        numbers |= dict(zip((f"{name}_abs_rel", f"{name}_delta1", f"{name}_loss"), means, strict=True))
        numbers[f"{name}_images"] = len(rows)
    return numbers


def _grey(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    scaled = np.rint(255 * (values - low) / max(high - low, 1e-8)).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, 2)
