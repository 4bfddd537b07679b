"""The app's work without its page: depth, conditions, pictures. One for each server; it keeps nothing about people."""

import secrets
import shutil
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from PIL import Image, ImageDraw

from depth_control import load_pipeline, to_control
from depth_control.conditioning import resize_map
from depth_control.generation import Picture, estimator_of, make_pictures
from depth_control.words import unknown_words
from depth_model import DepthEstimator, DepthMap
from depth_model.errors import InputError
from ui.catalog import Catalog, default_depth, machine_flops
from ui.failures import log_failure
from ui.forms import Recipe, Sweep, Window
from ui.jobs import acquire, in_background
from ui.uploads import open_depth, open_photo, read_upload, sha256

DEPTH_CACHE = 128 * 2**20
PIPELINES = 2
PREVIEW_SIDE = 512
PREVIEW_SECONDS = 0.4


@dataclass(frozen=True)
class Progress:
    """Where a job is."""

    done: int
    total: int
    seconds_left: float | None
    text: str
    preview: Image.Image | None = None


@dataclass(frozen=True)
class Subject:
    """What pictures are made of: a photo or a depth file, and the depth of it."""

    depth: DepthMap
    photo: Image.Image | None
    inputs: dict[str, str]
    """SHA-256 of the files' bytes, by "photo" and "depth"."""


class Studio:
    """Models and temporary files of one server.

    Pipelines hold state while they draw, so one job draws at a time; depth is estimated beside it.
    """

    def __init__(
        self,
        catalog: Catalog,
        root: Path,
        device: str | None = None,
        dtype: str | None = None,
        job_seconds: float | None = None,
    ) -> None:
        """Make a studio; models are loaded on first use.

        Args:
            catalog: What may be asked for.
            root: Folder of uploads and results; whoever made it removes it.
            device: See `load_pipeline`.
            dtype: See `load_pipeline`.
            job_seconds: Longest that one job may take.
        """
        self.catalog, self.root, self.job_seconds = catalog, root, job_seconds
        self._device, self._dtype = device, dtype
        self._pipelines: OrderedDict[tuple[str, str, str], DiffusionPipeline] = OrderedDict()
        self._estimators: OrderedDict[str, DepthEstimator] = OrderedDict()
        self._depths: OrderedDict[tuple[str, str], DepthMap] = OrderedDict()
        self._drawing, self._estimating, self._remembering = (threading.Lock() for _ in range(3))
        # transformers and diffusers patch torch while they load, for every thread.
        self._loading = threading.Lock()
        self._step_seconds: dict[str, float] = {}

    # ---- depth

    def read(self, photo: str | None, depth_file: str | None, kind: str, depth_model: str) -> Subject:
        """The depth that a depth file holds, or else that of a photo.

        Raises:
            InputError: neither, or a file or model that cannot be used.
        """
        if photo is None and depth_file is None:
            raise InputError("Nothing to work from: give a photo, or a depth map of your own")
        data = None if photo is None else read_upload(photo, self.root)
        opened = None if data is None else open_photo(data)
        inputs = self.hashes(photo, depth_file)
        if depth_file is None:
            return Subject(self.estimate(data, depth_model), opened, inputs)
        values = read_upload(depth_file, self.root)
        key = inputs["depth"], f"file as {kind}"
        depth = self._remember(key, lambda: open_depth(Path(depth_file), values, kind), threading.Lock())
        return Subject(depth, opened, inputs)

    def hashes(self, photo: str | None, depth_file: str | None) -> dict[str, str]:
        """SHA-256 of the uploaded files, as recipes name them."""
        files = {"photo": photo, "depth": depth_file}
        return {name: sha256(read_upload(path, self.root)) for name, path in files.items() if path is not None}

    def estimate(self, data: bytes, depth_model: str) -> DepthMap:
        """The depth of a photo's bytes, kept for a while: sliders ask for it again and again.

        Raises:
            InputError: not a usable image, or a model that cannot be loaded.
        """
        self.catalog.check("", depth=depth_model)
        return self._remember(
            (sha256(data), depth_model), lambda: self._estimator(depth_model)(open_photo(data)), self._estimating
        )

    def control(self, subject: Subject, window: Window, most: int | None = None) -> np.ndarray:
        """The condition, float32 [H, W], near = 1; at most `most` pixels a side."""
        control = to_control(subject.depth, window.near, window.far, window.gamma, window.invert)
        rows, columns = control.shape
        if most is None or max(rows, columns) <= most:
            return control
        scale = most / max(rows, columns)
        return resize_map(control, max(1, round(rows * scale)), max(1, round(columns * scale)))

    def positions(self, subject: Subject) -> np.ndarray:
        """Where each valid pixel lies between nearest (0) and farthest (1), flat; what near and far refer to."""
        nearness = subject.depth.nearness()
        valid = subject.depth.valid
        return 1 - (nearness.ravel() if valid is None else nearness[valid])

    # ---- pictures

    def draw(self, subject: Subject, form: Recipe) -> Iterator[Progress | Picture | None]:
        """Draw a form's pictures: progress, and each picture when it is made. Closing it ends within a step.

        Raises:
            InputError: see `load_pipeline` and `Settings`; or the limit of time.
        """
        self._check(form)
        return in_background(lambda report: self._draw(subject, form, report), self.job_seconds)

    def sweep(self, subject: Subject, form: Recipe, sweep: Sweep) -> Iterator[Progress | Image.Image | None]:
        """Draw one picture for each strength and end step, from one seed: progress, then the labelled grid."""
        strengths, ends = sweep.values()
        self._check(form)

        def work(report: Callable[[Any], None]) -> None:
            rows: list[list[Picture]] = []
            for strength in strengths:
                rows.append([])
                for end in ends:
                    start = min(form.control_start, end / 2)
                    cell = form.model_copy(
                        update={"control_scale": strength, "control_start": start, "control_end": end, "num_images": 1}
                    )
                    before = len(ends) * (len(rows) - 1) + len(rows[-1])
                    rows[-1] += self._draw(subject, cell, report, (before, len(strengths) * len(ends)), show=False)
            report(draw_grid(rows, strengths, ends))

        return in_background(work, self.job_seconds)

    def seconds_for(self, form: Recipe) -> tuple[float, bool] | None:
        """How long a form's pictures take here, and whether that was measured; None where nothing is known."""
        evaluations = form.num_images * form.steps * (2 if form.guidance_scale > 1 else 1)
        if form.model in self._step_seconds:
            return evaluations * self._step_seconds[form.model], True
        teraflops = self.catalog.teraflops(form.model)
        return None if teraflops is None else (evaluations * teraflops * 1e12 / machine_flops(), False)

    def warm_up(self) -> None:
        """Load the packaged models and draw a little, so that the first visitor need not wait for it.

        Twice, since the first steps of a network are slower than all that follow, by which estimates of time go.
        """
        subject = Subject(DepthMap(np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64), "disparity"), None, {})
        try:
            for _ in range(2):
                deque(self.draw(subject, Recipe(prompt="red clay", steps=2)), maxlen=0)
            with self._estimating:
                self._estimator("embedded")
        except Exception as error:
            log_failure(error)  # the first visitor will be told

    def folder(self) -> Path:
        """A new folder for results, with a name that nobody can guess."""
        folder = self.root / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder

    def free_bytes(self) -> int:
        """Free storage where results go."""
        return shutil.disk_usage(self.root).free

    def unknown(self, form: Recipe) -> list[str]:
        """Words of the prompts that the model, once loaded, does not know."""
        pipe = self._pipelines.get(_key(form))
        return unknown_words(pipe.tokenizer, [form.prompt, form.negative_prompt]) if pipe is not None else []

    def _check(self, form: Recipe) -> None:
        if not form.prompt.strip():
            raise InputError("The prompt is empty: say what the pictures should show")
        self.catalog.check(form.model, form.controlnet, form.depth_model)
        form.settings()

    def _draw(
        self,
        subject: Subject,
        form: Recipe,
        report: Callable[[Any], None],
        place: tuple[int, int] = (0, 1),
        show: bool = True,
    ) -> list[Picture]:
        """Draw under the lock; `place` is this form's among several equal ones."""
        acquire(self._drawing, report)
        made = []
        try:
            pipe = self._pipeline(form, report)
            judge = estimator_of(pipe)
            steps = form.steps * form.num_images
            total, begun, shown = steps * place[1], time.monotonic(), 0.0

            def on_step(pipe: DiffusionPipeline, step: int, timestep: Any, tensors: dict) -> dict:
                nonlocal shown
                done = len(made) * form.steps + min(step + 1, form.steps)
                rate = (time.monotonic() - begun) / done
                preview = None
                if show and time.monotonic() - shown > PREVIEW_SECONDS:
                    preview, shown = preview_of(pipe, tensors["latents"]), time.monotonic()
                done += place[0] * steps
                text = f"picture {done // form.steps + (done % form.steps > 0)} of {total // form.steps}"
                report(Progress(done, total, rate * (total - done), text, preview))
                return tensors

            for picture in make_pictures(pipe, judge, subject.depth, [form.prompt], form.settings(), on_step):
                made.append(picture)
                evaluations = form.steps * (2 if form.guidance_scale > 1 else 1)
                self._step_seconds[form.model] = picture.seconds / evaluations
                report(picture if show else None)
        finally:
            self._drawing.release()
        return made

    def _pipeline(self, form: Recipe, report: Callable[[Any], None]) -> DiffusionPipeline:
        """The loaded pipeline; the one unused for longest makes room. Called under the drawing lock."""
        key = _key(form)
        if key not in self._pipelines:
            report(Progress(0, 1, None, "loading the models (the first time they may be downloaded)"))
            acquire(self._loading, report)
            try:
                pipe = load_pipeline(form.model, key[1] or None, key[2] or None, self._device, self._dtype)
            finally:
                self._loading.release()
            pipe.set_progress_bar_config(disable=True)
            while len(self._pipelines) >= PIPELINES:
                self._pipelines.popitem(last=False)
            self._pipelines[key] = pipe
        self._pipelines.move_to_end(key)
        return self._pipelines[key]

    def _estimator(self, name: str) -> DepthEstimator:
        if name not in self._estimators:
            with self._loading:
                estimator = DepthEstimator.from_pretrained(name, self._device, self._dtype)
            while len(self._estimators) >= PIPELINES:
                self._estimators.popitem(last=False)
            self._estimators[name] = estimator
        return self._estimators[name]

    def _remember(self, key: tuple[str, str], make: Callable[[], DepthMap], lock: threading.Lock) -> DepthMap:
        depth = self._depths.get(key)
        if depth is None:
            with lock:
                depth = self._depths.get(key) or make()
            with self._remembering:
                self._depths[key] = depth
                while len(self._depths) > 1 and sum(d.values.nbytes for d in self._depths.values()) > DEPTH_CACHE:
                    self._depths.popitem(last=False)
        return depth


def _key(form: Recipe) -> tuple[str, str, str]:
    return form.model, form.controlnet, form.depth_model


def depth_model_of(image_model: str, depth_model: str) -> str:
    """The depth model chosen, or else the one that the image model brings."""
    return depth_model or default_depth(image_model)


@torch.no_grad()
def preview_of(pipe: DiffusionPipeline, latents: torch.Tensor) -> Image.Image:
    """A quick look at unfinished latents; with a large autoencoder at a quarter of the size."""
    if not isinstance(pipe.vae, AutoencoderTiny):
        latents = torch.nn.functional.interpolate(latents, scale_factor=0.25, mode="area")
    decoded = pipe.vae.decode(latents[:1].to(pipe.vae.dtype) / pipe.vae.config.scaling_factor, return_dict=False)[0]
    return pipe.image_processor.postprocess(decoded.float(), output_type="pil")[0]


def draw_grid(rows: list[list[Picture]], strengths: list[float], ends: list[float]) -> Image.Image:
    """Pictures of a sweep, strengths downwards, end steps to the right, each with its structure."""
    width, height = rows[0][0].image.size
    left, top = 92, 18
    grid = Image.new("RGB", (left + len(ends) * width, len(strengths) * (top + height)), "white")
    pen = ImageDraw.Draw(grid)
    for i, (strength, row) in enumerate(zip(strengths, rows, strict=True)):
        pen.text((4, i * (top + height) + top + 4), f"strength {strength:g}", "black")
        for j, (end, picture) in enumerate(zip(ends, row, strict=True)):
            corner = left + j * width, i * (top + height)
            text = f"until {end:.0%}, structure {picture.fidelity['structure']:.2f}"
            pen.text((corner[0] + 3, corner[1] + 3), text, "black")
            grid.paste(picture.image, (corner[0], corner[1] + top))
    return grid
