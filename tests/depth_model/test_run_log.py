"""The log of a run."""

import json

import numpy as np
from PIL import Image

from depth_model.run_log import RunLog


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_log_goes_on_where_the_checkpoint_is(tmp_path):
    log = RunLog(tmp_path / "run", 0)
    for step in (1, 2, 3, 4, 5):
        log.write(step, loss=1 / step)
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    log = RunLog(tmp_path / "run", 3)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3]
    log.write(4, loss=9.0, rate=2)
    assert rows(tmp_path / "run")[-1] == {"step": 4, "loss": 9.0, "rate": 2} and len(log.rows) == 4


def test_a_new_run_starts_an_empty_log(tmp_path):
    RunLog(tmp_path, 0).write(5, loss=1.0)
    assert RunLog(tmp_path, 0).rows == [] and rows(tmp_path) == []


def test_curves_are_a_picture_with_a_panel_for_each_number(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in range(1, 30):
        log.write(step, loss=1 / step, flat=3.0, **({"late": step} if step > 20 else {}))
    log.plot(tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG" and image.height % 3 == 0
        pixels = np.asarray(image.convert("RGB"))
    panels = np.split(pixels, 3)
    assert all((panel != 255).any(-1).sum() > 300 for panel in panels)


def test_curves_of_a_run_that_diverged(tmp_path):
    log = RunLog(tmp_path, 0)
    for step, loss in enumerate((1.0, float("nan"), float("inf"), 2.0)):
        log.write(step, loss=loss, broken=float("nan"))
    log.plot(tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size


def test_nothing_logged_draws_nothing(tmp_path):
    RunLog(tmp_path, 0).plot(tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
