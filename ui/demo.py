"""`depth-control demo`: the main job on a packaged photo, with the packaged models."""

from dataclasses import dataclass
from pathlib import Path

from ui.progress import step_reporter

PHOTO = Path("embedded", "demo", "photo.jpg")
PROMPTS = (
    "red clay shapes on a white marble plain at noon",
    "blue ice shapes on black stone hills at night",
    "oak wood shapes on green grass hills at sunset",
)


@dataclass(frozen=True)
class Config:
    """A packaged photo to its depth and to pictures for three prompts. Needs no network, GPU or account."""

    out: Path = Path("demo")
    """Folder to write; made when it does not exist."""
    seed: int = 0
    """Picture i is drawn from seed + i."""


def main(config: Config) -> None:
    """Make the three pictures, then name the files and what to try next."""
    import depth_control
    from depth_control import generate

    photo = Path(depth_control.__file__).parent / PHOTO
    with step_reporter("steps") as progress:
        generate(photo, PROMPTS, out=config.out, seed=config.seed, progress=progress)
    print(f"In {config.out}/:")
    print("  depth.png, depth_color.png  the photo's depth, near = white, and in colour")
    for number, prompt in enumerate(PROMPTS):
        print(f"  image_{number}.png                 {prompt}")
    print("  comparison.png              all of it in one strip")
    print("  result.json                 settings, timings, and how well each picture keeps the depth")
    print('Next: depth-control generate YOUR_PHOTO.jpg --prompt "gold shapes in a brick room"')
