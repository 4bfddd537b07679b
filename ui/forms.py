"""What the app may be asked, checked once more behind Gradio: its own bounds let NaN and long texts pass."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import gradio as gr
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from depth_control.settings import Settings
from depth_model.errors import InputError

MAX_PROMPT = 2000
MAX_STEPS = 100
MAX_PICTURES = 4
MAX_SEED = 2**32 - 1
MAX_CELLS = 16


def _printable(text: str) -> str:
    """The text without control characters and lone surrogates, which no tokenizer or PNG can hold."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", " ", text)


Text = Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_printable)]
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]


class Form(BaseModel):
    """Base of the forms: unknown fields and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Window(Form):
    """How depth becomes the condition; see `to_control`."""

    near: Real = Field(0.0, ge=0, le=1)
    far: Real = Field(1.0, ge=0, le=1)
    gamma: Real = Field(1.0, ge=0.1, le=5)
    invert: Switch = False

    @model_validator(mode="after")
    def _ordered(self) -> "Window":
        if self.near >= self.far:
            raise ValueError(f"the near handle ({self.near}) must be left of the far handle ({self.far})")
        return self


class Recipe(Window):
    """Every control of the Generate tab but the files."""

    prompt: Text = ""
    negative_prompt: Text = ""
    model: str = Field("embedded", max_length=300)
    controlnet: str = Field("", max_length=300)
    depth_model: str = Field("", max_length=300)
    steps: Whole = Field(20, ge=1, le=MAX_STEPS)
    guidance_scale: Real = Field(1.0, ge=0, le=30)
    control_scale: Real = Field(1.0, ge=0, le=2)
    control_start: Real = Field(0.0, ge=0, le=1)
    control_end: Real = Field(1.0, ge=0, le=1)
    num_images: Whole = Field(1, ge=1, le=MAX_PICTURES)
    seed: Whole = Field(0, ge=0, le=MAX_SEED)
    depth_kind: Literal["stated", "disparity", "far_bright", "metric"] = "stated"

    def settings(self, **changes: Any) -> Settings:
        """The same as `depth_control.settings.Settings`, with `changes`."""
        names = set(Settings.__dataclass_fields__) - {"depth_kind", "controlnet", "depth_model"}
        values = {name: value for name, value in self.model_dump().items() if name in names}
        return Settings(
            **(values | {"controlnet": self.controlnet or None, "depth_model": self.depth_model or None} | changes)
        )


class Sweep(Form):
    """Strengths by end steps."""

    strengths: Annotated[str, Field(max_length=100)] = "0.5, 1, 1.5"
    ends: Annotated[str, Field(max_length=100)] = "0.5, 1"

    def values(self) -> tuple[list[float], list[float]]:
        """Both lists as numbers.

        Raises:
            InputError: not numbers, out of range, or too many cells.
        """
        strengths = _numbers(self.strengths, "strengths", 0.0, 2.0)
        ends = _numbers(self.ends, "end steps", 0.01, 1.0)
        if len(strengths) * len(ends) > MAX_CELLS:
            raise InputError(f"strengths x end steps are {len(strengths) * len(ends)} pictures; at most {MAX_CELLS}")
        return strengths, ends


def _numbers(text: str, name: str, low: float, high: float) -> list[float]:
    try:
        values = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or not all(low <= value <= high for value in values):
        raise InputError(f"{name}: give numbers from {low:g} to {high:g} with commas between them")
    return values


def checked(form: type[Form], **values: Any) -> Any:
    """Fill a form.

    Raises:
        InputError: names the first field that does not fit, in the words of the page.
    """
    try:
        return form(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]).replace("_", " ") if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{field}: {message}" if field else message) from None


def in_page_words(message: str) -> str:
    """A message of the command line as the page would say it: without flags."""
    return re.sub(r"(?<![\w-])--([a-z][a-z-]+)", lambda match: match[1].replace("-", " "), message)


def told(error: InputError) -> gr.Error:
    """An `InputError` as the page shows it."""
    return gr.Error(in_page_words(str(error)), title="That did not work", print_exception=False, duration=None)


Handler = Callable[..., Any]
