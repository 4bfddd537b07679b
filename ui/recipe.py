"""The recipe of a picture: everything that made it, in the picture file itself."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from depth_model.errors import InputError
from ui.forms import Recipe, checked
from ui.uploads import check_size

KEY = "depth-control-recipe"
VERSION = 1
LARGEST = 64 * 1024


def save_with_recipe(image: Image.Image, path: Path, recipe: dict[str, Any]) -> None:
    """Write a PNG with its recipe as one text chunk. The same picture and recipe give the same bytes."""
    text = PngInfo()
    text.add_text(KEY, json.dumps(recipe, sort_keys=True))
    image.save(path, format="PNG", pnginfo=text)


def make_recipe(form: Recipe, number: int, inputs: dict[str, str], fidelity: dict[str, float]) -> dict[str, Any]:
    """The recipe of one picture.

    Args:
        form: The controls.
        number: Which of the form's pictures it is, from 0; its seed is the form's plus this.
        inputs: SHA-256 of the photo's or the depth file's bytes, by "photo" or "depth".
        fidelity: As measured.
    """
    return {
        "version": VERSION,
        "controls": form.model_dump(),
        "picture": number,
        "inputs": inputs,
        "fidelity": {name: round(value, 4) for name, value in fidelity.items()},
    }


def read_recipe(path: Path) -> tuple[Recipe, dict[str, str]]:
    """Read the controls and the inputs' hashes from a picture of the app, or from its recipe as `.json`.

    Raises:
        InputError: neither, damaged, or with controls out of range.
    """
    try:
        if path.suffix.lower() == ".json":
            text = path.read_text(encoding="utf-8") if path.stat().st_size <= LARGEST else None
        else:
            with Image.open(path, formats=("PNG",)) as image:
                check_size(*image.size)
                image.load()  # text may stand behind the pixels
                text = image.text.get(KEY)
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        raise InputError(f"{path.name}: neither a PNG picture nor a .json recipe, or damaged") from None
    if text is None or len(text) > LARGEST:
        raise InputError(f"{path.name}: holds no recipe; give a picture that was downloaded here, not edited since")
    try:
        recipe = json.loads(text)
        controls, inputs = recipe["controls"], recipe.get("inputs", {})
        if recipe["version"] != VERSION or not isinstance(controls, dict) or not isinstance(inputs, dict):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(f"{path.name}: its recipe is damaged or of another version") from None
    return checked(Recipe, **{str(key): value for key, value in controls.items()}), inputs
