"""Small pieces of the page: histogram, badges, estimates, texts."""

import numpy as np

from ui.catalog import duration

BINS = 64
_WIDTH, _HEIGHT = 320, 72

HOW_IT_WORKS = """\
1. **Depth.** A network looks at your photo and says for each point how near it is. Near is bright, far is dark.
2. **Condition.** The handles choose which range of distances counts: left of *near* all is white, right of *far* all
   is black. What is white, grey and black in the preview is all that the picture must keep.
3. **Picture.** The image model draws what the prompt says from random noise, guided by that preview. The same seed
   gives the same picture again.
4. **Was it obeyed?** The depth of each picture is estimated in turn and compared with the condition. *Structure* is 1
   when it matches, 0 when it is no better than knowing that the ground is near and the sky is far.
"""


def histogram(positions: np.ndarray, near: float, far: float) -> str:
    """An SVG of how many pixels lie at which distance, the window between the handles shaded.

    Args:
        positions: From nearest (0) to farthest (1).
        near: Left handle.
        far: Right handle.
    """
    counts, _ = np.histogram(positions, BINS, (0, 1))
    heights = np.sqrt(counts / max(1, counts.max())) * _HEIGHT  # the root keeps rare distances visible
    step = _WIDTH / BINS
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{_HEIGHT - h:.1f}" width="{step - 0.6:.1f}" height="{h:.1f}"/>'
        for i, h in enumerate(heights)
    )
    low, high = near * _WIDTH, far * _WIDTH
    handles = "".join(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}"/>' for x in (low, high))
    return (
        f'<figure class="histogram"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="Histogram of distances, near handle at {near:.2f}, far handle at {far:.2f}">'
        f'<rect class="window" x="{low:.1f}" y="0" width="{high - low:.1f}" height="{_HEIGHT}"/>'
        f'<g class="bars">{bars}</g><g class="handles">{handles}</g></svg>'
        "<figcaption><span>near</span><span>how many pixels at which distance</span><span>far</span></figcaption>"
        "</figure>"
    )


def badge(fidelity: dict[str, float]) -> str:
    """How well a picture keeps its depth, in a few words that fit under it."""
    structure = fidelity["structure"]
    words = "keeps it well" if structure >= 0.6 else "keeps it partly" if structure >= 0.2 else "hardly keeps it"
    return f"structure {structure:.2f}, {words}"


def estimate(pictures: int, seconds: tuple[float, bool] | None) -> str:
    """How long the pictures will take, and how that is known."""
    what = f"{pictures} picture{'s' * (pictures != 1)}"
    if seconds is None:
        return f"{what}: the time is not known before the first run of this model."
    source = "measured here" if seconds[1] else "computed from the model's size and this machine's speed"
    return f"{what}: about {duration(seconds[0])} ({source}; the first use of a model also loads it)."


def progress_line(text: str, done: int, total: int, seconds_left: float | None) -> str:
    """One line on a running job."""
    if seconds_left is None:
        return f"{text} …"
    return f"{text}, step {done} of {total}, about {duration(seconds_left)} left"
