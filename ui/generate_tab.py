"""The Generate tab: photo and prompt in, pictures with their fidelity out."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from depth_control.generation import Picture
from depth_control.presets import default_guidance
from depth_model import DepthMap
from ui import view
from ui.forms import MAX_PICTURES, MAX_PROMPT, MAX_SEED, MAX_STEPS, Recipe, Sweep, Window, checked
from ui.handlers import handler
from ui.recipe import make_recipe, read_recipe, save_with_recipe
from ui.studio import PREVIEW_SIDE, Progress, Studio, Subject, depth_model_of
from ui.uploads import KINDS, describe_depth, read_upload

EXAMPLE = Path("embedded", "demo", "photo.jpg")
EXAMPLE_PROMPTS = (
    "red clay shapes on a white marble plain at noon",
    "blue ice shapes on black stone hills at night",
    "oak wood shapes on green grass hills at sunset",
    "a gold model of the scene in indoor light",
)
ORDERS = ("as made", "best structure first")
# The form's fields, in the order in which the handlers get them.
FIELDS = tuple(Recipe.model_fields)


@dataclass(frozen=True)
class Controls:
    """The tab's inputs."""

    photo: gr.Image
    depth_file: gr.File
    fields: dict[str, Any]
    """The component of each field of `Recipe`."""

    @property
    def inputs(self) -> list[Any]:
        """Everything that a job needs."""
        return [self.photo, self.depth_file, *(self.fields[name] for name in FIELDS)]


def build(studio: Studio, examples: list[str]) -> None:
    """Lay out the tab and connect it. Called inside `gr.Blocks`; `examples` are photos."""
    menu = studio.catalog
    results = gr.State([])
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            photo, depth_file, kind, note, swap = _photo_inputs(examples)
            preview, chart, near, far, gamma, invert = _depth_inputs()
        with gr.Column(min_width=320):
            prompt = gr.Textbox(
                label="Prompt", lines=2, max_length=MAX_PROMPT, placeholder=EXAMPLE_PROMPTS[0], elem_id="prompt"
            )
            gr.Examples([[text] for text in EXAMPLE_PROMPTS], prompt, label="Prompts the embedded model understands")
            with gr.Row():
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
                stop = gr.Button("Stop", elem_id="stop")
            status = gr.Markdown("", elem_id="status", elem_classes="status")
            estimate = gr.Markdown(elem_id="estimate", elem_classes="hint")
            live = gr.Image(label="Being drawn", visible=False, interactive=False, format="jpeg", buttons=[])
            gallery, order, slider, downloads = _outputs()
            with gr.Accordion("Settings", open=False):
                shown = _settings(menu)
            with gr.Accordion("Compare strengths", open=False):
                strengths = gr.Textbox("0.5, 1, 1.5", label="Strengths", max_length=100)
                ends = gr.Textbox("0.5, 1", label="End steps, as shares of all steps", max_length=100)
                sweep = gr.Button("Draw the grid")
                grid = gr.Image(label="Grid", format="png", interactive=False, buttons=["download", "fullscreen"])
            with gr.Accordion("Load a recipe", open=False):
                gr.Markdown("Every picture carries its recipe. Give a downloaded picture, or a recipe as .json.")
                recipe_file = gr.File(label="Picture or recipe", file_types=[".png", ".json"])
    fields = shown | {"prompt": prompt, "near": near, "far": far, "gamma": gamma, "invert": invert, "depth_kind": kind}
    random_seed, reuse = fields.pop("random_seed"), fields.pop("reuse")
    controls = Controls(photo, depth_file, fields)
    outputs = [status, live, gallery, results, fields["seed"], order, *slider, *downloads]
    _connect_depth(studio, controls, preview, chart, note, swap)
    _connect_settings(studio, controls, estimate)

    @handler
    def draw_pictures(photo, depth_file, random, *values) -> Iterator[list[Any]]:
        """Pictures that keep the geometry of a photo, or of a depth map of your own, with the fidelity of each."""
        form = checked(Recipe, **dict(zip(FIELDS, values, strict=True)))
        if random:
            form = form.model_copy(update={"seed": secrets.randbelow(MAX_SEED)})
        yield from _draw(studio, photo, depth_file, form)

    running = draw.click(
        draw_pictures,
        [photo, depth_file, random_seed, *controls.inputs[2:]],
        outputs,
        concurrency_id="draw",
        concurrency_limit=1,
        api_name="generate",
        api_description="Draw pictures that keep the geometry of a photo or of a depth map. "
        "Yields while it draws; the last answer holds the pictures, their fidelity and the files.",
        show_progress="hidden",
    )

    @handler
    def draw_grid(photo, depth_file, strengths, ends, *values) -> Iterator[list[Any]]:
        """One picture for each strength of the control and each end step, from the same seed, as a labelled grid."""
        form = checked(Recipe, **dict(zip(FIELDS, values, strict=True)))
        chosen = checked(Sweep, strengths=strengths, ends=ends)
        subject = studio.read(photo, depth_file, form.depth_kind, depth_model_of(form.model, form.depth_model))
        yield [gr.skip(), "waiting for its turn …"]
        for update in studio.sweep(subject, form, chosen):
            if isinstance(update, Progress):
                line = view.progress_line(update.text, update.done, update.total, update.seconds_left)
                yield [gr.skip(), line]
            elif update is not None:
                yield [update, "The grid is done."]
            else:
                yield [gr.skip(), gr.skip()]

    sweeping = sweep.click(
        draw_grid,
        [photo, depth_file, strengths, ends, *controls.inputs[2:]],
        [grid, status],
        concurrency_id="draw",
        concurrency_limit=1,
        api_name="sweep",
        show_progress="hidden",
    )
    stop.click(
        lambda: ("Stopped. What was finished is below.", gr.update(visible=False)),
        outputs=[status, live],
        cancels=[running, sweeping],
        queue=False,
        api_visibility="private",
    )
    _connect_results(results, gallery, order, slider, downloads, reuse, fields["seed"], random_seed)
    _connect_recipe(studio, recipe_file, controls, random_seed, status)


def _photo_inputs(examples: list[str]) -> tuple[Any, ...]:
    photo = gr.Image(
        label="Your photo",
        type="filepath",
        image_mode=None,
        sources=["upload", "webcam", "clipboard"],
        height=280,
        elem_id="photo",
        buttons=[],
    )
    gr.Examples([[path] for path in examples], photo, label="Or one of ours")
    with gr.Accordion("Use a depth map of your own", open=False):
        depth_file = gr.File(label="Depth map", file_types=[".png", ".tif", ".tiff", ".npz", ".npy"], height=110)
        note = gr.Markdown("16-bit pictures, npz and npy keep their precision.", elem_classes="hint")
        swap = gr.Button("Swap near and far", visible=False, elem_id="swap")
        kind = gr.Radio([(text, name) for name, text in KINDS.items()], value="stated", label="What the numbers mean")
    return photo, depth_file, kind, note, swap


def _depth_inputs() -> tuple[Any, ...]:
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
        near = gr.Slider(0, 1, 0.0, step=0.01, label="Near handle", info="nearer than this is white")
        far = gr.Slider(0, 1, 1.0, step=0.01, label="Far handle", info="farther than this is black")
    with gr.Row():
        gamma = gr.Slider(0.1, 5, 1.0, step=0.05, label="Gamma", info="above 1: darker middle distance")
        invert = gr.Checkbox(False, label="Invert", info="for ControlNets trained with far = bright")
    return preview, chart, near, far, gamma, invert


def _settings(menu: Any) -> dict[str, Any]:
    return {
        "model": gr.Dropdown([(c.label, c.name) for c in menu.image], value="embedded", label="Image model"),
        "controlnet": gr.Dropdown(
            [("The one of the image model", ""), *((c.label, c.name) for c in menu.controlnet)],
            value="",
            label="ControlNet",
        ),
        "depth_model": gr.Dropdown(
            [("The one of the image model", ""), *((c.label, c.name) for c in menu.depth)],
            value="",
            label="Depth model",
        ),
        "negative_prompt": gr.Textbox("", label="Negative prompt", max_length=MAX_PROMPT),
        "steps": gr.Slider(1, MAX_STEPS, 20, step=1, label="Steps"),
        "guidance_scale": gr.Slider(
            0,
            30,
            default_guidance("embedded"),
            step=0.1,
            label="Guidance",
            info="how strictly to follow the prompt; 1 or less: none, at half the time",
        ),
        "control_scale": gr.Slider(0, 2, 1.0, step=0.05, label="Control strength", info="0: depth is ignored"),
        "control_start": gr.Slider(0, 1, 0.0, step=0.05, label="Control from", info="share of the steps"),
        "control_end": gr.Slider(0, 1, 1.0, step=0.05, label="Control until", info="share of the steps"),
        "num_images": gr.Slider(1, MAX_PICTURES, 2, step=1, label="Number of pictures"),
        "seed": gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED),
        "random_seed": gr.Checkbox(False, label="A new seed each time"),
        "reuse": gr.Button("Reuse the shown picture's seed", size="sm"),
    }


def _outputs() -> tuple[Any, ...]:
    gallery = gr.Gallery(
        label="Pictures",
        columns=2,
        format="png",
        object_fit="contain",
        height="auto",
        elem_id="gallery",
        buttons=["download_all", "fullscreen"],
        interactive=False,
    )
    order = gr.Radio(ORDERS, value=ORDERS[0], label="Order", visible=False)
    slider = gr.ImageSlider(
        label="Left: the depth asked for. Right: the depth of the picture",
        format="png",
        visible=False,
        interactive=False,
        elem_id="compare",
        buttons=["fullscreen"],
    )
    with gr.Row():
        names = ("Download picture", "Download depth (16-bit PNG)", "Download depth (npz)", "Download 3D points (GLB)")
        downloads = [gr.DownloadButton(name, size="sm", visible=False) for name in names]
    return gallery, order, [slider], downloads


def _draw(studio: Studio, photo: str | None, depth_file: str | None, form: Recipe) -> Iterator[list[Any]]:
    """What the page shows while a job runs and when it is done."""
    yield _shown(status="waiting for its turn …", seed=form.seed)
    subject = studio.read(photo, depth_file, form.depth_kind, depth_model_of(form.model, form.depth_model))
    folder = studio.folder()
    made: list[dict[str, Any]] = []
    for update in studio.draw(subject, form):
        if isinstance(update, Progress):
            line = view.progress_line(update.text, update.done, update.total, update.seconds_left)
            picture = gr.update(value=update.preview, visible=True) if update.preview is not None else gr.skip()
            yield _shown(status=line, live=picture)
        elif isinstance(update, Picture):
            made.append(_save(update, len(made), form, subject, folder))
            yield _shown(results=made, order=ORDERS[0])
        else:
            yield _shown()
    files = _save_depth(subject, folder)
    for result in made:
        result["files"] = [result["path"], *files]
    told = f"{len(made)} picture{'s' * (len(made) != 1)}, seed {form.seed}."
    if unknown := studio.unknown(form):
        told += f" This model does not know: {', '.join(unknown)[:200]}."
    yield _shown(status=told, live=gr.update(visible=False), results=made, order=ORDERS[0])


def _save(picture: Picture, number: int, form: Recipe, subject: Subject, folder: Path) -> dict[str, Any]:
    """Write a picture with its recipe, and the two sides of the slider."""
    recipe = make_recipe(form, number, subject.inputs, picture.fidelity)
    path = folder / f"picture_{picture.seed}.png"
    save_with_recipe(picture.image, path, recipe)
    asked, own = folder / f"condition_{number}.png", folder / f"own_depth_{number}.png"
    DepthMap(picture.control, "disparity").save_color(asked)
    picture.own_depth.save_color(own)
    return {
        "path": str(path),
        "seed": picture.seed,
        "caption": f"seed {picture.seed} · {view.badge(picture.fidelity)}",
        "structure": picture.fidelity["structure"],
        "slider": (str(asked), str(own)),
        "files": [str(path)],
    }


def _save_depth(subject: Subject, folder: Path) -> list[str]:
    """Write the depth itself: 16-bit PNG, npz, point cloud."""
    names = "depth.png", "depth.npz", "depth.glb"
    subject.depth.save_png(folder / names[0])
    subject.depth.save_npz(folder / names[1])
    subject.depth.save_glb(folder / names[2], subject.photo)
    return [str(folder / name) for name in names]


def _shown(
    status: Any = None,
    live: Any = None,
    results: list[dict[str, Any]] | None = None,
    seed: int | None = None,
    order: str = ORDERS[0],
    index: int = 0,
) -> list[Any]:
    """Values of the outputs; None leaves one as it is."""
    kept = [gr.skip() if value is None else value for value in (status, live, results, seed)]
    if results is None:
        return [kept[0], kept[1], gr.skip(), gr.skip(), kept[3], gr.skip(), *_untouched()]
    ordered = sort_results(results, order)
    gallery = gr.update(value=[(r["path"], r["caption"]) for r in ordered], selected_index=None)
    several = gr.update(visible=len(results) > 1, value=order)
    return [kept[0], kept[1], gallery, results, kept[3], several, *details(ordered, index)]


def sort_results(results: list[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    """Results in one of `ORDERS`."""
    return sorted(results, key=lambda r: -r["structure"]) if order == ORDERS[1] else list(results)


def details(results: list[dict[str, Any]], index: int) -> list[Any]:
    """Slider and download buttons for the picture that is looked at."""
    if not 0 <= index < len(results):
        return _untouched()
    shown = results[index]
    files = shown["files"] + [None] * (4 - len(shown["files"]))
    buttons = [gr.update(value=file, visible=file is not None) for file in files]
    return [gr.update(value=tuple(shown["slider"]), visible=True), *buttons]


def _untouched() -> list[Any]:
    return [gr.skip()] * 5


def _connect_depth(
    studio: Studio, controls: Controls, preview: gr.Image, chart: gr.HTML, note: gr.Markdown, swap: gr.Button
) -> None:
    fields = controls.fields
    names = ("depth_kind", "model", "depth_model", "near", "far", "gamma", "invert")
    inputs = [controls.photo, controls.depth_file, *(fields[name] for name in names)]

    @handler
    def condition(photo, depth_file, kind, model, depth_model, near, far, gamma, invert) -> list[Any]:
        """The condition that pictures will keep, 8-bit for the eye, with a histogram of distances."""
        window = checked(Window, near=near, far=far, gamma=gamma, invert=invert)
        chosen = checked(Recipe, depth_kind=kind, model=model, depth_model=depth_model)
        if photo is None and depth_file is None:
            return [None, "", "16-bit pictures, npz and npy keep their precision.", gr.update(visible=False)]
        subject = studio.read(photo, depth_file, chosen.depth_kind, depth_model_of(chosen.model, chosen.depth_model))
        picture = Image.fromarray(np.round(studio.control(subject, window, PREVIEW_SIDE) * 255).astype(np.uint8))
        svg = view.histogram(studio.positions(subject), window.near, window.far)
        if depth_file is None:
            return [picture, svg, gr.skip(), gr.update(visible=False)]
        data = read_upload(depth_file, studio.root)
        told, swapped = describe_depth(Path(depth_file), data, subject.depth, chosen.depth_kind)
        return [picture, svg, told, gr.update(visible=swapped)]

    outputs = [preview, chart, note, swap]
    files = [controls.photo, controls.depth_file, fields["depth_kind"], fields["depth_model"]]
    gr.on(
        [component.change for component in files],
        condition,
        inputs,
        outputs,
        api_name="condition",
        concurrency_id="depth",
        concurrency_limit=2,
        show_progress_on=[preview],
    )
    gr.on(
        [fields["near"].change, fields["far"].change, fields["gamma"].change, fields["invert"].change],
        condition,
        inputs,
        outputs,
        api_visibility="private",
        queue=False,
        show_progress="hidden",
        trigger_mode="always_last",
    )
    swap.click(
        lambda kind: "disparity" if kind == "far_bright" else "far_bright",
        fields["depth_kind"],
        fields["depth_kind"],
        queue=False,
        api_visibility="private",
    )


def _connect_settings(studio: Studio, controls: Controls, estimate: gr.Markdown) -> None:
    fields = controls.fields
    inputs = [fields[name] for name in ("model", "steps", "guidance_scale", "num_images")]

    @handler
    def how_long(model, steps, guidance, pictures) -> str:
        form = checked(Recipe, model=model, steps=steps, guidance_scale=guidance, num_images=pictures)
        studio.catalog.check(model)
        return view.estimate(form.num_images, studio.seconds_for(form))

    gr.on(
        [component.change for component in inputs],
        how_long,
        inputs,
        estimate,
        queue=False,
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )

    @handler
    def suit(model) -> Any:
        studio.catalog.check(model)
        return default_guidance(model)

    fields["model"].input(suit, fields["model"], fields["guidance_scale"], queue=False, api_visibility="private")


def _connect_results(
    results: gr.State,
    gallery: gr.Gallery,
    order: gr.Radio,
    slider: list[Any],
    downloads: list[Any],
    reuse: gr.Button,
    seed: gr.Number,
    random_seed: gr.Checkbox,
) -> None:
    shown = gr.State(0)

    @handler
    def look(results, order, event: gr.SelectData) -> list[Any]:
        return [event.index, *details(sort_results(results, order), event.index)]

    @handler
    def reorder(results, order) -> list[Any]:
        ordered = sort_results(results, order)
        pictures = gr.update(value=[(r["path"], r["caption"]) for r in ordered], selected_index=None)
        return [pictures, 0, *details(ordered, 0)]

    @handler
    def take_seed(results, order, index) -> list[Any]:
        ordered = sort_results(results, order)
        return [ordered[index]["seed"] if 0 <= index < len(ordered) else gr.skip(), False]

    private = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    gallery.select(look, [results, order], [shown, *slider, *downloads], **private)
    order.input(reorder, [results, order], [gallery, shown, *slider, *downloads], **private)
    reuse.click(take_seed, [results, order, shown], [seed, random_seed], **private)
    # A new job starts with its first picture.
    results.change(lambda: 0, outputs=shown, **private)


def _connect_recipe(
    studio: Studio, recipe_file: gr.File, controls: Controls, random_seed: gr.Checkbox, status: gr.Markdown
) -> None:
    @handler
    def load(path, photo, depth_file) -> list[Any]:
        """Set every control as a picture's recipe says."""
        if path is None:
            return [gr.skip()] * (len(FIELDS) + 2)
        read_upload(path, studio.root)
        form, inputs = read_recipe(Path(path))
        studio.catalog.check(form.model, form.controlnet, form.depth_model)
        told = "The recipe is loaded."
        subject = studio.read(photo, depth_file, form.depth_kind, "embedded").inputs if photo or depth_file else {}
        if subject != inputs:
            told += f" For the very same picture also give the same {' and '.join(inputs) or 'photo'} as then."
        return [*(getattr(form, name) for name in FIELDS), False, told]

    recipe_file.upload(
        load,
        [recipe_file, controls.photo, controls.depth_file],
        [*(controls.fields[name] for name in FIELDS), random_seed, status],
        queue=False,
        api_visibility="private",
    )
