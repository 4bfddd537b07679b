"""Procedural RGB-D scenes with exact depth, class labels and captions; a pure function of (seed, index)."""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from depth_model.data.scenes.layout import CLASSES, GROUNDS, LIGHTS, Layout, draw_layout
from depth_model.data.scenes.materials import MATERIALS
from depth_model.data.scenes.render import World, render
from depth_model.errors import InputError

__all__ = ["CLASSES", "GROUNDS", "LIGHTS", "MATERIALS", "draw_scene", "write_scenes"]

_LIGHT_WORDS = {
    "noon": "at noon",
    "sunset": "at sunset",
    "night": "at night",
    "fog": "in fog",
    "indoor": "in indoor light",
}
_PLURAL = {"box": "boxes", "arch": "arches", "shelf": "shelves", "stairs": "stairs"}
_MOST_TRIES = 12
_INDEX, _JOURNAL = "index.json", "index.jsonl"


def _caption(rng: np.random.Generator, layout: Layout, labels: np.ndarray) -> str:
    """States what is seen: shapes and their material, ground and its material, light. All but one may be left out."""
    share = np.bincount(labels.ravel(), minlength=len(CLASSES))[4:] / labels.size
    visible = [CLASSES[4 + i] for i in np.argsort(-share, kind="stable") if share[i] > 0.02]
    light, ground, own = _LIGHT_WORDS[layout.light_name], layout.ground, layout.ground_material
    a_own = f"{'an' if own[0] in 'aeiou' else 'a'} {own}"
    where = {"room": f"in {a_own} room", "hills": f"on {own} hills", "plain": f"on {a_own} plain"}[ground]
    if not visible:
        place = {"room": f"an empty {own} room", "hills": f"{own} hills", "plain": f"{a_own} plain"}[ground]
        return f"{place} {light}"
    names = " and ".join(_PLURAL.get(name, name + "s") for name in visible[:2])
    what = "shapes" if rng.random() < 0.6 else names
    material = " and ".join(layout.shape_materials)
    if layout.shape_materials == (own,) and rng.random() < 0.7:
        return f"{a_own} model of {'a room' if ground == 'room' else 'the scene'} {light}"
    style = rng.random()
    if style < 0.08:
        return f"{material} {what} {where}"
    if style < 0.14:
        return f"{material} {what} {light}"
    return f"{material} {what} {where} {light}"


def draw_scene(seed: int, index: int, height: int = 128, width: int = 128) -> dict:
    """Scene number `index` of `seed`.

    Returns a dictionary: image uint8 [H, W, 3]; depth float32 [H, W] in metres, 0 for sky; valid bool [H, W], False for
    sky; labels uint8 [H, W], indices into `CLASSES`; caption, ground and light as words.

    A layout whose view is blocked (a surface right before the camera, hardly anything but sky) is drawn again.
    """
    rng = np.random.default_rng((seed, index))
    for _ in range(_MOST_TRIES):
        layout = draw_layout(rng)
        scene = render(World(layout.parts), layout.light, layout.camera, height, width)
        depth = scene["depth"][scene["valid"]]
        if (
            len(depth) > 0.3 * height * width
            and np.quantile(depth, 0.1) > 0.7
            and np.ptp(np.quantile(depth, (0.05, 0.95))) > 0.6
        ):
            break
    scene["caption"] = _caption(rng, layout, scene["labels"])
    scene["ground"], scene["light"] = layout.ground, layout.light_name
    return scene


def _write_scene(folder: Path, seed: int, job: tuple[int, int, int]) -> dict:
    """Writes the image and the arrays of one scene, (index, height, width), and returns its row of the index."""
    index, height, width = job
    stem = folder / f"{index:06d}"
    scene = draw_scene(seed, index, height, width)
    Image.fromarray(scene["image"]).save(stem.with_suffix(".png"))
    np.savez_compressed(
        stem.with_suffix(".npz"), depth=scene["depth"].astype(np.float16), valid=scene["valid"], labels=scene["labels"]
    )
    return {
        "file": f"{stem.name}.png",
        "depth_file": f"{stem.name}.npz",
        "kind": "depth",
        "units": "metres",
        "width": width,
        "height": height,
        "seed": seed,
        "caption": scene["caption"],
        "ground": scene["ground"],
        "light": scene["light"],
        "classes": {CLASSES[label]: int(label) for label in np.unique(scene["labels"])},
    }


def _parse(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # cut off by a kill, perhaps with the next one joined on; drawn again
        return None


def _known_rows(folder: Path, seed: int, sizes: list[tuple[int, int]]) -> dict[str, dict]:
    """The rows by file name that an earlier, perhaps interrupted, call has left in `folder`.

    Raises:
        InputError: the folder holds something else.
    """
    try:
        index = folder / _INDEX
        rows = json.loads(index.read_text()) if index.exists() else []
        if (journal := folder / _JOURNAL).exists():
            rows += filter(None, map(_parse, journal.read_text().splitlines()))
        known = {row["file"]: row for row in rows}
        for i, (height, width) in enumerate(sizes):
            row = known.get(f"{i:06d}.png", {})
            if row and (row["seed"], row["height"], row["width"]) != (seed, height, width):
                raise InputError(
                    f"--out {folder} holds scenes of seed {row['seed']} whose number {i} is {row['width']} x "
                    f"{row['height']} px; give the --seed, --size and --aspects of before, or another folder"
                )
        return known
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"--out {folder} holds an index that is not of scenes; choose another folder") from error


def _render(folder: Path, seed: int, jobs: list[tuple[int, int, int]], workers: int) -> Iterator[dict]:
    """The row of each job in order, rendered by `workers` processes."""
    work = partial(_write_scene, folder, seed)
    if workers <= 1:
        yield from map(work, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, jobs, chunksize=8)


def write_scenes(
    out: str | Path, count: int, seed: int = 0, size: int = 128, aspects: tuple[float, ...] = (1.0,), workers: int = 1
) -> Iterator[int]:
    """Writes `count` scenes to the folder `out` in the RGB-D pair format and yields the number done after each.

    The rows of finished scenes are kept in a journal until `index.json` is written, so a call that was interrupted goes
    on where it stopped. `index.json` then lists exactly `count` scenes; a later call may ask for more.

    Args:
        out: folder for NNNNNN.png, NNNNNN.npz (depth float16 metres, valid, labels) and index.json, whose rows hold the
            caption and the labels of the classes that are seen.
        count: number of scenes, >= 1.
        seed: >= 0; scene i is a function of (seed, i, its size) alone.
        size: shorter side in pixels, 32 to 1024.
        aspects: width / height ratios from 1/4 to 4, taken in turn; sides are rounded to multiples of 8.
        workers: processes that render.

    Raises:
        InputError: for a count, seed, size, aspect or folder that cannot be served.
    """
    _check(count, seed, size, aspects)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot make this folder ({error.strerror})") from error
    shapes = [(round(size * max(1, 1 / a) / 8) * 8, round(size * max(1, a) / 8) * 8) for a in aspects]
    sizes = [shapes[i % len(shapes)] for i in range(count)]
    known = _known_rows(folder, seed, sizes)
    names = [f"{i:06d}.png" for i in range(count)]
    jobs = [(i, *sizes[i]) for i, name in enumerate(names) if name not in known]
    done = count - len(jobs)
    yield from range(1, done + 1)
    with (folder / _JOURNAL).open("a") as journal:
        for row in _render(folder, seed, jobs, workers):
            known[row["file"]] = row
            print(json.dumps(row), file=journal, flush=True)
            done += 1
            yield done
    finished = folder / f"{_INDEX}.partial"
    finished.write_text(json.dumps([known[name] for name in names], indent=1))
    finished.replace(folder / _INDEX)
    (folder / _JOURNAL).unlink()


def _check(count: int, seed: int, size: int, aspects: tuple[float, ...]) -> None:
    if count < 1:
        raise InputError(f"--count must be at least 1, got {count}")
    if seed < 0:
        raise InputError(f"--seed must be at least 0, got {seed}")
    if not 32 <= size <= 1024:
        raise InputError(f"--size must be between 32 and 1024 pixels, got {size}")
    if not aspects or not all(0.25 <= aspect <= 4 for aspect in aspects):
        raise InputError(f"--aspects must be ratios between 0.25 and 4, got {' '.join(map(str, aspects)) or 'none'}")
