"""`depth-control scenes`: procedural RGB-D pairs."""

from dataclasses import dataclass
from pathlib import Path

from ui.progress import progress


@dataclass(frozen=True)
class Config:
    """Draw procedural scenes: NAME.png beside NAME.npz (depth in metres, valid mask, class labels), and index.json."""

    out: Path
    """Folder to write; the same command again goes on where it stopped."""
    count: int
    """How many scenes; at least 1."""
    seed: int = 0
    """Scene i is a pure function of (seed, i)."""
    size: int = 128
    """Shorter side of the images, 32 to 1024 px."""
    aspects: tuple[float, ...] = (1.0,)
    """Width / height of the images, taken in turn."""
    workers: int = 1
    """Processes that draw; the images do not depend on it."""


def main(config: Config) -> None:
    """Write the scenes."""
    from depth_model.data.scenes import write_scenes

    steps = write_scenes(config.out, config.count, config.seed, config.size, config.aspects, config.workers)
    for _ in progress(steps, config.count, "scenes"):
        pass
    print(f"{config.count} scenes in {config.out}/")
