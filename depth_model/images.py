"""The one door for pictures from outside: checked before they are decoded, upright, and in known modes."""

import io
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from depth_model.errors import InputError

MAX_PIXELS = 100_000_000
"""Larger images are refused from their header, before anything is decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
"""Pillow sniffs the content and has over forty parsers; only these are ever reached."""

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"))

# Neither a black nor a white cut-out disappears on it, and to the network it is close to zero input.
_BEHIND_ALPHA = (128, 128, 128, 255)

ImageSource = str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray


def open_image(source: ImageSource) -> Image.Image:
    """Open a picture as 8-bit RGB.

    EXIF orientation is applied once, transparent parts are laid over mid grey, 16-bit grey is scaled, and of an
    animation the first frame is taken.

    Args:
        source: a path, encoded bytes, a binary file, a PIL image, or an array (uint8 [H, W], [H, W, 3] RGB or [H, W, 4]
            RGBA; uint16 [H, W]).

    Raises:
        InputError: missing, not an image, damaged, too large, or of a mode without a defined white.
    """
    name = _name(source)
    image = _decode(_from_array(source) if isinstance(source, np.ndarray) else source, name)
    try:
        if image.mode.startswith("I"):
            image = Image.fromarray(
                ((_sixteen_bit(image, name).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
            )
        elif image.mode == "F":
            raise InputError(
                f"{name}: a floating-point image has no defined white; save it as 8 or 16 bits per channel"
            )
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, _BEHIND_ALPHA), image)
        return image.convert("RGB")
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: colour mode {image.mode} is not supported; save the image as RGB") from None


def read_size(data: bytes) -> tuple[int, int, str]:
    """Width, height and format of an encoded picture from its header, nothing decoded, as stored (EXIF not applied).

    Raises:
        InputError: as `open_image`, but for damage behind the header.
    """
    return _decode(data, "image", lambda image: (*image.size, image.format))


def open_grey(data: bytes, least: int) -> Image.Image:
    """An encoded picture as 8-bit grey, upright; all of it is decoded, so that damage is found.

    A JPEG comes at 1/2, 1/4 or 1/8 of its size where both sides keep `least` pixels, which takes less time and memory.

    Raises:
        InputError: as `open_image`.
    """

    def load(image: Image.Image) -> Image.Image:
        image.draft("L", (least, least))
        image = _load(image, "image")
        return image if image.mode == "L" else open_image(image).convert("L")

    return _decode(data, "image", load)


def read_grey16(source: ImageSource) -> tuple[np.ndarray, int]:
    """Read a depth picture without losing its precision.

    Returns:
        The stored numbers as float32 [H, W], and how many bits each had: 8, 16, or 32 for a floating-point TIFF.

    Raises:
        InputError: as `open_image`, or a picture in colour.
    """
    name = _name(source)
    image = _decode(_from_array(source) if isinstance(source, np.ndarray) else source, name)
    if image.mode.startswith("I"):
        return _sixteen_bit(image, name).astype(np.float32), 16
    if image.mode == "F":
        return np.array(image, dtype=np.float32), 32
    if image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"), dtype=np.float32), 8
    rgb = np.asarray(image.convert("RGB"))
    if not (rgb == rgb[..., :1]).all():
        raise InputError(f"{name}: a depth image must be grey, this one is in colour")
    return rgb[..., 0].astype(np.float32), 8


def list_images(folder: str | os.PathLike) -> list[Path]:
    """List the image files directly in a folder, sorted by name; hidden files are left out.

    Raises:
        InputError: not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return sorted(p for p in files if p.is_file())


def _decode(
    source: str | os.PathLike | bytes | BinaryIO | Image.Image, name: str, load: Callable | None = None
) -> Image.Image:
    """What `load` makes of the opened image, the whole picture by default; every failure is an InputError."""
    load = load or partial(_load, name=name)
    if isinstance(source, Image.Image):
        return load(source)
    try:
        # Pillow warns from 89 megapixels on, and of damaged metadata; our own checks say what matters in one line.
        with warnings.catch_warnings(action="ignore"):
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                return load(image)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{name}: a folder, where an image file was expected") from None
    except PermissionError:
        raise InputError(f"{name}: no permission to read it") from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: not an image that can be read ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise InputError(f"{name}: more than {MAX_PIXELS // 10**6} megapixels; make it smaller first") from None
    except Exception as error:
        # Pillow's parsers meet damaged files with almost every exception type there is.
        raise InputError(f"{name}: damaged header ({_first_line(error)})") from None


def _load(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name}: {width} x {height} pixels are more than {MAX_PIXELS // 10**6} megapixels; make it smaller first"
        )
    if not width or not height:
        raise InputError(f"{name}: the image is empty ({width} x {height} pixels)")
    try:
        image.load()
    except Exception as error:
        raise InputError(f"{name}: damaged or incomplete image ({_first_line(error)})") from None
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Damaged metadata says nothing about the pixels, which were read.
        return image.copy()


def _sixteen_bit(image: Image.Image, name: str) -> np.ndarray:
    values = np.asarray(image)
    # Pillow holds some 16-bit files as 32-bit integers; those of real 32-bit files have no defined white.
    if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > 65535):
        raise InputError(f"{name}: a 32-bit integer image has no defined white; save it as 8 or 16 bits per channel")
    return values.astype(np.uint16)


def _from_array(array: np.ndarray) -> Image.Image:
    colour = array.ndim == 3 and array.shape[2] in (3, 4)
    if array.size and (
        (array.dtype == np.uint8 and (array.ndim == 2 or colour)) or (array.dtype == np.uint16 and array.ndim == 2)
    ):
        return Image.fromarray(np.ascontiguousarray(array))
    raise InputError(
        f"image array: {array.dtype} {list(array.shape)} is not uint8 [H, W], [H, W, 3], [H, W, 4] or uint16 [H, W]; "
        "multiply values in 0..1 by 255 and convert them to uint8"
    )


def _name(source: ImageSource) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or "image"
    if isinstance(source, bytes | np.ndarray) or hasattr(source, "read"):
        return str(getattr(source, "name", "image"))
    raise InputError(f"image: {type(source).__name__} is not a path, bytes, a binary file, a PIL image or an array")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
