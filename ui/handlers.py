"""What stands around every function that the page calls."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ui.forms import Recipe, checked
from ui.jobs import explain

FIELDS = tuple(Recipe.model_fields)
"""The order in which handlers get the controls of the Generate tab."""

# In the queue, since Gradio shows the reason of a failure only there.
QUIET = {"concurrency_id": "quick", "concurrency_limit": 8, "api_visibility": "private", "show_progress": "hidden"}


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


def takes_controls(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give the function's `*values` the form's names and defaults, which become the parameters of the API."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    defaults = Recipe().model_dump()
    named = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=defaults[name]) for name in FIELDS
    ]
    function.__signature__ = inspect.Signature([*own, *named])
    return function


def form_of(values: tuple[Any, ...]) -> Recipe:
    """The checked form of a handler's values, in the order of `FIELDS`."""
    return checked(Recipe, **dict(zip(FIELDS, values, strict=True)))
