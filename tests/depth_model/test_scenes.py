"""Procedural scenes: pure functions, exact depth, captions, and the written folder."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from depth_model.data.labeled import PairFolder
from depth_model.data.scenes import CLASSES, GROUNDS, LIGHTS, MATERIALS, draw_scene, write_scenes
from depth_model.data.scenes.render import Camera, Light, Part, World, render
from depth_model.data.scenes.shapes import KINDS, shape
from depth_model.errors import InputError

ARRAYS = ("image", "depth", "valid", "labels")
# A camera at the origin that looks along +y, with x to the right and z up.
FORWARD = np.array([(1.0, 0, 0), (0, 0, -1.0), (0, 1.0, 0)])
SUN = Light(
    np.array([0.0, -0.6, 0.8]),
    None,
    *(np.float32(c) for c in ((1, 1, 1), (0.3,) * 3, (0.5, 0.6, 0.9), (0.1, 0.3, 0.8))),
    0.0,
)


def ball(diameter, centre, material="red clay"):
    base = np.asarray(centre, float) - (0, 0, diameter / 2)
    return Part(shape("ball"), diameter * np.eye(3), base, CLASSES.index("ball"), material)


def picture(*parts, height=65, width=65, fov=np.pi / 2):
    return render(World(list(parts)), SUN, Camera(np.zeros(3), FORWARD, fov), height, width)


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(3, index, 64, 80) for index in range(16)]


def test_a_scene_is_a_function_of_seed_and_index(scenes):
    again = draw_scene(3, 5, 64, 80)
    assert all(np.array_equal(again[name], scenes[5][name]) for name in ARRAYS)
    assert again["caption"] == scenes[5]["caption"]
    for other in (draw_scene(3, 6, 64, 80), draw_scene(4, 5, 64, 80)):
        assert not np.array_equal(other["depth"], again["depth"])


def test_arrays_have_their_types_and_ranges(scenes):
    for scene in scenes:
        assert {name: (scene[name].dtype.name, scene[name].shape) for name in ARRAYS} == {
            "image": ("uint8", (64, 80, 3)),
            "depth": ("float32", (64, 80)),
            "valid": ("bool", (64, 80)),
            "labels": ("uint8", (64, 80)),
        }
        assert np.isfinite(scene["depth"]).all() and (scene["depth"][scene["valid"]] > 0).all()
        assert scene["labels"].max() < len(CLASSES)


def test_sky_is_what_is_not_valid(scenes):
    assert CLASSES[0] == "sky" and any(not scene["valid"].all() for scene in scenes)
    for scene in scenes:
        assert ((scene["labels"] == 0) == ~scene["valid"]).all() and (scene["depth"][~scene["valid"]] == 0).all()


def test_scenes_have_many_depths_and_things(scenes):
    assert {scene["ground"] for scene in scenes} == set(GROUNDS)
    assert len({scene["light"] for scene in scenes}) >= 4
    assert len(set(np.concatenate([np.unique(scene["labels"]) for scene in scenes]))) >= 12
    assert all(np.ptp(np.quantile(scene["depth"][scene["valid"]], (0.05, 0.95))) > 0.3 for scene in scenes)


def test_a_ball_in_front_of_the_camera_has_exact_depth():
    seen = picture(ball(2.0, (0, 5, 0)))
    y, x = np.mgrid[-32:33, -32:33] / 32.5
    # Planar depth of the nearer crossing of the ray t * (x, 1, -y) with the sphere of radius 1 around (0, 5, 0).
    root = 25 - (1 + x**2 + y**2) * 24
    exact = np.where(root > 0, (5 - np.sqrt(np.maximum(root, 0))) / (1 + x**2 + y**2), 0)
    assert seen["depth"][32, 32] == pytest.approx(4, abs=1e-3)
    inside = root > 1.5
    # The ball is made of flat triangles, up to 0.6 % of the radius inside the sphere.
    np.testing.assert_allclose(seen["depth"][inside], exact[inside], atol=0.03)
    assert (seen["valid"] == (root > 0)).mean() > 0.99
    assert set(np.unique(seen["labels"])) == {0, CLASSES.index("ball")}


def test_depth_is_planar_not_along_the_ray():
    wall = Part(shape("box"), np.diag([50.0, 1.0, 50.0]), np.array([0, 7.5, -25]), CLASSES.index("wall"), "brick")
    seen = picture(wall)
    assert seen["valid"].all()
    np.testing.assert_allclose(seen["depth"], 7, atol=1e-3)


def test_right_is_right_up_is_up_and_near_hides_far():
    seen = picture(ball(1.0, (2, 6, 0)), ball(1.0, (0, 6, 2), "gold"), ball(1.0, (0, 4, 0)), ball(9.0, (0, 30, 0)))
    labelled = seen["labels"] > 0
    assert labelled[32, 32 + 11] and not labelled[32, 32 - 11] and labelled[32 - 11, 32] and not labelled[32 + 11, 32]
    assert seen["depth"][32, 32] == pytest.approx(3.5, abs=0.01)


def test_light_and_material_colour_the_image():
    clay, ice = picture(ball(2.0, (0, 4, 0))), picture(ball(2.0, (0, 4, 0), "blue ice"))
    red, blue = (seen["image"][24:40, 24:40].reshape(-1, 3).mean(0) for seen in (clay, ice))
    assert red[0] > 1.3 * red[2] and blue[2] > blue[0]
    top, bottom = (clay["image"][rows, 30:36].astype(float).mean() for rows in (slice(24, 28), slice(38, 42)))
    assert top > bottom + 10, "the sun stands high"


@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_is_a_closed_unit_mesh(kind):
    for variant in range(12):
        mesh = shape(kind, variant)
        low, high = mesh.vertices.min(0), mesh.vertices.max(0)
        np.testing.assert_allclose([*low, *high], [-0.5, -0.5, 0, 0.5, 0.5, 1], atol=1e-5)
        assert mesh.faces.min() == 0 and mesh.faces.max() == len(mesh.vertices) - 1 and np.isfinite(mesh.normals).all()


WORDS = {word for name in MATERIALS for word in name.split()} | {*GROUNDS}
WORDS |= {"noon", "sunset", "night", "fog", "indoor", "light", "at", "in", "on", "a", "an", "and", "of", "the"}
WORDS |= {"shapes", "model", "scene", "empty", "boxes", "arches", "shelves", "stairs"} | {f"{kind}s" for kind in KINDS}
PLACE = re.compile(rf"(?:^|in |on )(?:an? )?(?:empty )?({'|'.join(MATERIALS)}) ({'|'.join(GROUNDS)})\b")


def test_captions_state_what_is_seen():
    drawn = [draw_scene(8, index, 32, 32) for index in range(60)]
    assert {scene["light"] for scene in drawn} == set(LIGHTS)
    placed = 0
    for scene in drawn:
        caption = scene["caption"]
        assert set(caption.split()) <= WORDS
        assert any(material in caption for material in MATERIALS)
        if place := PLACE.search(caption):
            placed += place[2] == scene["ground"]
            assert place[2] == scene["ground"]
        if named := [light for light in LIGHTS if light in caption.split()]:
            assert named == [scene["light"]]
    assert placed > 35, "most captions name the ground and its material"
    assert {material for material in MATERIALS if any(material in s["caption"] for s in drawn)} == set(MATERIALS)


def written(folder, count, **settings):
    assert list(write_scenes(folder, count, **{"seed": 2, "size": 32, **settings})) == list(range(1, count + 1))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_written_folder_holds_pairs_and_an_index(tmp_path):
    files = written(tmp_path, 3, aspects=(1.0, 1.5))
    assert sorted(files) == [*(f"{i:06d}.{kind}" for i in range(3) for kind in ("npz", "png")), "index.json"]
    rows = json.loads(files["index.json"])
    assert [row["file"] for row in rows] == ["000000.png", "000001.png", "000002.png"]
    assert all(row["kind"] == "depth" and row["units"] == "metres" for row in rows)
    for i, row in enumerate(rows):
        scene = draw_scene(2, i, row["height"], row["width"])
        arrays = np.load(tmp_path / row["depth_file"], allow_pickle=False)
        assert (np.asarray(Image.open(tmp_path / row["file"])) == scene["image"]).all()
        np.testing.assert_array_equal(arrays["depth"], scene["depth"].astype(np.float16))
        assert (arrays["labels"] == scene["labels"]).all() and row["caption"] == scene["caption"]
        assert row["classes"] == {CLASSES[label]: label for label in np.unique(scene["labels"])}
    assert [(row["height"], row["width"]) for row in rows] == [(32, 32), (32, 48), (32, 32)]
    assert PairFolder(tmp_path, scenes=True).read(1).valid.all()


def test_the_same_call_again_draws_nothing_and_changes_nothing(tmp_path):
    files = written(tmp_path, 3)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("0*")}
    assert written(tmp_path, 3) == files
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("0*")} == times


def test_an_interrupted_call_goes_on(tmp_path):
    straight = written(tmp_path / "straight", 5)
    for i, _ in enumerate(work := write_scenes(tmp_path / "other", 5, 2, 32)):
        if i == 2:
            work.close()
            break
    assert not (tmp_path / "other" / "index.json").exists()
    with (tmp_path / "other" / "index.jsonl").open("a") as journal:
        journal.write('{"file": "0000')
    (tmp_path / "other" / "000003.png").write_bytes(b"cut off")
    before = (tmp_path / "other" / "000001.png").stat().st_mtime_ns
    assert written(tmp_path / "other", 5) == straight
    assert (tmp_path / "other" / "000001.png").stat().st_mtime_ns == before


def test_more_scenes_may_be_added_and_processes_do_not_matter(tmp_path):
    written(tmp_path / "grown", 2)
    assert written(tmp_path / "grown", 4, workers=2) == written(tmp_path / "straight", 4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"count": 0}, "--count must be at least 1"),
        ({"size": 31}, "--size must be between 32 and 1024"),
        ({"size": 1025}, "--size must be between 32 and 1024"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"aspects": (1.0, 0.0)}, "--aspects must be ratios between 0.25 and 4"),
        ({"aspects": (float("nan"),)}, "--aspects must be ratios between 0.25 and 4"),
        ({"aspects": ()}, "--aspects must be ratios between 0.25 and 4"),
    ],
)
def test_wrong_settings_are_refused(settings, said, tmp_path):
    with pytest.raises(InputError, match=said):
        list(write_scenes(tmp_path / "out", **{"count": 2, **settings}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"seed": 3}, {"size": 40}, {"aspects": (2.0,)}])
def test_a_folder_of_other_scenes_is_refused(settings, tmp_path):
    files = written(tmp_path, 1)
    with pytest.raises(InputError, match="holds scenes of seed 2 whose number 0 is 32 x 32 px"):
        list(write_scenes(tmp_path, **{"count": 1, "seed": 2, "size": 32, **settings}))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_folder_of_other_pairs_or_a_file_is_refused(tmp_path):
    (tmp_path / "index.json").write_text('[{"file": "000000.png", "depth_file": "000000.npz", "kind": "depth"}]')
    with pytest.raises(InputError, match="holds an index that is not of scenes"):
        list(write_scenes(tmp_path, 1))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make this folder"):
        list(write_scenes(tmp_path / "file", 1))
