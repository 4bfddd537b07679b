"""The measurement of what `collect` finds among copies."""

import numpy as np
import pytest
from PIL import Image

from depth_model.errors import InputError
from depth_model.measure_copies import CHANGES, Config, main


@pytest.fixture
def textures(tmp_path):
    """Thirty pictures of random blots, no two alike, and a file that is none."""
    rng = np.random.default_rng(0)
    for i in range(30):
        cells = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
        grain = rng.integers(0, 40, (240, 320, 3), dtype=np.uint8)
        pixels = np.asarray(cells.resize((320, 240), Image.Resampling.BICUBIC)).clip(0, 200) + grain
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "broken.png").write_text("no picture")
    return tmp_path


def test_copies_are_found_and_nothing_else(textures, capsys):
    results = main(Config(images=f"images={textures}", copies=15))
    assert results["near-duplicate"] == results["evaluation"] == 1
    assert results["false near-duplicate"] == results["false evaluation"] == 0
    printed = capsys.readouterr().out
    assert all(printed.count(kind) == 2 for kind in CHANGES)


def test_what_keeps_copies_finds_none(textures):
    results = main(Config(images=f"images={textures}", copies=15, near_duplicate=0))
    assert results["near-duplicate"] == 0 and results["evaluation"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [({"images": ""}, "--images is missing"), ({"copies": 1}, "--copies"), ({"images": "images=none"}, "none")],
)
def test_wrong_settings_are_refused(textures, change, said):
    with pytest.raises(InputError, match=said):
        main(Config(**{"images": f"images={textures}"} | change))


def test_too_few_images_are_refused(tmp_path):
    Image.new("RGB", (200, 200)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="at least 10"):
        main(Config(images=f"images={tmp_path}"))
