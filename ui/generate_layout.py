"""What is on the Generate tab, and where."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from depth_control.presets import default_guidance
from ui.catalog import Catalog
from ui.forms import MAX_PICTURES, MAX_PROMPT, MAX_SEED, MAX_STEPS
from ui.handlers import FIELDS
from ui.results import ORDERS
from ui.uploads import KINDS, photo_upload, unread

EXAMPLE = Path("embedded", "demo", "photo.jpg")
EXAMPLE_PROMPTS = (
    "red clay shapes on a white marble plain at noon",
    "blue ice shapes on black stone hills at night",
    "oak wood shapes on green grass hills at sunset",
    "a gold model of the scene in indoor light",
)
DEPTH_HINT = "16-bit pictures, npz and npy keep their precision."


@dataclass(frozen=True)
class Inputs:
    """What a job is made from."""

    photo: gr.Image
    depth_file: gr.File
    depth_note: gr.Markdown
    swap: gr.Button
    fields: dict[str, Any]
    """The component of each field of `Recipe`."""
    random_seed: gr.Checkbox
    reuse_seed: gr.Button

    @property
    def files(self) -> list[Any]:
        """Photo and depth file."""
        return [self.photo, self.depth_file]

    @property
    def controls(self) -> list[Any]:
        """All fields, in the order of `FIELDS`."""
        return [self.fields[name] for name in FIELDS]


@dataclass(frozen=True)
class Shown:
    """What answers."""

    preview: gr.Image
    chart: gr.HTML
    estimate: gr.Markdown
    draw: gr.Button
    stop: gr.Button
    status: gr.Markdown
    live: gr.Image
    gallery: gr.Gallery
    order: gr.Radio
    slider: gr.ImageSlider
    downloads: list[gr.DownloadButton]


@dataclass(frozen=True)
class Extras:
    """Sweep and recipe."""

    strengths: gr.Textbox
    ends: gr.Textbox
    sweep: gr.Button
    grid: gr.Image
    recipe_file: gr.File


def lay_out(menu: Catalog, examples: list[str]) -> tuple[Inputs, Shown, Extras]:
    """Make all components. Called inside `gr.Blocks`; `examples` are photos."""
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            photo = photo_upload("Your photo", elem_id="photo")
            gr.Examples([[path] for path in examples], photo, label="Or one of ours")
            depth_file, note, swap, kind = _own_depth()
            preview, chart, window = _depth()
        with gr.Column(min_width=320):
            prompt = gr.Textbox(label="Prompt", lines=2, max_length=MAX_PROMPT, placeholder=EXAMPLE_PROMPTS[0])
            gr.Examples([[text] for text in EXAMPLE_PROMPTS], prompt, label="Prompts the embedded model understands")
            settings, random_seed, reuse = _settings(menu)
            estimate = gr.Markdown(elem_id="estimate", elem_classes="hint")
            with gr.Row():
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
                stop = gr.Button("Stop", elem_id="stop")
            status = gr.Markdown("", elem_id="status", elem_classes="status")
            live, gallery, order, slider, downloads = _results()
            extras = _extras()
    fields = {"prompt": prompt, "depth_kind": kind, **window, **settings}
    return (
        Inputs(photo, depth_file, note, swap, fields, random_seed, reuse),
        Shown(preview, chart, estimate, draw, stop, status, live, gallery, order, slider, downloads),
        extras,
    )


def _own_depth() -> tuple[Any, ...]:
    with gr.Accordion("Use a depth map of your own", open=False):
        file = gr.File(label="Depth map", file_types=[".png", ".tif", ".tiff", ".npz", ".npy"], height=110)
        note = gr.Markdown(DEPTH_HINT, elem_classes="hint")
        swap = gr.Button("Swap near and far", visible=False, elem_id="swap")
        kind = gr.Radio([(text, name) for name, text in KINDS.items()], value="stated", label="What the numbers mean")
    return file, note, swap, kind


def _depth() -> tuple[Any, ...]:
    preview = gr.Image(
        label="Depth that will be kept (near = bright)",
        interactive=False,
        format="png",
        height=280,
        elem_id="preview",
        buttons=["download", "fullscreen"],
    )
    chart = gr.HTML("", elem_id="histogram")
    with gr.Row():
        near = gr.Slider(0, 1, 0.0, step=0.01, label="Near handle", info="nearer than this is white", min_width=140)
        far = gr.Slider(0, 1, 1.0, step=0.01, label="Far handle", info="farther than this is black", min_width=140)
    with gr.Row():
        gamma = gr.Slider(0.1, 5, 1.0, step=0.05, label="Gamma", info="above 1: darker middle", min_width=140)
        invert = gr.Checkbox(False, label="Invert", info="for ControlNets trained with far = bright", min_width=140)
    return preview, chart, {"near": near, "far": far, "gamma": gamma, "invert": invert}


def _settings(menu: Catalog) -> tuple[dict[str, Any], gr.Checkbox, gr.Button]:
    default = [("The one of the image model", "")]
    guidance = default_guidance("embedded")
    with gr.Accordion("Settings", open=False):
        fields = {
            "model": gr.Dropdown([(c.label, c.name) for c in menu.image], value="embedded", label="Image model"),
            "controlnet": gr.Dropdown(
                default + [(c.label, c.name) for c in menu.controlnet], value="", label="ControlNet"
            ),
            "depth_model": gr.Dropdown(
                default + [(c.label, c.name) for c in menu.depth], value="", label="Depth model"
            ),
            "negative_prompt": gr.Textbox("", label="Negative prompt", max_length=MAX_PROMPT),
            "num_images": gr.Slider(1, MAX_PICTURES, 2, step=1, label="Number of pictures"),
            "steps": gr.Slider(1, MAX_STEPS, 20, step=1, label="Steps"),
            "guidance_scale": gr.Slider(
                0, 30, guidance, step=0.1, label="Guidance", info="how strictly to follow the prompt; 1: half the time"
            ),
            "control_scale": gr.Slider(0, 2, 1.0, step=0.05, label="Control strength", info="0: depth is ignored"),
        }
        with gr.Row():
            starts = gr.Slider(0, 1, 0.0, step=0.05, label="Control from", info="share of the steps", min_width=140)
            ends = gr.Slider(0, 1, 1.0, step=0.05, label="Control until", info="share of the steps", min_width=140)
        with gr.Row():
            seed = unread(gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=140))
            random_seed = gr.Checkbox(False, label="A new seed each time", min_width=140)
        reuse = gr.Button("Reuse the seed of the picture looked at", size="sm")
    return fields | {"control_start": starts, "control_end": ends, "seed": seed}, random_seed, reuse


def _results() -> tuple[Any, ...]:
    live = gr.Image(label="Being drawn", visible=False, interactive=False, format="jpeg", buttons=[], elem_id="live")
    gallery = gr.Gallery(
        label="Pictures: click one to look closer",
        columns=2,
        format="png",
        object_fit="contain",
        height="auto",
        elem_id="gallery",
        buttons=["download_all", "fullscreen"],
        interactive=False,
    )
    order = gr.Radio(list(ORDERS), value=ORDERS[0], label="Order", visible=False)
    slider = gr.ImageSlider(
        label="Left: the depth asked for. Right: the depth of the picture",
        format="png",
        visible=False,
        interactive=False,
        elem_id="compare",
        buttons=["fullscreen"],
    )
    with gr.Row():
        names = "Download picture", "Download depth (16-bit)", "Download depth (npz)", "Download points (GLB)"
        downloads = [gr.DownloadButton(name, size="sm", visible=False, min_width=200) for name in names]
    return live, gallery, order, slider, downloads


def _extras() -> Extras:
    with gr.Accordion("Compare strengths", open=False):
        strengths = gr.Textbox("0.5, 1, 1.5", label="Strengths", max_length=100)
        ends = gr.Textbox("0.5, 1", label="Control until, as shares of the steps", max_length=100)
        sweep = gr.Button("Draw the grid")
        grid = gr.Image(label="Grid", format="png", interactive=False, buttons=["download", "fullscreen"])
    with gr.Accordion("Load a recipe", open=False):
        gr.Markdown("Every picture carries its recipe. Give a downloaded picture, or a recipe as .json.")
        recipe_file = gr.File(label="Picture or recipe", file_types=[".png", ".json"])
    return Extras(strengths, ends, sweep, grid, recipe_file)
