"""The measurement of how well a ControlNet is obeyed."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from depth_model.errors import InputError
from tests import tiny
from train_controlnet import validate


def test_it_measures_every_scale_and_draws_strips(scenes, tmp_path, capsys):
    model = tiny.save_pipeline(tmp_path / "model")
    depth_model = tiny.save_estimator(tmp_path / "depth")
    config = validate.Config(
        images=scenes, count=3, model=str(model), depth_model=str(depth_model), steps=2, out=tmp_path / "out"
    )
    report = validate.main(config)
    assert set(report) == {"1", "0"}
    assert json.loads((tmp_path / "out" / "fidelity.json").read_text()) == report
    assert report["1"] != report["0"]
    assert all(set(row) == {"structure", "detail", "spearman", "rmse"} for row in report.values())
    for scale in ("1", "0"):
        assert Image.open(tmp_path / "out" / f"strip_{scale}.png").size == (3 * 128, 4 * 128)
    assert "3 images, control scale 1" in capsys.readouterr().out
    assert validate.main(config) == report


def test_scenes_are_drawn_with_their_own_captions(scenes, tmp_path, monkeypatch):
    model, depth_model = tiny.save_pipeline(tmp_path / "model"), tiny.save_estimator(tmp_path / "depth")
    config = validate.Config(
        images=scenes, count=2, model=str(model), depth_model=str(depth_model), steps=1, control_scales=(1.0,)
    )
    with_captions = validate.main(replace(config, out=tmp_path / "a"))
    monkeypatch.setattr(validate, "PROMPTS", ("gold",))
    assert validate.main(replace(config, out=tmp_path / "b")) == with_captions


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no images"):
        validate.main(validate.Config(images=tmp_path))
