"""What is wrong with training data that could nevertheless be read.

Greyscale pictures, duplicates and wrong maps are how the first depth ControlNet came to draw grey people.
"""

from collections import defaultdict

import numpy as np
from PIL import Image

from depth_control.conditioning import resize_map
from depth_control.metrics import fidelity
from train_controlnet.buckets import Crop

KINDS = {
    "grey": "no colour in the picture: the ControlNet learns to draw grey",
    "duplicated": "the same picture as an earlier one",
    "mis-sized": "enlarged by more than a half, or more than a third of it cut away by its bucket",
    "flat": "hardly any depth in the condition",
    "inverted": "the condition runs against what another estimator sees: far is bright",
}
"""What the linter reports, and why it matters."""

_GREY = 6  # of 255: the chroma noise of JPEG
_FLAT = 0.03
_SIDE = 64


def picture_facts(image: Image.Image) -> dict:
    """Height, width, whether there is no colour, and a fingerprint that survives re-encoding."""
    small = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX)).astype(int)
    chroma = np.ptp(small, axis=2)
    luma = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX)).astype(int)
    look = np.packbits(luma[:, 1:] > luma[:, :-1]).tobytes().hex()
    # A picture without edges has no fingerprint to speak of.
    alike = look if np.abs(np.diff(luma)).mean() > 1 else ""
    return {"size": [image.height, image.width], "grey": bool(np.quantile(chroma, 0.99) <= _GREY), "look": alike}


def condition_facts(control: np.ndarray, reference: np.ndarray | None) -> dict:
    """Spread of a condition [H, W], and its rank correlation with another estimator's, if there is one."""
    facts = {"spread": round(float(control.std()), 4)}
    if reference is not None:
        pair = (resize_map(values, _SIDE, _SIDE) for values in (control, reference))
        facts["agrees"] = round(fidelity(*pair)["spearman"], 4)
    return facts


def picture_problems(facts: dict, content: str, crop: Crop, seen: dict[str, str]) -> list[str]:
    """Names in `KINDS` that hold for a picture.

    Args:
        facts: of `picture_facts`. content: hash of the file. crop: its first.
        seen: content hashes and fingerprints of the pictures before; this one is added.
    """
    kinds = ["grey"] if facts["grey"] else []
    known = [mark for mark in (content, facts["look"]) if mark]
    if any(mark in seen for mark in known):
        kinds.append("duplicated")
    seen.update(dict.fromkeys(known, content))
    height, width = facts["size"]
    if crop.rows > 1.5 * crop.height or crop.height * crop.width < 0.66 * height * width:
        kinds.append("mis-sized")
    return kinds


def condition_problems(facts: list[dict]) -> list[str]:
    """Names in `KINDS` that hold for any of a picture's conditions, by their `condition_facts`."""
    flat = any(one.get("spread", 1) < _FLAT for one in facts)
    inverted = any(one.get("agrees", 1) < -0.2 for one in facts)
    return ["flat"] * flat + ["inverted"] * inverted


def summary(found: dict[str, list[str]], total: int) -> list[str]:
    """A line for each kind that was found, with examples."""
    lines = []
    for kind, names in found.items():
        examples = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        lines.append(f"{kind}: {len(names)} of {total} ({KINDS[kind]}): {examples}")
    return lines


def collect() -> dict[str, list[str]]:
    """An empty collection of findings: kind -> names."""
    return defaultdict(list)
