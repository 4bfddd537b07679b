"""The page: three tabs, in plain language, with nothing from another server."""

from pathlib import Path

import gradio as gr

import depth_control
from ui import api, depth_tab, generate_tab, runs_tab
from ui.generate_layout import EXAMPLE
from ui.studio import Studio
from ui.view import HOW_IT_WORKS

TITLE = "depth-control"
QUEUE = 64
SESSIONS = 256
STYLE = Path(__file__).parent / "style.css"
# Names of fonts that are on the visitor's machine; Gradio's own default would be fetched from elsewhere.
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """Calm greys, one blue, for light and dark."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=FONT,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_md,
    )


def build_app(studio: Studio, runs: Path | None) -> gr.Blocks:
    """The whole page.

    Args:
        studio: Does the work.
        runs: Folder of training runs; without one there is no Runs tab.
    """
    photo = Path(depth_control.__file__).parent / EXAMPLE
    examples = [str(photo)] if photo.is_file() else []
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=False) as page:
        gr.Markdown(f"# {TITLE}\nPictures with the geometry of your photo, and a number for how well each keeps it.")
        with gr.Accordion("How depth control works", open=False):
            gr.Markdown(HOW_IT_WORKS)
        with gr.Tab("Generate", id="generate"):
            inputs = generate_tab.build(studio, page, examples)
        with gr.Tab("Depth", id="depth"):
            depth_tab.build(studio, examples)
        if runs is not None:
            with gr.Tab("Runs", id="runs") as tab:
                runs_tab.build(runs, tab)
        api.build(studio, inputs)
    page.queue(max_size=QUEUE, default_concurrency_limit=2, api_open=False)
    return page
