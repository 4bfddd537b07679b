"""Evaluation on pair folders."""

import json

import numpy as np
import pytest
from PIL import Image

from depth_model import DepthEstimator
from depth_model.data.labeled import PairFolder
from depth_model.errors import InputError
from depth_model.evaluate import Config, evaluate, main
from depth_model.metrics import relative_depth_metrics


def test_the_numbers_are_the_means_of_the_images(scenes, teacher, tmp_path, capsys):
    file = tmp_path / "numbers" / "result.json"
    results = main(Config(dataset=scenes, model=(str(teacher), "embedded"), count=3, out=file))
    assert json.loads(file.read_text()) == results and results["embedded"]["images"] == 3
    folder, estimator = PairFolder(scenes), DepthEstimator.from_pretrained(teacher)
    single = [
        relative_depth_metrics(estimator(Image.fromarray(folder.read(i).image)).values, *folder.depth(i))
        for i in range(3)
    ]
    for name in ("abs_rel", "delta1"):
        assert results[str(teacher)][name] == pytest.approx(np.mean([row[name] for row in single]))
    said = capsys.readouterr().out
    assert "3 images, no crop, 0.001 to 10 m, least squares in disparity" in said


def test_damaged_pairs_are_left_out_and_listed(scenes, teacher, tmp_path):
    import shutil

    shutil.copytree(scenes, tmp_path / "copy")
    (tmp_path / "copy" / "000001.npz").write_bytes(b"PK")
    numbers, left_out = evaluate(DepthEstimator.from_pretrained(teacher), PairFolder(tmp_path / "copy"), 10.0)
    assert numbers["images"] == 5 and len(left_out) == 1 and "000001" in left_out[0]


def test_what_cannot_be_measured_is_refused(scenes, tmp_path):
    with pytest.raises(InputError, match="nothing left from --start 6 on"):
        main(Config(dataset=scenes, start=6))
    with pytest.raises(InputError, match="index.json: cannot be read"):
        main(Config(dataset=tmp_path))
