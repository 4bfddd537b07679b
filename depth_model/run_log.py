"""The log of a training run: JSON lines, progress on the terminal, curves as a picture."""

import json
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


class RunLog:
    """The JSON-lines log of a run, `log.jsonl`; on resume, lines after the resumed step are dropped."""

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        self.rows: list[dict] = []
        self._first_step, self._started = first_step, time.monotonic()
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            self.rows = [row for row in map(_parse, lines) if row is not None and row["step"] <= first_step]
            self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def write(self, step: int, **numbers: float) -> None:
        """Adds one line."""
        row = {"step": step, **numbers}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def progress(self, step: int, total: int, batch: int, **numbers: float) -> None:
        """Adds one line with `numbers` (`loss` among them) and the speed, and prints how far the run is.

        Args:
            step: optimiser steps done, more than the log began with. total: of so many. batch: images in each.
        """
        rate = (step - self._first_step) * batch / (time.monotonic() - self._started)
        self.write(step, **numbers, images_per_second=round(rate, 1))
        left = (total - step) * batch / rate / 60
        print(f"step {step}/{total}  loss {numbers['loss']:.4f}  {rate:.1f} images/s  {left:.0f} min left", flush=True)

    def plot(self, path: Path) -> None:
        """Draws every logged number over the step into one PNG, a panel each."""
        names = sorted({name for row in self.rows for name in row} - {"step", "seconds"})
        panels = [(name, [(r["step"], r[name]) for r in self.rows if name in r]) for name in names]
        plot_curves(path, [(name, points) for name, points in panels if len(points) > 1])


def _parse(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:  # a line cut off by a kill
        return None


def plot_curves(
    path: Path, panels: list[tuple[str, list[tuple[float, float]]]], width: int = 480, height: int = 200
) -> None:
    """Draws (name, points) panels one below the other; nothing when there are none."""
    if not panels:
        return
    sheet = Image.new("RGB", (width, height * len(panels)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, points) in enumerate(panels):
        x, y = np.array(points, dtype=float).T
        shown = y[np.isfinite(y)]
        if not len(shown):
            continue
        low, high = float(shown.min()), float(np.quantile(shown, 0.99))
        px = 50 + (x - x.min()) / max(np.ptp(x), 1e-9) * (width - 60)
        py = i * height + height - 20 - (np.clip(y, low, high) - low) / max(high - low, 1e-12) * (height - 50)
        draw.rectangle((50, i * height + 25, width - 10, (i + 1) * height - 18), outline="lightgrey")
        draw.line(
            [(float(a), float(b)) for a, b in zip(px, py, strict=True) if np.isfinite(b)], fill=(30, 90, 160), width=2
        )
        draw.text(
            (50, i * height + 8), f"{name}   last {y[-1]:.4g}   steps {int(x.min())} to {int(x.max())}", fill="black"
        )
        draw.text((2, i * height + 25), f"{high:.3g}", fill="grey")
        draw.text((2, (i + 1) * height - 30), f"{low:.3g}", fill="grey")
    sheet.save(path)
