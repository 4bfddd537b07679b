"""How far a long command is: a bar on a terminal, now and then a line in a log; always on stderr."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def step_reporter(unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """Give a function `report(done, total, text)` that shows how far the work is, from its first call on."""
    bar, start = None, time.monotonic()
    last = start

    def show_bar(done: int, total: int, text: str) -> None:
        nonlocal bar
        from tqdm import tqdm

        bar = bar or tqdm(total=total, unit=f" {unit}")
        bar.set_description(text, refresh=False)
        bar.update(done - bar.n)

    def print_line(done: int, total: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES and done < total:
            last = now
            print(f"{text}{': ' * bool(text)}{done}/{total} {unit}, {now - start:.0f} s", file=sys.stderr, flush=True)

    try:
        yield show_bar if sys.stderr.isatty() else print_line
    finally:
        if bar is not None:
            bar.close()


def progress(work: Iterable[T], total: int, unit: str) -> Iterator[T]:
    """Pass `work` through and show how much of it is done."""
    with step_reporter(unit) as report:
        for done, item in enumerate(work, start=1):
            yield item
            report(done, total, "")
