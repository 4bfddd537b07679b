"""Files from people: found in the upload folder only, looked at before they are decoded, within the app's limits."""

import hashlib
import zipfile
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from depth_model import DepthMap
from depth_model.errors import InputError
from depth_model.images import open_image, read_grey16, read_size

MAX_FILE = 20 * 1024 * 1024
MAX_PIXELS = 25_000_000
MAX_SIDE = 8192
KINDS = {
    "stated": "What the file says; bright = near where it says nothing",
    "disparity": "Bright = near",
    "far_bright": "Bright = far",
    "metric": "Distances: metres, or millimetres in a 16-bit picture",
}
"""Kinds of an uploaded depth file, with the words of the page."""


def unread(component: gr.components.Component) -> gr.components.Component:
    """Let a component hand on what came in as it came: the path of a file, or a plain value.

    Gradio's photo field would decode the file, with any of Pillow's parsers, before a limit of ours could be applied,
    and its number field makes 1 of `true`. A subclass would make Gradio write a stub file beside this one.
    """
    component.preprocess = lambda payload: getattr(payload, "path", payload)
    return component


def photo_upload(label: str, elem_id: str) -> gr.components.Component:
    """A field for a photo, by upload, webcam or clipboard; handlers get the path of the file as it came."""
    sources = ["upload", "webcam", "clipboard"]
    return unread(
        gr.Image(
            label=label, type="filepath", image_mode=None, sources=sources, height=280, buttons=[], elem_id=elem_id
        )
    )


def check_size(width: int, height: int) -> None:
    """Refuse a picture from its header.

    Raises:
        InputError: too many pixels, or a side that is too long.
    """
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(
            f"Image too large: {width} x {height}, the limit is {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE} a side"
        )


def read_upload(path: str | Path, root: Path) -> bytes:
    """The bytes of an uploaded file.

    Raises:
        InputError: not in the folder of uploads, gone, or too large.
    """
    path = Path(path)
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError("this file was not uploaded here")
    if not path.is_file():
        raise InputError(f"{path.name}: uploaded too long ago; upload it again")
    if path.stat().st_size > MAX_FILE:
        raise InputError(f"{path.name}: larger than {MAX_FILE // 2**20} MB")
    return path.read_bytes()


def open_photo(data: bytes) -> Image.Image:
    """An uploaded photo, upright RGB.

    Raises:
        InputError: unsupported, damaged or too large.
    """
    try:
        width, height, _ = read_size(data)
        check_size(width, height)
        return open_image(data)
    except InputError as error:
        if "too large" in str(error):
            raise
        raise InputError(f"Unsupported or damaged image ({error})") from None


def open_depth(path: Path, data: bytes, kind: str) -> DepthMap:
    """An uploaded depth file at its full precision.

    Args:
        path: The file. data: Its bytes. kind: A key of `KINDS`.

    Raises:
        InputError: unsupported, damaged, too large, or of another kind than its own text says.
    """
    if path.suffix.lower() == ".npz":
        _check_npz(path)
    elif path.suffix.lower() != ".npy":
        width, height, _ = read_size(data)
        check_size(width, height)
    try:
        depth = DepthMap.load(path, None if kind in ("stated", "far_bright") else kind)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from None
    check_size(*reversed(depth.values.shape))
    if depth.valid is not None and not depth.valid.any():
        raise InputError(f"{path.name}: holds no valid pixel")
    if kind != "far_bright":
        return depth
    if depth.kind == "metric":
        raise InputError(f"{path.name}: says that it holds metres, which are larger the farther: choose 'stated'")
    return DepthMap(depth.values.max() - depth.values, "disparity", depth.valid)


def describe_depth(path: Path, data: bytes, depth: DepthMap, kind: str) -> tuple[str, bool]:
    """What a person should know about an uploaded depth file, and whether near and far look swapped.

    Most photos have their ground below and their background above, so a map whose lower third is farther than its
    upper third is probably read the wrong way round.
    """
    rows = depth.values.shape[0]
    near = depth.nearness()
    swapped = rows >= 6 and float(near[-rows // 3 :].mean()) + 0.1 < float(near[: rows // 3].mean())
    parts = [f"{depth.values.shape[1]} x {rows}, {_precision(path, data)}"]
    stated = kind == "stated" and _says_its_kind(path)
    parts.append(f"{'the file says' if stated else 'read as'} {_KIND_WORDS[depth.kind]}")
    if kind == "stated" and not stated:
        parts.append("the file does not say so: choose below if that is wrong")
    if swapped and not stated:
        parts.append("**near and far look swapped**, since what is below seems farther than what is above")
    return "; ".join(parts) + ".", swapped and not stated


def sha256(data: bytes) -> str:
    """Hex digest, by which recipes and caches know a file."""
    return hashlib.sha256(data).hexdigest()


_KIND_WORDS = {"disparity": "bright = near, no unit", "metric": "metres"}


def _says_its_kind(path: Path) -> bool:
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(path) as archive:
            return "kind.npy" in archive.namelist()
    if path.suffix.lower() == ".npy":
        return False
    with Image.open(path) as image:
        return "depth-control" in image.info


def _precision(path: Path, data: bytes) -> str:
    if path.suffix.lower() in (".npz", ".npy"):
        return "floating point"
    values, bits = read_grey16(data)
    levels = len(np.unique(values))
    return f"{bits} bits, {levels} levels" + (" (coarse: 16 bits keep more)" if bits == 8 else "")


def _check_npz(path: Path) -> None:
    """An npz is a zip, whose directory tells the sizes before anything is inflated."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        raise InputError(f"{path.name}: not a readable npz file, or damaged") from None
    if size > 9 * MAX_PIXELS:
        raise InputError(f"{path.name}: unpacks to {size / 1e6:.0f} MB; the limit is {MAX_PIXELS // 10**6} megapixels")
