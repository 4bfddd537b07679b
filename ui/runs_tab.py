"""The Runs tab: what training runs have written so far. It starts nothing."""

import json
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from depth_model.errors import InputError
from depth_model.images import open_image
from ui.handlers import QUIET, handler

LAST_LINES = 20
MOST_PICTURES = 24
MOST_RUNS = 500
LONGEST_LOG = 4 * 2**20
PICTURE_SIDE = 2048
_DEEPEST = 3


def find_runs(folder: Path) -> list[str]:
    """Run folders (a resolved `config.yaml` beside a `log.jsonl`) up to three levels down, newest first."""
    logs = [log for depth in range(1, _DEEPEST + 1) for log in folder.glob("*/" * depth + "log.jsonl")]
    runs = [log for log in logs if (log.parent / "config.yaml").is_file()]
    runs.sort(key=lambda log: log.stat().st_mtime, reverse=True)
    return [str(log.parent.relative_to(folder)) for log in runs[:MOST_RUNS]]


def build(folder: Path, tab: gr.Tab) -> None:
    """Lay out the tab and connect it. Called inside `gr.Blocks`; the list is read when the tab is opened."""
    gr.Markdown(
        "Curves, fixed-image grids and validation strips of the depth and ControlNet trainers. "
        "Nothing is started from here; the folder is the one of `--runs-dir`."
    )
    with gr.Row():
        choice = gr.Dropdown([], label="Run", scale=4)
        refresh = gr.Button("Refresh", scale=1)
    told = gr.Markdown("", elem_classes="status")
    pictures = gr.Gallery(
        label="Pictures of the run", columns=2, object_fit="contain", height="auto", format="png", interactive=False
    )
    table = gr.Dataframe(label=f"Last {LAST_LINES} lines of the log", interactive=False, wrap=True)
    with gr.Accordion("Configuration", open=False):
        config = gr.Code(language="yaml", label="config.yaml", interactive=False)

    @handler
    def listed() -> list[Any]:
        names = find_runs(folder)
        if not names:
            return [gr.update(choices=[], value=None), "No runs yet."]
        return [gr.update(choices=names, value=names[0]), f"{len(names)} run{'s' * (len(names) != 1)}."]

    @handler
    def opened(name) -> list[Any]:
        """What a run has written: a line on its state, pictures, the end of its log, its configuration."""
        if not name:
            return ["", [], None, ""]
        if name not in find_runs(folder):
            raise InputError(f"{str(name)[:80]!r} is not a run of this folder")
        run = folder / name
        rows = read_log(run / "log.jsonl")
        return [describe(rows), read_pictures(run), as_table(rows[-LAST_LINES:]), (run / "config.yaml").read_text()]

    gr.on([refresh.click, tab.select], listed, outputs=[choice, told], **QUIET)
    choice.change(opened, choice, [told, pictures, table, config], api_visibility="private", concurrency_id="depth")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines log, of a long one its end; a line that is being written is left out."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - LONGEST_LOG))
        lines = file.read().decode("utf-8", "replace").splitlines()
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def describe(rows: list[dict[str, Any]]) -> str:
    """One line on where the run is."""
    if not rows:
        return "The log is empty so far."
    last = {key: value for key, value in rows[-1].items() if isinstance(value, int | float)}
    return "Last line: " + ", ".join(f"{key} {value:.5g}" for key, value in list(last.items())[:8])


def as_table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows as a table with a column for each key, newest first."""
    headers = list(dict.fromkeys(key for row in rows for key in row))
    data = [[_cell(row.get(key)) for key in headers] for row in reversed(rows)]
    return {"headers": headers, "data": data}


def read_pictures(run: Path) -> list[tuple[Image.Image, str]]:
    """The run's PNG files outside its checkpoints, curves first, newest next, with their names."""
    files = [file for pattern in ("*.png", "*/*.png") for file in run.glob(pattern) if "checkpoints" not in file.parts]
    files.sort(key=lambda file: (file.name != "curves.png", -file.stat().st_mtime))
    shown = []
    for file in files[:MOST_PICTURES]:
        try:
            picture = open_image(file)
        except InputError:
            continue  # being written
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        shown.append((picture, str(file.relative_to(run))))
    return shown


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return json.dumps(value) if isinstance(value, dict | list) else value
