"""The Depth tab: one photo or many, one model or several, values under the pointer, points in space."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from depth_model import DepthMap
from depth_model.errors import InputError
from ui.handlers import QUIET, handler
from ui.studio import Studio
from ui.uploads import open_photo, photo_upload, read_upload

MAX_BATCH = 32
MAX_MODELS = 4


def build(studio: Studio, examples: list[str]) -> None:
    """Lay out the tab and connect it. Called inside `gr.Blocks`; `examples` are photos."""
    choices = [(choice.label, choice.name) for choice in studio.catalog.depth]
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            photo = photo_upload("Photo", elem_id="depth_photo")
            gr.Examples([[path] for path in examples], photo, label="Or one of ours")
            models = gr.CheckboxGroup(choices, value=["embedded"], label=f"Depth models, up to {MAX_MODELS}")
            run = gr.Button("Estimate depth", variant="primary", elem_id="estimate_depth")
            with gr.Accordion("Many photos", open=False):
                batch = gr.File(
                    label=f"Photos, up to {MAX_BATCH}", file_count="multiple", file_types=["image"], height=140
                )
                run_batch = gr.Button("Estimate all with the first model")
                batch_note = gr.Markdown("", elem_classes="hint")
                batch_files = gr.File(label="16-bit PNG and npz of each", file_count="multiple", visible=False)
        with gr.Column(min_width=320):
            maps = gr.Gallery(
                label="Depth, one picture for each model: click one to look closer",
                columns=2,
                format="png",
                object_fit="contain",
                height="auto",
                interactive=False,
                buttons=["fullscreen"],
                elem_id="depth_maps",
            )
            colour = gr.Image(
                label="Click a point to read its depth",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="depth_colour",
            )
            reading = gr.Markdown("", elem_id="reading", elem_classes="status")
            slider = gr.ImageSlider(
                label="Left: photo. Right: depth",
                format="png",
                interactive=False,
                visible=False,
                buttons=["fullscreen"],
            )
            with gr.Row():
                names = "Download 16-bit PNG", "Download npz", "Download 3D points (GLB)"
                downloads = [gr.DownloadButton(name, size="sm", visible=False) for name in names]
            points = gr.Model3D(label="Points in space: drag to turn", camera_position=(90, 90, None), height=360)
    chosen = gr.State("embedded")
    found = gr.State([])
    shown = [colour, reading, slider, *downloads, points]

    @handler
    def estimate_each(photo, models) -> list[Any]:
        """Depth of one photo by each of the models: colour pictures, 16-bit PNG, npz and a point cloud."""
        names = _checked_models(studio, models)
        if photo is None:
            raise InputError("Give a photo first")
        data = read_upload(photo, studio.root)
        picture, folder, results = open_photo(data), studio.folder(), []
        for number, name in enumerate(names):
            saved = save_depth_map(studio.estimate(data, name), picture, folder, f"depth_{number}")
            results.append(saved | {"title": _title(studio, name)})
        gallery = gr.update(value=[(r["colour"], r["title"]) for r in results], selected_index=None)
        return [gallery, results, names[0], *_details(results[0])]

    @handler
    def look(results, models, event: gr.SelectData) -> list[Any]:
        names = _checked_models(studio, models)
        if not 0 <= event.index < min(len(results), len(names)):
            return [gr.skip()] * (1 + len(shown))
        return [names[event.index], *_details(results[event.index])]

    @handler
    def read_point(photo, model, event: gr.SelectData) -> str:
        if photo is None:
            return ""
        return describe_point(studio.estimate(read_upload(photo, studio.root), model), *event.index)

    @handler
    def estimate_many(files, models) -> Iterator[list[Any]]:
        """Depth of many photos; those that cannot be read are skipped and listed."""
        name = _checked_models(studio, models)[0]
        if not files or len(files) > MAX_BATCH:
            raise InputError(f"Give from 1 to {MAX_BATCH} photos")
        folder, written, skipped = studio.folder(), [], []
        for number, file in enumerate(files):
            yield [f"{number} of {len(files)} done …", gr.skip()]
            stem = f"{number:02d}_{safe_stem(Path(file).stem)}"
            try:
                depth = studio.estimate(read_upload(file, studio.root), name)
            except InputError as error:
                skipped.append(f"{safe_stem(Path(file).stem)}: {error}")
                continue
            depth.save_png(folder / f"{stem}_depth.png")
            depth.save_npz(folder / f"{stem}_depth.npz")
            written += [str(folder / f"{stem}_depth.png"), str(folder / f"{stem}_depth.npz")]
        told = f"{len(written) // 2} of {len(files)} done." + "".join(f" Skipped {line}." for line in skipped)
        yield [told, gr.update(value=written or None, visible=bool(written))]

    queued = {"concurrency_id": "depth", "concurrency_limit": 2}
    run.click(estimate_each, [photo, models], [maps, found, chosen, *shown], api_visibility="private", **queued)
    run_batch.click(estimate_many, [batch, models], [batch_note, batch_files], api_visibility="private", **queued)
    maps.select(look, [found, models], [chosen, *shown], **QUIET)
    colour.select(read_point, [photo, chosen], reading, **QUIET)


def describe_point(depth: DepthMap, column: int, row: int) -> str:
    """The value at a pixel, in words.

    Raises:
        InputError: outside the map.
    """
    rows, columns = depth.values.shape
    if not (isinstance(column, int) and isinstance(row, int) and 0 <= row < rows and 0 <= column < columns):
        raise InputError("that point is outside the picture")
    where = f"At column {column}, row {row}: "
    if depth.valid is not None and not depth.valid[row, column]:
        return where + "no depth there."
    value = float(depth.values[row, column])
    if depth.kind == "metric":
        return f"{where}**{value:.2f} m** away."
    nearness = float(depth.nearness()[row, column])
    return f"{where}nearness **{nearness:.3f}** (1: nearest point, 0: farthest); disparity {value:.4g}, no unit."


def safe_stem(stem: str) -> str:
    """A file name from a file name that somebody chose."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in stem)
    return kept[:60] or "photo"


def _checked_models(studio: Studio, models: Any) -> list[str]:
    if not isinstance(models, list) or not 1 <= len(models) <= MAX_MODELS:
        raise InputError(f"Choose from 1 to {MAX_MODELS} depth models")
    for name in models:
        studio.catalog.check("", depth=name if isinstance(name, str) else "?")
    return models


def _title(studio: Studio, name: str) -> str:
    return next(choice.title for choice in studio.catalog.depth if choice.name == name)


def save_depth_map(depth: DepthMap, photo: Image.Image, folder: Path, stem: str) -> dict[str, str]:
    """Write STEM.png (16-bit), STEM.npz, STEM.glb, STEM_colour.png and photo.png; gives their paths."""
    paths = {kind: folder / f"{stem}.{kind}" for kind in ("png", "npz", "glb")}
    paths |= {"colour": folder / f"{stem}_colour.png", "photo": folder / "photo.png"}
    depth.save_png(paths["png"])
    depth.save_npz(paths["npz"])
    depth.save_glb(paths["glb"], photo)
    depth.save_color(paths["colour"])
    photo.save(paths["photo"])
    return {name: str(path) for name, path in paths.items()}


def _details(result: dict[str, Any]) -> list[Any]:
    return [
        result["colour"],
        "",
        gr.update(value=(result["photo"], result["colour"]), visible=True),
        *(gr.update(value=result[kind], visible=True) for kind in ("png", "npz", "glb")),
        result["glb"],
    ]
