"""Evaluation of a depth model on pair folders, zero-shot protocol of MiDaS (1907.01341, section 6).

depth-control evaluate --model runs/student/model --dataset path/to/pairs
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from depth_model.config import run_module
from depth_model.data.labeled import PairFolder
from depth_model.errors import InputError
from depth_model.estimator import DepthEstimator
from depth_model.metrics import relative_depth_metrics


@dataclass(frozen=True)
class Config:
    """Measures a depth model on a folder of RGB-D pairs."""

    dataset: Path
    """Folder of RGB-D pairs that no model was trained on; those without depth in metres are left out and listed."""
    model: tuple[str, ...] = ("embedded",)
    """Depth models: embedded, folders, Hub ids or original .pth files."""
    source: str = ""
    """Take only pairs whose `source` in the index is this; empty for all."""
    start: int = 0
    """First pair that is measured; negative counts from the end."""
    count: int | None = None
    """Pairs that are measured; all when not given."""
    farthest: float = 10.0
    """Depths beyond are not measured, metres; also the floor of the aligned disparity."""
    out: Path | None = None
    """File for the numbers as JSON."""
    device: str | None = None
    """Where models run; the best there is when not given."""


def evaluate(estimator: DepthEstimator, folder: PairFolder, farthest: float) -> tuple[dict[str, float], list[str]]:
    """Mean over images of `relative_depth_metrics`, 0.001 m to `farthest`, and the pairs that were left out.

    Raises:
        InputError: no pair can be measured.
    """
    rows, left_out = [], []
    for i in tqdm(range(len(folder)), desc=Path(folder.folder).name, mininterval=10, leave=False):
        if folder.rows[i]["kind"] != "depth":
            left_out.append(f"{folder.rows[i]['file']}: holds disparity, these metrics need depth in metres")
            continue
        try:
            values = estimator(Image.fromarray(folder.read(i).image)).values
            rows.append(relative_depth_metrics(values, *folder.depth(i), farthest=farthest))
        except ValueError as error:
            left_out.append(f"{folder.rows[i]['file']}: {error}")
    if not rows:
        raise InputError(f"{folder.folder}: no pair can be measured ({'; '.join(left_out[:3])})")
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {"images": len(rows)}, left_out


def main(config: Config) -> dict[str, dict[str, float]]:
    """Runs the stage and returns the numbers by model.

    Raises:
        InputError: a folder or model that cannot be used.
    """
    folder = PairFolder(config.dataset, source=config.source)
    start = config.start % len(folder) if config.start < 0 else config.start
    folder = folder.part(start, len(folder) if config.count is None else start + config.count)
    if not len(folder):
        raise InputError(f"--dataset {config.dataset}: nothing left from --start {config.start} on")
    results = {}
    for name in config.model:
        estimator = DepthEstimator.from_pretrained(name, config.device)
        if estimator.kind != "disparity":
            raise InputError(f"--model {name}: a metric model; this protocol aligns relative ones")
        results[name], left_out = evaluate(estimator, folder, config.farthest)
        protocol = f"no crop, 0.001 to {config.farthest:g} m, least squares in disparity per image, mean over images"
        print(f"{name} on {config.dataset.name}, {results[name]['images']} images, {protocol}:")
        print(f"    AbsRel {results[name]['abs_rel']:.4f}  delta1 {results[name]['delta1']:.4f}")
        for line in left_out:
            print(f"left out {line}")
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    run_module(Config, main, "depth_model.evaluate")
