"""`depth-control estimate`: depth maps of photos."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from depth_model.errors import InputError
from ui.progress import progress


@dataclass(frozen=True)
class Config:
    """Estimate depth: NAME_depth.png (16-bit), NAME_depth.npz (float32 values, kind), NAME_color.png for each photo."""

    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMAGE|DIR ...")]] = ()
    """Photos, and folders of photos."""
    depth_model: str = "embedded"
    """The estimator: embedded, a model folder, a Hub id, or an original Depth Anything .pth."""
    out: Path = Path("depth")
    """Folder to write; made when it does not exist."""
    backend: Literal["torch", "onnx", "openvino"] = "torch"
    """What runs the network; only torch in this version."""
    device: str | None = None
    """cpu, cuda, mps; the best one present by default."""
    dtype: str | None = None
    """float32, bfloat16 or float16; what suits the device by default."""

    def __post_init__(self) -> None:
        if self.backend != "torch":
            raise InputError(f"--backend {self.backend}: export comes in a later version; use --backend torch")


def main(config: Config) -> None:
    """Write the depth of each photo; of several, bad ones are skipped and listed at the end."""
    from depth_model.images import open_image

    photos = _find_photos(config.images)
    if alone := len(config.images) == 1 and config.images[0].is_file():
        open_image(photos[0])  # a bad file is told before a model is loaded
    out = output_folder(config.out)

    from depth_model import DepthEstimator

    estimator = DepthEstimator.from_pretrained(config.depth_model, device=config.device, dtype=config.dtype)
    skipped = []
    for photo, name in progress(zip(photos, _output_names(photos), strict=True), len(photos), "photos"):
        try:
            image = open_image(photo)
        except InputError as error:
            if alone:
                raise
            skipped.append(str(error))
            continue
        depth = estimator(image)
        depth.save_png(out / f"{name}_depth.png")
        depth.save_npz(out / f"{name}_depth.npz")
        depth.save_color(out / f"{name}_color.png")
    made = len(photos) - len(skipped)
    print(f"{made} depth map{'s' * (made != 1)} in {out}/")
    if skipped:
        print(f"skipped {len(skipped)}:", *skipped, sep="\n  ")


def output_folder(path: Path) -> Path:
    """The folder of `--out`, made when it does not exist.

    Raises:
        InputError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be made ({error.strerror}); name another folder") from None
    return path


def _find_photos(sources: tuple[Path, ...]) -> list[Path]:
    """Every photo named, or in a folder named, once and in order."""
    from depth_model.images import list_images

    if not sources:
        raise InputError("estimate needs an image or a folder of images")
    photos: dict[Path, Path] = {}
    for source in sources:
        if not source.exists():
            raise InputError(f"{source}: no such file or folder")
        found = list_images(source) if source.is_dir() else [source]
        if not found:
            raise InputError(f"{source}: the folder holds no images")
        for photo in map(Path, found):
            photos.setdefault(photo.resolve(), photo)
    return list(photos.values())


def _output_names(photos: list[Path]) -> list[str]:
    """One name for each photo: its stem; a.jpg beside a.png give a_jpg and a_png; what still clashes gets a number."""
    # Letter case is ignored because some file systems do.
    shared = Counter(photo.stem.lower() for photo in photos)
    names, taken = [], set()
    for photo in photos:
        stem = photo.stem if shared[photo.stem.lower()] == 1 else f"{photo.stem}_{photo.suffix[1:]}"
        name, number = stem, 2
        while name.lower() in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name.lower())
        names.append(name)
    return names
