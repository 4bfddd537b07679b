"""The RGB-D pair format, crops, and samples for training."""

import json

import numpy as np
import pytest
from PIL import Image

from depth_model.data.labeled import LabeledSamples, Pair, PairFolder, random_crop
from depth_model.errors import InputError


def write_pairs(folder, count=3, height=40, width=60, kind="depth", **row):
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        depth = rng.uniform(1, 9, (height, width)).astype(np.float16)
        np.savez(folder / f"{i}.npz", depth=depth, valid=rng.random((height, width)) < 0.8)
        rows.append({"file": f"{i}.png", "depth_file": f"{i}.npz", "kind": kind, "source": "ab"[i % 2], **row})
    (folder / "index.json").write_text(json.dumps(rows))
    return folder


def stored(folder, i):
    arrays = np.load(folder / f"{i}.npz", allow_pickle=False)
    return arrays["depth"].astype(np.float32), arrays["valid"]


def test_a_pair_of_depth_is_read_as_disparity(tmp_path):
    folder = PairFolder(write_pairs(tmp_path))
    depth, valid = stored(tmp_path, 1)
    pair = folder.read(1)
    assert len(folder) == 3 and pair.name == "1.png" and pair.image.shape == (40, 60, 3)
    assert pair.disparity.dtype == np.float32 and (pair.valid == valid).all() and not valid.all()
    np.testing.assert_allclose(pair.disparity, np.where(valid, 1 / depth, 0), rtol=1e-6)
    metres, measured = folder.depth(1)
    assert (measured == valid).all()
    np.testing.assert_allclose(metres[valid], depth[valid], rtol=1e-6)


def test_a_pair_of_disparity_is_taken_as_it_is(tmp_path):
    depth, valid = stored(write_pairs(tmp_path, kind="disparity"), 0)
    np.testing.assert_array_equal(PairFolder(tmp_path).read(0).disparity, np.where(valid, depth, 0))


def test_zero_negative_and_nan_depth_is_not_valid(tmp_path):
    depth, valid = stored(write_pairs(tmp_path), 0)
    depth[0, :4], valid[0, :5] = (0, -1, np.nan, np.inf), True
    np.savez(tmp_path / "0.npz", depth=depth, valid=valid)
    pair = PairFolder(tmp_path).read(0)
    assert not pair.valid[0, :4].any() and pair.valid[0, 4] and np.isfinite(pair.disparity).all()


def test_sky_of_scenes_is_valid_and_infinitely_far(tmp_path):
    _, valid = stored(write_pairs(tmp_path), 0)
    folder = PairFolder(tmp_path, scenes=True)
    pair = folder.read(0)
    assert pair.valid.all() and (pair.disparity[~valid] == 0).all() and (folder.depth(0)[1] == valid).all()


def test_parts_and_sources(tmp_path):
    folder = PairFolder(write_pairs(tmp_path, 5))
    assert [row["file"] for row in folder.part(3, 5).rows] == ["3.png", "4.png"] and len(folder) == 5
    assert [row["file"] for row in PairFolder(tmp_path, source="b").rows] == ["1.png", "3.png"]
    with pytest.raises(InputError, match="no pairs of source nyu"):
        PairFolder(tmp_path, source="nyu")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "index.json: cannot be read"),
        ("{", "index.json: not JSON"),
        ("[]", "lists no pairs"),
        ('[{"file": "0.png", "kind": "depth"}]', "row 0 lacks depth_file"),
        ('[{"file": "0.png", "depth_file": "0.npz", "kind": "near"}]', "row 0 has kind 'near'"),
        ('{"file": "0.png"}', "index.json: must be a list"),
        ('["0.png"]', "index.json: must be a list"),
    ],
)
def test_an_index_that_cannot_be_used(text, said, tmp_path):
    if text is not None:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError, match=said):
        PairFolder(tmp_path)


def damage(folder, how):
    match how:
        case "0.png":
            (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:200])
        case "0.npz":
            (folder / "0.npz").write_bytes((folder / "0.npz").read_bytes()[:200])
        case "missing":
            (folder / "0.npz").unlink()
        case "other size":
            np.savez(folder / "0.npz", depth=np.ones((4, 4)), valid=np.ones((4, 4), bool))
        case "no depth":
            np.savez(folder / "0.npz", valid=np.ones((40, 60), bool))
        case "pickle":
            np.savez(folder / "0.npz", depth=np.array([{}], dtype=object), valid=np.ones((40, 60), bool))


DAMAGES = ["0.png", "0.npz", "missing", "other size", "no depth", "pickle"]


@pytest.mark.parametrize("how", DAMAGES)
def test_errors_name_the_file(how, tmp_path):
    damage(write_pairs(tmp_path), how)
    with pytest.raises(InputError, match=r"0\.png" if how == "0.png" else r"0\.npz"):
        PairFolder(tmp_path).read(0)
    assert PairFolder(tmp_path).read(1)


def samples(folder, sizes=((28, 42),), repeat=1, jitter=0.2, seed=0):
    return LabeledSamples([(PairFolder(folder), repeat)], list(sizes), seed, 0.5, jitter)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_pair_is_skipped_and_listed(how, tmp_path):
    damage(write_pairs(tmp_path), how)
    chosen = samples(tmp_path)
    blank = chosen[0, 0, 0]
    assert not blank["valid"].any() and blank["pixel_values"].shape == (3, 28, 42)
    assert blank["problem"].startswith(str(tmp_path / "0."))
    assert chosen[0, 0, 1]["valid"].any() and not chosen[0, 0, 1]["problem"]


def test_a_sample_has_its_shapes_and_ranges(tmp_path):
    sample = samples(write_pairs(tmp_path))[0, 0, 0]
    assert sample.pop("problem") == ""
    assert {name: tuple(value.shape) for name, value in sample.items()} == {
        "pixel_values": (3, 28, 42),
        "disparity": (28, 42),
        "valid": (28, 42),
    }
    valid = sample["disparity"][sample["valid"]]
    assert valid.min() == 0 and valid.max() == 1 and (sample["disparity"][~sample["valid"]] == 0).all()


def test_a_sample_is_a_function_of_its_key(tmp_path):
    write_pairs(tmp_path)
    key = (4, 1, 2)
    one, other = samples(tmp_path), samples(tmp_path)
    other[0, 0, 0], other[9, 3, 2]
    assert all((one[key][name] == other[key][name]).all() for name in ("pixel_values", "disparity", "valid"))
    for another in ((4, 2, 2), (4, 1, 1)):
        assert not (one[key]["pixel_values"] == one[another]["pixel_values"]).all()
    assert not (one[key]["pixel_values"] == samples(tmp_path, seed=1)[key]["pixel_values"]).all()


def test_a_batch_has_one_size_and_sizes_change_between_steps(tmp_path):
    chosen = samples(write_pairs(tmp_path), sizes=[(28, 42), (42, 28)])
    shapes = [{tuple(chosen[step, e, i]["valid"].shape) for e in (0, 1) for i in range(3)} for step in range(12)]
    assert all(len(found) == 1 for found in shapes) and len(set.union(*shapes)) == 2


def test_repeats_lengthen_the_set(tmp_path):
    assert len(samples(write_pairs(tmp_path), repeat=4)) == 12


def coordinates(height, width):
    y, x = np.mgrid[:height, :width]
    image = np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)
    return Pair("grid", image, (1000 * y + x).astype(np.float32), (x + y) % 2 == 0)


@pytest.mark.parametrize("seed", range(12))
def test_a_crop_keeps_image_and_depth_together(seed):
    # At its own size a crop is not resampled: every pixel says where it came from.
    crop = random_crop(coordinates(50, 70), 50, 70, 1.0, np.random.default_rng(seed))
    x, y = crop.image[..., 0].astype(int), crop.image[..., 1].astype(int)
    assert (crop.disparity == 1000 * y + x).all() and (crop.valid == ((x + y) % 2 == 0)).all()


@pytest.mark.parametrize("seed", range(12))
def test_a_resized_crop_keeps_image_and_depth_together(seed):
    crop = random_crop(coordinates(100, 140), 28, 42, 0.6, np.random.default_rng(seed))
    assert crop.image.shape == (28, 42, 3) and crop.disparity.shape == crop.valid.shape == (28, 42)
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(crop.disparity % 1000 - crop.image[..., 0])[inner].max() <= 2.5
    assert np.abs(crop.disparity // 1000 - crop.image[..., 1])[inner].max() <= 2.5
    # One share of the largest window for both sides, at least the least one.
    spread = np.ptp(crop.disparity % 1000) / 41, np.ptp(crop.disparity // 1000) / 27
    assert spread[0] == pytest.approx(spread[1], rel=0.1) and 0.55 * 140 / 42 < spread[0] < 140 / 42 + 0.1


def test_half_of_the_crops_are_mirrored():
    pair = coordinates(20, 20)
    crops = [random_crop(pair, 20, 20, 1.0, np.random.default_rng(i)) for i in range(200)]
    mirrored = sum(crop.image[0, 0, 0] > crop.image[0, -1, 0] for crop in crops)
    assert 70 < mirrored < 130


def test_enlarging_a_small_pair_fills_the_crop():
    crop = random_crop(coordinates(7, 5), 28, 28, 0.3, np.random.default_rng(0))
    assert crop.image.shape == (28, 28, 3) and crop.disparity.max() < 7000
