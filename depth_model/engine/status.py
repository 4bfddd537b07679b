"""How far the labels in a folder are: what is done, what is left, at which rate, and when it will be finished.

depth-control status --labels runs/labels
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from depth_model.config import run_module
from depth_model.data.units import PROVENANCE, done_at, files_of, read_json
from depth_model.errors import InputError

_RECENT = 100


@dataclass(frozen=True)
class Config:
    """Says how far `label` has come; opens a few small files and no image."""

    labels: Path = Path("runs/labels")
    """Folder of the label shards."""


@dataclass(frozen=True)
class Status:
    """Units, and what the newest hundred say of the rest.

    Attributes:
        done, total: units. quarantined: images, of all units that are done.
        images: in a unit, on average over the newest. rate: units per second between the newest; 0 when unknown.
        idle: seconds since the newest unit was done.
    """

    done: int
    total: int
    quarantined: int
    images: float
    rate: float
    idle: float

    def __str__(self) -> str:
        left = self.total - self.done
        lines = [f"{self.done} of {self.total} units done, {left} left; about {self.images:.0f} images each"]
        lines.append(f"{self.quarantined} images in quarantine, listed with their reasons in *.quarantine.json")
        if self.rate and left:
            hours = left / self.rate / 3600
            lines.append(f"{self.rate * self.images:.1f} images/s lately, {hours:.1f} hours left at that rate")
        if self.done and left:
            lines.append(f"the newest unit was done {self.idle / 60:.0f} minutes ago")
        return "\n".join(lines)


def status(folder: Path) -> Status:
    """How far the labels in a folder are; two file system look-ups for each unit.

    Raises:
        InputError: no labels there.
    """
    try:
        units = read_json(folder / PROVENANCE)["units"]
    except (InputError, KeyError) as error:
        raise InputError(f"--labels {folder}: no labels there ({error}); depth-control label makes them") from None
    ended, quarantined = [], 0
    for unit in units:
        when = done_at(folder, unit)
        if when is not None:
            ended.append((when, unit))
            if os.path.exists(f"{folder}/{unit}.quarantine.json"):
                quarantined += len(read_json(f"{folder}/{unit}.quarantine.json"))
    newest = sorted(ended)[-_RECENT:]
    images = [read_json(files_of(folder, unit)["done"])["images"] for _, unit in newest]
    span = newest[-1][0] - newest[0][0] if newest else 0.0
    return Status(
        done=len(ended),
        total=len(units),
        quarantined=quarantined,
        images=sum(images) / max(1, len(images)),
        rate=(len(newest) - 1) / span if span else 0.0,
        idle=max(0.0, time.time() - newest[-1][0]) if newest else 0.0,
    )


def main(config: Config) -> Status:
    """Runs the command."""
    found = status(config.labels)
    print(found)
    return found


if __name__ == "__main__":
    run_module(Config, main, "depth_model.engine.status")
