"""The app's work: what the page shows is what Python gives."""

import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

import ui.studio
from depth_control import generate, to_control
from depth_control.generation import Picture
from depth_model import DepthEstimator, DepthMap
from depth_model.errors import InputError
from ui import view
from ui.catalog import read_catalog
from ui.forms import Recipe, Sweep, Window, checked
from ui.jobs import Stopped, in_background
from ui.recipe import make_recipe, read_recipe, save_with_recipe
from ui.runs_tab import as_table, describe, find_runs, read_log, read_pictures
from ui.studio import Progress, Studio
from ui.uploads import describe_depth, open_depth


@pytest.fixture
def shelf(models, tmp_path):
    """A folder of models as `--models-dir` takes it: the tiny pipeline and the tiny estimator, and other things."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "pipeline").symlink_to(models["model"])
    (folder / "estimator").symlink_to(models["depth_model"])
    (folder / "notes").mkdir()
    (folder / "notes" / "config.json").write_text("[]")
    return folder


@pytest.fixture
def studio(shelf, tmp_path):
    root = tmp_path / "uploads"
    root.mkdir()
    return Studio(read_catalog(shelf), root, device="cpu")


@pytest.fixture
def uploaded(studio, photo):
    """The photo, as if it had been uploaded."""
    return str(photo.rename(studio.root / "photo.jpg"))


def form_for(models, **changes):
    names = {"model": models["model"], "depth_model": models["depth_model"]}
    return Recipe(**({"prompt": "red clay", "steps": 2, "guidance_scale": 1.5} | names | changes))


def make_depth(path):
    np.savez(path, values=np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64), kind="disparity")
    return str(path)


def pictures_of(updates):
    return [update for update in updates if isinstance(update, Picture)]


def test_pictures_are_those_of_the_command(studio, models, uploaded, tmp_path):
    form = form_for(models, num_images=2, near=0.1, gamma=1.4, control_end=0.5, seed=7)
    made = pictures_of(studio.draw(studio.read(uploaded, None, "stated", form.depth_model), form))
    settings = form.model_dump(exclude={"prompt", "depth_kind"}) | {"controlnet": None, "device": "cpu"}
    report = generate(uploaded, "red clay", out=tmp_path / "out", **settings)
    assert [picture.seed for picture in made] == [7, 8]
    for picture, entry in zip(made, report["images"], strict=True):
        assert np.array_equal(picture.image, Image.open(tmp_path / "out" / entry["file"]))
        assert picture.fidelity == entry["fidelity"]


def test_models_are_loaded_one_after_the_other(studio, models, uploaded, monkeypatch):
    loading, together = [], []

    def watched(load):
        def slow(*names, **options):
            loading.append(threading.get_ident())  # a pipeline loads its estimator too
            together.append(len(set(loading)))
            time.sleep(0.3)
            try:
                return load(*names, **options)
            finally:
                loading.pop()

        return slow

    monkeypatch.setattr("ui.studio.load_pipeline", watched(ui.studio.load_pipeline))
    monkeypatch.setattr(DepthEstimator, "from_pretrained", staticmethod(watched(DepthEstimator.from_pretrained)))
    subject = studio.read(None, make_depth(studio.root / "depth.npz"), "stated", "")
    estimating = threading.Thread(target=studio.read, args=(uploaded, None, "stated", models["depth_model"]))
    estimating.start()
    assert pictures_of(studio.draw(subject, form_for(models)))
    estimating.join()
    assert set(together) == {1} and len(together) >= 2


def test_sixteen_bits_give_the_same_control_as_the_npz(studio):
    values = np.random.default_rng(0).integers(0, 65536, (40, 60)).astype(np.uint16)
    Image.fromarray(values).save(studio.root / "depth.png")
    np.savez(studio.root / "depth.npz", values=values.astype(np.float32), kind="disparity")
    window = {"near": 0.2, "far": 0.7, "gamma": 1.3}
    subject = studio.read(None, str(studio.root / "depth.png"), "stated", "embedded")
    expected = to_control(DepthMap.load(studio.root / "depth.npz"), **window)
    assert np.array_equal(studio.control(subject, Window(**window)), expected)
    assert len(np.unique(expected)) > 500


def test_far_bright_is_turned_round_and_metres_are_refused_as_such(studio):
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 100
    path = studio.root / "depth.png"
    Image.fromarray(values).save(path)
    turned = open_depth(path, path.read_bytes(), "far_bright")
    np.testing.assert_allclose(to_control(turned), 1 - to_control(DepthMap.load(path)), atol=1e-6)
    np.savez(studio.root / "metres.npz", values=np.ones((3, 4), np.float32), kind="metric")
    with pytest.raises(InputError, match="metres"):
        open_depth(studio.root / "metres.npz", b"", "far_bright")


@pytest.mark.parametrize(("near_below", "swapped"), [(True, False), (False, True)])
def test_polarity_is_guessed_only_where_the_file_does_not_say(studio, near_below, swapped):
    rows = np.linspace(0, 60000, 30) if near_below else np.linspace(60000, 0, 30)
    values = np.repeat(rows[:, None], 20, axis=1).astype(np.uint16)
    path = studio.root / "depth.png"
    Image.fromarray(values).save(path)
    told, guess = describe_depth(path, path.read_bytes(), DepthMap.load(path), "stated")
    assert guess is swapped and "16 bits" in told and ("swapped" in told) is swapped
    DepthMap(values.astype(np.float32), "disparity").save_png(path)
    told, guess = describe_depth(path, path.read_bytes(), DepthMap.load(path), "stated")
    assert not guess and "the file says" in told


def test_menus_hold_the_folder_and_nothing_else_is_loaded(shelf, models):
    catalog = read_catalog(shelf)
    assert [c.title for c in catalog.image][1] == "pipeline"
    assert "estimator" in [c.title for c in catalog.depth]
    assert all(c.size and c.licence for c in (*catalog.image, *catalog.controlnet, *catalog.depth))
    catalog.check(models["model"], "", models["depth_model"])
    for wrong in (
        {"image": "/etc"},
        {"image": "embedded", "controlnet": "someone/else"},
        {"image": "", "depth": "../x"},
    ):
        with pytest.raises(InputError, match="not on the menu"):
            catalog.check(**wrong)
    with pytest.raises(InputError, match="no such folder"):
        read_catalog(shelf / "none")


def test_progress_has_previews_and_ends_at_all_steps(studio, models, uploaded):
    form = form_for(models, num_images=2, steps=3)
    updates = list(studio.draw(studio.read(uploaded, None, "stated", form.depth_model), form))
    progress = [update for update in updates if isinstance(update, Progress) and update.seconds_left is not None]
    assert [update.done for update in progress] == [1, 2, 3, 4, 5, 6]
    assert all(update.total == 6 for update in progress) and progress[0].preview is not None
    seconds, measured = studio.seconds_for(form)
    assert measured and seconds > 0


def test_closing_a_job_stops_it_and_the_next_one_runs(studio, models, uploaded):
    subject = studio.read(uploaded, None, "stated", models["depth_model"])
    long = studio.draw(subject, form_for(models, steps=100, num_images=4))
    assert next(update for update in long if isinstance(update, Progress))
    long.close()
    assert len(pictures_of(studio.draw(subject, form_for(models)))) == 1


def test_the_sweep_is_a_grid_of_the_same_pictures(studio, models, uploaded):
    subject = studio.read(uploaded, None, "stated", models["depth_model"])
    form = form_for(models)
    updates = list(studio.sweep(subject, form, Sweep(strengths="0.5, 1", ends="0.5, 1")))
    (grid,) = [update for update in updates if isinstance(update, Image.Image)]
    (whole,) = pictures_of(studio.draw(subject, form))
    width, height = whole.image.size
    assert np.array_equal(grid.crop((grid.width - width, grid.height - height, *grid.size)), whole.image)
    done = [update.done for update in updates if isinstance(update, Progress)]
    assert done == sorted(done) and done[-1] == 8


@pytest.mark.parametrize("text", ["", "a", "1, 9", "nan", ",".join(["1"] * 20)])
def test_sweeps_out_of_range_are_refused(text):
    with pytest.raises(InputError):
        Sweep(strengths=text, ends="1").values()


def test_a_job_ends_at_its_next_report():
    seen, ended = [], threading.Event()

    def work(report):
        try:
            for i in range(1000):
                seen.append(i)
                report(i)
                time.sleep(0.01)
        except Stopped:
            ended.set()
            raise

    job = in_background(work)
    assert next(job) == 0
    job.close()
    assert ended.wait(5) and len(seen) < 900


def test_a_job_that_takes_too_long_is_ended():
    def work(report):
        while True:
            report("step")
            time.sleep(0.01)

    with pytest.raises(InputError, match="longest"):
        for _ in in_background(work, limit=0.3):
            pass


def test_what_the_work_raises_is_raised():
    def work(report):
        report(1)
        raise InputError("a reason")

    with pytest.raises(InputError, match="a reason"):
        list(in_background(work))


def test_recipes_survive_the_picture(tmp_path):
    form = Recipe(prompt='quotes " and <b>ünïcode</b>\n中文', seed=5, gamma=1.7, num_images=3, depth_kind="metric")
    recipe = make_recipe(form, 2, {"photo": "ab" * 32}, {"structure": 0.5})
    save_with_recipe(Image.new("RGB", (8, 8)), tmp_path / "a.png", recipe)
    assert read_recipe(tmp_path / "a.png") == (form, {"photo": "ab" * 32})
    (tmp_path / "a.json").write_text(json.dumps(recipe))
    assert read_recipe(tmp_path / "a.json")[0] == form


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2, "controls": {}}', '{"version": 1, "controls": {"steps": 1e9}}', "[" * 50000]
    + ['{"version": 1, "controls": {"unknown": 1}}', '{"version": 1, "controls": {"gamma": NaN}}'],
)
def test_damaged_recipes_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError):
        read_recipe(tmp_path / "a.json")


def test_a_picture_without_a_recipe_says_so(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="no recipe"):
        read_recipe(tmp_path / "a.png")


def test_forms_name_the_field():
    with pytest.raises(InputError, match="control scale"):
        checked(Recipe, control_scale=float("nan"))
    with pytest.raises(InputError, match="near handle"):
        checked(Window, near=0.5, far=0.5)


def test_the_histogram_shows_the_window():
    chart = view.histogram(np.linspace(0, 1, 1000), 0.25, 0.75)
    assert chart.count("<rect") == view.BINS + 1 and "near handle at 0.25" in chart


def test_estimates_say_where_they_come_from():
    assert "measured here" in view.estimate(2, (3.2, True))
    assert "computed" in view.estimate(1, (600.0, False)) and "10 min" in view.estimate(1, (600.0, False))
    assert "not known" in view.estimate(1, None)


def test_runs_are_found_and_half_written_lines_left_out(tmp_path):
    run = tmp_path / "group" / "first"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("steps: 2\n")
    (run / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n{"step": 3, "lo')
    Image.new("RGB", (8, 8)).save(run / "curves.png")
    (run / "broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "other").mkdir()
    assert find_runs(tmp_path) == ["group/first"]
    rows = read_log(run / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and "loss 0.25" in describe(rows)
    assert as_table(rows) == {"headers": ["step", "loss"], "data": [[2, 0.25], [1, 0.5]]}
    assert [name for _, name in read_pictures(run)] == ["curves.png"]
