"""The Generate tab: photo and prompt in, pictures with their fidelity out."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from depth_control.generation import Picture
from depth_control.presets import default_guidance
from ui import results as kept
from ui import view
from ui.forms import MAX_SEED, Recipe, Sweep, Window, checked
from ui.generate_layout import DEPTH_HINT, Extras, Inputs, Shown, lay_out
from ui.handlers import FIELDS, QUIET, form_of, handler
from ui.recipe import read_recipe
from ui.studio import PREVIEW_SIDE, Progress, Studio, depth_model_of
from ui.uploads import describe_depth, read_upload

DRAWING = {
    "concurrency_id": "draw",
    "concurrency_limit": 1,
    "show_progress": "hidden",
    "api_visibility": "private",
}
WAITING = "waiting for its turn …"


def build(studio: Studio, page: gr.Blocks, examples: list[str]) -> Inputs:
    """Lay out the tab and connect it. Called inside `page`; `examples` are photos."""
    inputs, shown, extras = lay_out(studio.catalog, examples)
    results, index = gr.State([]), gr.State(0)
    _connect_depth(studio, inputs, shown)
    _connect_drawing(studio, inputs, shown, extras, results, index)
    _connect_results(inputs, shown, results, index)
    _connect_recipe(studio, inputs, shown, extras)
    _connect_estimate(studio, page, inputs, shown)
    return inputs


def _connect_drawing(
    studio: Studio, inputs: Inputs, shown: Shown, extras: Extras, results: gr.State, index: gr.State
) -> None:
    outputs = [shown.status, shown.live, shown.gallery, results, inputs.fields["seed"]]
    outputs += [shown.order, index, shown.slider, *shown.downloads]

    @handler
    def draw(photo, depth_file, new_seed, *values) -> Iterator[list[Any]]:
        """Pictures that keep the geometry of a photo, or of a depth map of your own, with the fidelity of each."""
        form = form_of(values)
        if new_seed:
            form = form.model_copy(update={"seed": secrets.randbelow(MAX_SEED)})
        yield from _draw(studio, photo, depth_file, form)

    @handler
    def draw_grid(photo, depth_file, strengths, end_steps, *values) -> Iterator[list[Any]]:
        """One picture for each strength of the control and each end step, from the same seed, as a labelled grid."""
        form, sweep = form_of(values), checked(Sweep, strengths=strengths, ends=end_steps)
        yield [gr.skip(), WAITING]
        subject = studio.read(photo, depth_file, form.depth_kind, depth_model_of(form.model, form.depth_model))
        for update in studio.sweep(subject, form, sweep):
            if isinstance(update, Progress):
                yield [gr.skip(), view.progress_line(update.text, update.done, update.total, update.seconds_left)]
            else:
                yield [gr.skip(), gr.skip()] if update is None else [update, "The grid is done."]

    running = shown.draw.click(draw, [*inputs.files, inputs.random_seed, *inputs.controls], outputs, **DRAWING)
    sweeping = extras.sweep.click(
        draw_grid,
        [*inputs.files, extras.strengths, extras.ends, *inputs.controls],
        [extras.grid, shown.status],
        **DRAWING,
    )
    for job in (running, sweeping):
        ended = [shown.status, shown.live]
        job.failure(
            lambda: ("That did not work; the message says why.", gr.update(visible=False)), None, ended, **QUIET
        )
    shown.stop.click(
        lambda: ("Stopped. What was finished is below.", gr.update(visible=False)),
        outputs=[shown.status, shown.live],
        cancels=[running, sweeping],
        queue=False,
        api_visibility="private",
        show_progress="hidden",
    )


def _draw(studio: Studio, photo: str | None, depth_file: str | None, form: Recipe) -> Iterator[list[Any]]:
    """What the page shows while a job runs and when it is done."""
    yield _answer(status=WAITING, seed=form.seed)
    subject = studio.read(photo, depth_file, form.depth_kind, depth_model_of(form.model, form.depth_model))
    folder, made = studio.folder(), []
    for update in studio.draw(subject, form):
        if isinstance(update, Progress):
            line = view.progress_line(update.text, update.done, update.total, update.seconds_left)
            preview = None if update.preview is None else gr.update(value=update.preview, visible=True)
            yield _answer(status=line, live=preview)
        elif isinstance(update, Picture):
            made.append(kept.save_picture(update, len(made), form, subject, folder))
            yield _answer(results=made)
        else:
            yield _answer()
    files = kept.save_depth(subject, folder)
    for result in made:
        result["files"] = [result["path"], *files]
    told = f"{len(made)} picture{'s' * (len(made) != 1)}, seed {form.seed}."
    if unknown := studio.unknown(form):
        told += f" This model does not know: {', '.join(unknown)[:200]}."
    yield _answer(status=told, live=gr.update(visible=False), results=made)


def _answer(
    status: str | None = None, live: Any = None, results: list[dict[str, Any]] | None = None, seed: int | None = None
) -> list[Any]:
    """Values of the drawing's outputs; None leaves one as it is."""
    status, live, seed = (gr.skip() if value is None else value for value in (status, live, seed))
    if results is None:
        return [status, live, gr.skip(), gr.skip(), seed, gr.skip(), gr.skip(), *kept.untouched()]
    order = gr.update(visible=len(results) > 1, value=kept.ORDERS[0])
    found = [kept.gallery_of(results), list(results), seed, order, 0]
    return [status, live, *found, *kept.details(results, 0)]


def _connect_depth(studio: Studio, inputs: Inputs, shown: Shown) -> None:
    fields = inputs.fields
    names = ("depth_kind", "model", "depth_model", "near", "far", "gamma", "invert")

    @handler
    def condition(photo, depth_file, depth_kind, model, depth_model, near, far, gamma, invert) -> list[Any]:
        """The condition that pictures will keep, 8-bit for the eye, with a histogram of distances."""
        window = checked(Window, near=near, far=far, gamma=gamma, invert=invert)
        chosen = checked(Recipe, depth_kind=depth_kind, model=model, depth_model=depth_model)
        if photo is None and depth_file is None:
            return [None, "", DEPTH_HINT, gr.update(visible=False)]
        subject = studio.read(photo, depth_file, chosen.depth_kind, depth_model_of(chosen.model, chosen.depth_model))
        picture = Image.fromarray(np.round(studio.control(subject, window, PREVIEW_SIDE) * 255).astype(np.uint8))
        chart = view.histogram(studio.positions(subject), window.near, window.far)
        if depth_file is None:
            return [picture, chart, DEPTH_HINT, gr.update(visible=False)]
        data = read_upload(depth_file, studio.root)
        told, swapped = describe_depth(Path(depth_file), data, subject.depth, chosen.depth_kind)
        return [picture, chart, told, gr.update(visible=swapped)]

    sources = [*inputs.files, *(fields[name] for name in names)]
    outputs = [shown.preview, shown.chart, inputs.depth_note, inputs.swap]
    files = [*inputs.files, fields["depth_kind"], fields["depth_model"]]
    gr.on(
        [component.change for component in files],
        condition,
        sources,
        outputs,
        api_visibility="private",
        concurrency_id="depth",
        concurrency_limit=2,
        show_progress_on=[shown.preview],
    )
    window = [fields[name].change for name in ("near", "far", "gamma", "invert")]
    gr.on(window, condition, sources, outputs, trigger_mode="always_last", **QUIET)
    inputs.swap.click(
        lambda kind: "disparity" if kind == "far_bright" else "far_bright",
        fields["depth_kind"],
        fields["depth_kind"],
        **QUIET,
    )


def _connect_estimate(studio: Studio, page: gr.Blocks, inputs: Inputs, shown: Shown) -> None:
    fields = inputs.fields

    @handler
    def how_long(model, steps, guidance, pictures) -> str:
        form = checked(Recipe, model=model, steps=steps, guidance_scale=guidance, num_images=pictures)
        studio.catalog.check(model)
        return view.estimate(form.num_images, studio.seconds_for(form))

    @handler
    def suit(model) -> float:
        studio.catalog.check(model)
        return default_guidance(model)

    sources = [fields[name] for name in ("model", "steps", "guidance_scale", "num_images")]
    changes = [page.load, *(component.change for component in sources)]
    gr.on(changes, how_long, sources, shown.estimate, trigger_mode="always_last", **QUIET)
    fields["model"].input(suit, fields["model"], fields["guidance_scale"], **QUIET)


def _connect_results(inputs: Inputs, shown: Shown, results: gr.State, index: gr.State) -> None:
    closer = [index, shown.slider, *shown.downloads]

    @handler
    def look(results, order, event: gr.SelectData) -> list[Any]:
        return [event.index, *kept.details(kept.sort_results(results, order), event.index)]

    @handler
    def reorder(results, order) -> list[Any]:
        ordered = kept.sort_results(results, order)
        return [kept.gallery_of(ordered), 0, *kept.details(ordered, 0)]

    @handler
    def take_seed(results, order, index) -> list[Any]:
        ordered = kept.sort_results(results, order)
        return [ordered[index]["seed"] if 0 <= index < len(ordered) else gr.skip(), False]

    shown.gallery.select(look, [results, shown.order], closer, **QUIET)
    shown.order.input(reorder, [results, shown.order], [shown.gallery, *closer], **QUIET)
    seed = [inputs.fields["seed"], inputs.random_seed]
    inputs.reuse_seed.click(take_seed, [results, shown.order, index], seed, **QUIET)


def _connect_recipe(studio: Studio, inputs: Inputs, shown: Shown, extras: Extras) -> None:
    @handler
    def load(path, photo, depth_file) -> list[Any]:
        """Set every control as a picture's recipe says."""
        read_upload(path, studio.root)
        form, wanted = read_recipe(Path(path))
        studio.catalog.check(form.model, form.controlnet, form.depth_model)
        told = "The recipe is loaded."
        if studio.hashes(photo, depth_file) != wanted:
            told += f" For the very same picture also give the same {' and '.join(wanted) or 'photo'} as then."
        return [*(getattr(form, name) for name in FIELDS), False, told]

    outputs = [*inputs.controls, inputs.random_seed, shown.status]
    extras.recipe_file.upload(load, [extras.recipe_file, *inputs.files], outputs, **QUIET)
