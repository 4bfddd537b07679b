"""Pictures as the page keeps them: files in a folder that only their maker knows, and one plain dict for each."""

from pathlib import Path
from typing import Any

import gradio as gr

from depth_control.generation import Picture
from depth_model import DepthMap
from ui import view
from ui.forms import Recipe
from ui.recipe import make_recipe, save_with_recipe
from ui.studio import Subject

ORDERS = ("as made", "best structure first")
DEPTH_FILES = ("depth.png", "depth.npz", "depth.glb")


def save_picture(picture: Picture, number: int, form: Recipe, subject: Subject, folder: Path) -> dict[str, Any]:
    """Write a picture with its recipe, and the two sides of the slider.

    Returns:
        `path`, `seed`, `caption`, `fidelity`, `slider` (two paths) and `files` (what can be downloaded).
    """
    path = folder / f"picture_{picture.seed}.png"
    save_with_recipe(picture.image, path, make_recipe(form, number, subject.inputs, picture.fidelity))
    asked, own = folder / f"condition_{number}.png", folder / f"own_depth_{number}.png"
    DepthMap(picture.control, "disparity").save_color(asked)
    picture.own_depth.save_color(own)
    return {
        "path": str(path),
        "seed": picture.seed,
        "caption": f"{view.badge(picture.fidelity)} · seed {picture.seed}",
        "fidelity": {name: round(value, 4) for name, value in picture.fidelity.items()},
        "slider": (str(asked), str(own)),
        "files": [str(path)],
    }


def save_depth(subject: Subject, folder: Path) -> list[str]:
    """Write the depth itself: 16-bit PNG, npz, point cloud."""
    png, npz, glb = (folder / name for name in DEPTH_FILES)
    subject.depth.save_png(png)
    subject.depth.save_npz(npz)
    subject.depth.save_glb(glb, subject.photo)
    return [str(png), str(npz), str(glb)]


def sort_results(results: list[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    """Results in one of `ORDERS`."""
    return sorted(results, key=lambda r: -r["fidelity"]["structure"]) if order == ORDERS[1] else list(results)


def gallery_of(results: list[dict[str, Any]]) -> Any:
    """The gallery with captions."""
    return gr.update(value=[(r["path"], r["caption"]) for r in results], selected_index=None)


def details(results: list[dict[str, Any]], index: int) -> list[Any]:
    """Slider and download buttons for the picture that is looked at."""
    if not 0 <= index < len(results):
        return untouched()
    files = results[index]["files"] + [None] * (1 + len(DEPTH_FILES) - len(results[index]["files"]))
    buttons = [gr.update(value=file, visible=file is not None) for file in files]
    return [gr.update(value=tuple(results[index]["slider"]), visible=True), *buttons]


def untouched() -> list[Any]:
    """`details` that change nothing."""
    return [gr.skip()] * (2 + len(DEPTH_FILES))


def report_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What programs want to know of each picture."""
    return [{"file": Path(r["path"]).name, "seed": r["seed"], **r["fidelity"]} for r in results]
