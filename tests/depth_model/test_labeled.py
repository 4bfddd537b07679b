"""The RGB-D pair format."""

import json

import numpy as np
import pytest
from PIL import Image

from depth_model.data.labeled import PairFolder
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
