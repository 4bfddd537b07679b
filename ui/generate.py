"""`depth-control generate`: pictures that keep a photo's geometry."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from depth_control.settings import Settings
from ui.progress import step_reporter


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Make pictures that obey a photo's depth: depth.png, image_0.png and on, comparison.png, result.json."""

    image: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="IMAGE")]] = None
    """The photo; may be left out when --depth is given."""
    prompt: str
    """What the pictures show. The embedded model knows few words, and warns of those it does not know."""
    depth: Path | None = None
    """A depth file (16-bit PNG or npz) in place of the estimate."""
    out: Path = Path("out")
    """Folder to write; made when it does not exist."""


def main(config: Config) -> None:
    """Make the pictures and say where they are."""
    from depth_control import generate

    settings = {field.name: getattr(config, field.name) for field in fields(Settings)}
    with step_reporter("steps") as progress:
        generate(config.image, config.prompt, depth=config.depth, out=config.out, progress=progress, **settings)
    print(f"{config.num_images} picture{'s' * (config.num_images != 1)}, depth and result.json in {config.out}/")
