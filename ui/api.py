"""Endpoints for programs: the same work as the tabs, with plain answers."""

import secrets
from collections.abc import Iterator
from typing import Any

import gradio as gr

from depth_control.generation import Picture
from ui.depth_tab import save_depth_map
from ui.forms import MAX_SEED
from ui.generate_layout import Inputs
from ui.handlers import form_of, handler, takes_controls
from ui.results import report_of, save_depth, save_picture
from ui.studio import Progress, Studio, depth_model_of
from ui.uploads import open_photo, read_upload


def build(studio: Studio, inputs: Inputs) -> None:
    """Add the endpoints `/generate` and `/estimate`. Called inside `gr.Blocks`; nothing of it is seen."""
    with gr.Group(visible=False):
        trigger = gr.Button()
        report, files = gr.JSON(label="report"), gr.File(file_count="multiple", label="files")
        depth_model = gr.Textbox("embedded", label="Depth model")

    @handler
    @takes_controls
    def generate(photo=None, depth_file=None, new_seed=False, *values) -> Iterator[list[Any]]:
        """Draw pictures that keep the geometry of a photo, or of a depth map of your own.

        Answers while it draws with its progress; the last answer holds, for each picture, file, seed and fidelity, and
        the files: pictures with their recipes inside, then depth as 16-bit PNG, npz and GLB.
        """
        form = form_of(values)
        if new_seed:
            form = form.model_copy(update={"seed": secrets.randbelow(MAX_SEED)})
        subject = studio.read(photo, depth_file, form.depth_kind, depth_model_of(form.model, form.depth_model))
        folder, made = studio.folder(), []
        for update in studio.draw(subject, form):
            if isinstance(update, Picture):
                made.append(save_picture(update, len(made), form, subject, folder))
            elif isinstance(update, Progress):
                left = update.seconds_left
                yield [{"done": update.done, "total": update.total, "seconds_left": left}, None]
            else:
                yield [gr.skip(), None]
        yield [report_of(made), [result["path"] for result in made] + save_depth(subject, folder)]

    @handler
    def estimate(photo, depth_model="embedded") -> list[Any]:
        """Estimate the depth of a photo; answers with its kind and size, and 16-bit PNG, npz and GLB."""
        data = read_upload(photo, studio.root)
        depth = studio.estimate(data, depth_model)
        saved = save_depth_map(depth, open_photo(data), studio.folder(), "depth")
        rows, columns = depth.values.shape
        told = {"kind": depth.kind, "width": columns, "height": rows, "model": depth_model}
        return [told, [saved["png"], saved["npz"], saved["glb"]]]

    drawing = {"concurrency_id": "draw", "concurrency_limit": 1}
    trigger.click(
        generate, [*inputs.files, inputs.random_seed, *inputs.controls], [report, files], api_name="generate", **drawing
    )
    trigger.click(
        estimate,
        [inputs.photo, depth_model],
        [report, files],
        api_name="estimate",
        concurrency_id="depth",
        concurrency_limit=2,
    )
