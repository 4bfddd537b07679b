"""What stands around every function that the page calls."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ui.jobs import explain


def handler(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn every failure into a message for a person; see `ui.jobs.explain`.

    Works on functions and on generators, and keeps their signature, which Gradio reads.
    """
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*args: Any) -> Iterator[Any]:
            try:
                yield from function(*args)
            except Exception as error:
                raise explain(error) from None

        return generate

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            raise explain(error) from None

    return call
