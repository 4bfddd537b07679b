"""The measurement of the data engine."""

import pytest

from depth_model.errors import InputError
from depth_model.measure_engine import Config, main


def test_it_measures_labelling_and_collecting_and_skips_what_is_no_image(photos, capsys):
    config = Config(images=f"images={photos}", preset="tiny", count=3, batch=2, turns=1)
    ratios = main(config)
    assert 0 < ratios["label"] < 2 and ratios["collect"] > 1
    printed = capsys.readouterr().out
    assert "batch 2, 3 images each" in printed and "640 x 480 JPEG, 3 images each" in printed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": ""}, "--images is missing"),
        ({"preset": "huge"}, "--preset huge is unknown"),
        ({"turns": 0}, "at least 1"),
        ({"images": "images=none"}, "none"),
    ],
)
def test_wrong_settings_are_refused(photos, change, said):
    with pytest.raises(InputError, match=said):
        main(Config(**{"images": f"images={photos}", "preset": "tiny"} | change))


def test_a_folder_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(InputError, match="no image there can be read"):
        main(Config(images=f"images={tmp_path}", preset="tiny"))
