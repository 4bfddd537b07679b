"""Long work in a thread that its caller can watch and stop."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

import gradio as gr
import torch

from depth_model.errors import InputError
from ui.failures import log_failure
from ui.forms import told

BEAT = 0.2
"""Seconds between two signs of life, at most."""


class Stopped(Exception):
    """Raised inside work whose caller has gone."""


def in_background(work: Callable[[Callable[[Any], None]], None], limit: float | None = None) -> Iterator[Any]:
    """Run `work(report)` in a thread and pass on what it reports; None now and then while it reports nothing.

    Gradio stops a generator only between two values. Closing this one makes the next `report` inside the work raise
    `Stopped`, so work that reports each denoising step ends within a step. Nothing is shared between two jobs.

    Args:
        work: Gets `report`, which takes a value for the caller, or None as a mere sign of life.
        limit: Seconds after which the job is stopped.

    Raises:
        InputError: the limit is reached. Whatever `work` raises is raised here.
    """
    updates: SimpleQueue = SimpleQueue()
    stop = threading.Event()

    def report(update: Any) -> None:
        if stop.is_set():
            raise Stopped
        if update is not None:
            updates.put((update, None))

    def run() -> None:
        try:
            work(report)
            updates.put((None, StopIteration()))
        except Stopped:
            pass
        except BaseException as error:
            updates.put((None, error))

    start = time.monotonic()
    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            try:
                update, end = updates.get(timeout=BEAT)
            except Empty:
                update, end = None, None
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            if limit is not None and time.monotonic() - start > limit:
                raise InputError(f"stopped after {limit:.0f} s, the longest that one job may take here: ask for less")
            yield update
    finally:
        stop.set()


def acquire(lock: threading.Lock, report: Callable[[Any], None]) -> None:
    """Wait for a lock, but not longer than the caller of `in_background` does."""
    while not lock.acquire(timeout=BEAT / 2):
        report(None)


def explain(error: Exception) -> gr.Error:
    """What a person is told about a failure; what only helps developers goes to the log under a number."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, InputError):
        return told(error)
    number = log_failure(error)
    if isinstance(error, OSError) and error.errno == 28:
        message = "The server's storage is full. Try again in a minute; old pictures are being cleared."
    elif isinstance(error, torch.OutOfMemoryError | MemoryError):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        message = "Not enough memory for this. Try fewer pictures or a smaller model."
    else:
        message = "This failed on the server's side. What you made before is safe."
    return gr.Error(f"{message} (reference {number})", title="Failed", print_exception=False, duration=None)
