"""The public labelled sets: from small folders in their true layouts to disparity."""

import pickle

import h5py
import numpy as np
import OpenEXR
import pytest
from PIL import Image

from depth_model.data.formats import read_png
from depth_model.data.labeled import PairFolder
from depth_model.data.readers import depth_to_disparity, open_labeled
from depth_model.errors import InputError

SHAPE = HEIGHT, WIDTH = 20, 30


def numbers(low, high, seed=0):
    return np.random.default_rng(seed).uniform(low, high, SHAPE).astype(np.float32)


def picture(path, seed=0, shape=SHAPE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)).save(path)


def grey(path, values, dtype=np.uint16):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values).astype(dtype)).save(path)


def pfm(path, depth):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"Pf\n{WIDTH} {HEIGHT}\n-1.000000\n".encode() + depth[::-1].astype("<f4").tobytes())


def hdf5(path, key, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[key] = values


def exr(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"G": values.astype(np.float32)}).write(str(path))


def inverse(depth, valid):
    return np.where(valid, 1 / np.where(valid, depth, 1), 0)


# Each writes one pair, and gives the image's name, the disparity [H, W] and the valid mask that it should be read as.


def write_blendedmvs(root):
    depth = numbers(300, 900)
    depth[0, :3] = 0, np.nan, -1
    name = "5a3ca9cb270f0e3f14d0eddb/blended_images/00000007.jpg"
    picture(root / name)
    picture(root / name.replace("7.jpg", "7_masked.jpg"), seed=1)
    pfm(root / "5a3ca9cb270f0e3f14d0eddb/rendered_depth_maps/00000007.pfm", depth)
    valid = np.nan_to_num(depth) > 0
    return name, inverse(depth, valid), valid


def millimetres():
    values = numbers(500, 9000).astype(np.uint16)
    values[0, :3] = 0, 65501, 65535
    values[0, 3] = 65500
    return values, (values > 0) & (values <= 65500)


def write_diml_indoor_sample(root, prefix="HR/"):
    depth, valid = millimetres()
    name = f"{prefix}01. Warehouse/color/in_00_160126_155728_c.png"
    picture(root / name)
    grey(root / f"{prefix}01. Warehouse/depth_filled/in_00_160126_155728_depth_filled.png", depth)
    return name, inverse(depth / 1000, valid), valid


def write_diml_indoor(root):
    depth, valid = millimetres()
    name = "16. Billiard Hall/170112/2/col/in_k_16_170112_000007_c.png"
    picture(root / name)
    grey(root / "16. Billiard Hall/170112/2/up_png/in_k_16_170112_000007_ud.png", depth)
    return name, inverse(depth / 1000, valid), valid


def outdoor(root, image, label, confidence):
    depth, valid = millimetres()
    trust = np.random.default_rng(4).integers(140, 170, SHAPE)
    picture(root / image)
    grey(root / label, depth)
    grey(root / confidence, trust, np.uint8)
    valid &= trust > 153
    return image, inverse(depth / 1000, valid), valid


def write_diml_outdoor_sample(root):
    return outdoor(root, *(f"HR/{folder}/out_7.png" for folder in ("outleft", "depthmap", "confidencemap")))


def write_diml_outdoor(root):
    return outdoor(root, *(f"170721_C0/A/{kind}/7_{kind}.png" for kind in ("left", "depth", "conf")))


def write_hrwsi(root):
    near, valid = numbers(0, 255).astype(np.uint8), numbers(0, 1, seed=2) < 0.7
    near[0, 0], valid[0, 0] = 0, True
    picture(root / "train/imgs/street.jpg")
    grey(root / "train/gts/street.png", near, np.uint8)
    grey(root / "train/valid_masks/street.png", valid * 255, np.uint8)
    return "train/imgs/street.jpg", np.where(valid, near, 0), valid


def write_irs(root):
    pixels = numbers(1, 90)
    pixels[0, :5] = 0, np.nan, np.inf, 0.23, 0.25
    picture(root / "Home/ArchVizInterior/l_12.png")
    exr(root / "Home/ArchVizInterior/d_12.exr", pixels)
    valid = np.isfinite(pixels) & (pixels > 48 / 200)
    return "Home/ArchVizInterior/l_12.png", np.where(valid, pixels, 0), valid


def write_megadepth(root):
    depth = np.random.default_rng(0).permutation(np.arange(HEIGHT * WIDTH)).reshape(SHAPE).astype(np.float32)
    depth = np.where(depth < 100, 0, depth + 0.5)
    folder = root / "phoenix/S6/zl548/MegaDepth_v1/0022/dense0"
    picture(folder / "imgs/34202555_f0be7c5a34_o.jpg")
    hdf5(folder / "depths/34202555_f0be7c5a34_o.h5", "depth", depth)
    # 500 labels: the 5 smallest and the 10 largest go.
    valid = (depth > 105) & (depth < 590)
    assert valid.sum() == 485
    return "phoenix/S6/zl548/MegaDepth_v1/0022/dense0/imgs/34202555_f0be7c5a34_o.jpg", inverse(depth, valid), valid


def write_tartanair(root, environment="office"):
    depth = numbers(1, 90)
    depth[0, :5] = 0, 1e5, np.inf, np.nan, 9999
    folder = root / environment / "Easy/P001"
    picture(folder / "image_left/000003_left.png")
    (folder / "depth_left").mkdir()
    np.save(folder / "depth_left/000003_left_depth.npy", depth)
    measured = (depth > 0) & (depth < 1e4)
    valid = measured | (depth > 1e4)
    return f"{environment}/Easy/P001/image_left/000003_left.png", inverse(depth, measured), valid


def write_hypersim(root):
    planar = numbers(1, 9)
    planar[0, 0] = np.nan
    # Rays of a pixel grid as large as the image plane of 1024 x 768 pixels and f = 886.81.
    x = ((np.arange(WIDTH) + 0.5) / WIDTH - 0.5) * 1024
    y = ((np.arange(HEIGHT) + 0.5) / HEIGHT - 0.5) * 768
    rays = np.stack([*np.meshgrid(x, y), np.full(SHAPE, 886.81)])
    distance = planar * np.linalg.norm(rays, axis=0) / 886.81
    folder = root / "ai_001_001/images"
    picture(folder / "scene_cam_00_final_preview/frame.0004.tonemap.jpg")
    hdf5(folder / "scene_cam_00_geometry_hdf5/frame.0004.depth_meters.hdf5", "dataset", distance.astype(np.float16))
    valid = np.isfinite(planar)
    return "ai_001_001/images/scene_cam_00_final_preview/frame.0004.tonemap.jpg", inverse(planar, valid), valid


def write_vkitti2(root):
    depth = numbers(200, 60000).astype(np.uint16)
    depth[0, :3] = 0, 65535, 65534
    folder = root / "Scene01/15-deg-left/frames"
    picture(folder / "rgb/Camera_0/rgb_00042.jpg")
    grey(folder / "depth/Camera_0/depth_00042.png", depth)
    measured = (depth > 0) & (depth < 65535)
    return "Scene01/15-deg-left/frames/rgb/Camera_0/rgb_00042.jpg", inverse(depth / 100, measured), depth > 0


def write_nyuv2(root):
    depth = numbers(500, 9000).astype(np.uint16)
    depth[:3] = 0
    picture(root / "kitchen_0001/rgb_00045.jpg")
    grey(root / "kitchen_0001/sync_depth_00045.png", depth)
    return "kitchen_0001/rgb_00045.jpg", inverse(depth / 1000, depth > 0), depth > 0


def write_kitti(root):
    depth = np.where(numbers(0, 1) < 0.2, numbers(256, 20000, seed=1), 0).astype(np.uint16)
    drive = "2011_09_26_drive_0001_sync"
    name = f"raw/2011_09_26/{drive}/image_02/data/0000000005.png"
    picture(root / name)
    grey(root / f"data_depth_annotated/train/{drive}/proj_depth/groundtruth/image_02/0000000005.png", depth)
    return name, inverse(depth / 256, depth > 0), depth > 0


WRITERS = {
    "blendedmvs": write_blendedmvs,
    "diml": write_diml_indoor_sample,
    "diml indoor": write_diml_indoor,
    "diml outdoor sample": write_diml_outdoor_sample,
    "diml outdoor": write_diml_outdoor,
    "hrwsi": write_hrwsi,
    "irs": write_irs,
    "megadepth": write_megadepth,
    "tartanair": write_tartanair,
    "hypersim": write_hypersim,
    "vkitti2": write_vkitti2,
    "nyuv2": write_nyuv2,
    "kitti": write_kitti,
}
each_set = pytest.mark.parametrize("case", WRITERS)


def opened(case, root):
    return open_labeled(f"{case.split()[0]}={root}")


@each_set
def test_a_pair_is_read_as_disparity(case, tmp_path):
    name, disparity, valid = WRITERS[case](tmp_path)
    reader = opened(case, tmp_path)
    assert len(reader) == 1
    pair = reader.read(0)
    assert pair.name == name and pair.valid.dtype == bool and pair.disparity.dtype == np.float32
    np.testing.assert_array_equal(pair.image, np.asarray(Image.open(tmp_path / name)))
    np.testing.assert_array_equal(pair.valid, valid)
    np.testing.assert_allclose(pair.disparity, disparity, rtol=2e-3 if case == "hypersim" else 1e-6)
    assert valid.any() and not valid.all()


def pair_files(case, root):
    WRITERS[case](root)
    return sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file() and "masked" not in p.name)


@each_set
def test_every_damaged_or_missing_file_is_named(case, tmp_path):
    for k, file in enumerate(pair_files(case, tmp_path / "whole")):
        for how in ("missing", "short", "empty", "text"):
            root = tmp_path / f"{k} {how}"
            WRITERS[case](root)
            reader, path = opened(case, root), root / file
            content = path.read_bytes()
            path.write_bytes({"short": content[: len(content) // 2], "text": b"404\n" * 99}.get(how, b""))
            if how == "missing":
                path.unlink()
            with pytest.raises(InputError) as caught:
                reader.read(0)
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@each_set
def test_an_image_of_another_size_is_refused(case, tmp_path):
    name, *_ = WRITERS[case](tmp_path)
    picture(tmp_path / name, shape=(HEIGHT, WIDTH + 1))
    with pytest.raises(InputError, match=r"the image is \(20, 31\), its label is \(20, 30\)"):
        opened(case, tmp_path).read(0)


@each_set
def test_sky_of_a_mask_fills_what_has_no_label(case, tmp_path):
    name, disparity, valid = WRITERS[case](tmp_path)
    sky = np.zeros(SHAPE, np.uint8)
    sky[:2], sky[2] = 255, 254
    grey((tmp_path / name).with_suffix(".sky.png"), sky, np.uint8)
    reader = opened(case, tmp_path)
    pair = reader.read(0)
    assert len(reader) == 1 and not valid[:2].all()
    np.testing.assert_array_equal(pair.valid, valid | (sky == 255))
    np.testing.assert_allclose(pair.disparity, disparity, rtol=2e-3)
    grey((tmp_path / name).with_suffix(".sky.png"), sky[:5], np.uint8)
    with pytest.raises(InputError, match=r"\.sky\.png: the mask is \(5, 30\)"):
        reader.read(0)


@each_set
def test_masks_beside_labels_are_no_labels(case, tmp_path):
    files = pair_files(case, tmp_path)
    for file in files:
        grey((tmp_path / file).with_suffix(".sky.png"), np.zeros(SHAPE), np.uint8)
    assert len(opened(case, tmp_path)) == 1


@each_set
def test_a_folder_without_the_set_says_what_it_should_hold(case, tmp_path):
    name = case.split()[0]
    (tmp_path / "notes.txt").write_text("empty")
    with pytest.raises(InputError, match=rf"{tmp_path}: holds nothing of {name}, which has .*N.*"):
        open_labeled(f"{name}={tmp_path}")
    with pytest.raises(InputError, match="no such folder"):
        open_labeled(f"{name}={tmp_path}/absent")


def test_order_is_that_of_the_names_and_listing_opens_nothing(tmp_path):
    for scene in ("b", "a"):
        for number in (10, 2, 1):
            (tmp_path / scene).mkdir(exist_ok=True)
            (tmp_path / scene / f"sync_depth_{number:05}.png").touch()
            (tmp_path / scene / f"._sync_depth_{number:05}.png").touch()
    reader = open_labeled(f"nyuv2={tmp_path}")
    expected = [f"{scene}/sync_depth_{number:05}.png" for scene in "ab" for number in (1, 2, 10)]
    assert reader.files == expected
    # Loaders send readers to their worker processes.
    assert pickle.loads(pickle.dumps(reader)).files == expected


def test_a_root_may_be_any_folder_name(tmp_path, monkeypatch):
    write_nyuv2(tmp_path / "a [1] *")
    assert open_labeled(f"nyuv2={tmp_path}/a [1] *").read(0).name == "kitchen_0001/rgb_00045.jpg"
    monkeypatch.chdir(tmp_path / "a [1] *")
    write_kitti(tmp_path / "a [1] *")
    assert open_labeled("kitti=.").read(0).name.startswith("raw/2011_09_26/")


def test_diml_takes_one_size_of_each_image(tmp_path):
    write_diml_indoor_sample(tmp_path, "HR/")
    write_diml_indoor_sample(tmp_path, "LR/")
    assert [file.split("/")[0] for file in open_labeled(f"diml={tmp_path}").files] == ["HR"]
    assert len(open_labeled(f"diml={tmp_path}/LR")) == 1


def test_the_sky_dome_of_tartanair_is_left_out(tmp_path):
    write_tartanair(tmp_path, "amusement")
    with pytest.raises(InputError, match="holds nothing of tartanair"):
        open_labeled(f"tartanair={tmp_path}")
    for name in ("abandonedfactory", "soulcity"):
        write_tartanair(tmp_path, name)
    assert [file.split("/")[0] for file in open_labeled(f"tartanair={tmp_path}").files] == [
        "abandonedfactory",
        "soulcity",
    ]


@pytest.mark.parametrize(
    "depth", [numbers(0, 2).round() - 1, numbers(0, 2).round(), np.zeros(SHAPE, np.float32), -numbers(1, 2)]
)
def test_ordinal_maps_of_megadepth_are_skipped(depth, tmp_path):
    picture(tmp_path / "0022/dense0/imgs/a.jpg")
    hdf5(tmp_path / "0022/dense0/depths/a.h5", "depth", depth)
    with pytest.raises(InputError, match=r"a\.h5: holds ordinal labels"):
        open_labeled(f"megadepth={tmp_path}").read(0)


@pytest.mark.parametrize("case", ["diml outdoor", "hrwsi"])
def test_a_mask_of_another_size_than_its_map_is_refused(case, tmp_path):
    WRITERS[case](tmp_path)
    mask = next(path for path in tmp_path.rglob("*.png") if path.parent.name in ("conf", "valid_masks"))
    grey(mask, read_png(mask, bits=8)[1:], np.uint8)
    with pytest.raises(InputError, match=rf"{mask.name}: the mask is \(19, 30\)"):
        opened(case, tmp_path).read(0)


def test_8_bit_depth_is_refused(tmp_path):
    write_kitti(tmp_path)
    label = next((tmp_path / "data_depth_annotated").rglob("*.png"))
    grey(label, np.ones(SHAPE), np.uint8)
    with pytest.raises(InputError, match="8 bits"):
        open_labeled(f"kitti={tmp_path}").read(0)


def test_infinitely_far_is_0_and_valid():
    depth = np.array([[2.0, 0.0, np.nan, np.inf, 5e4]], np.float32)
    disparity, valid = depth_to_disparity(depth, sky=depth == 5e4)
    np.testing.assert_array_equal(disparity, np.float32([[0.5, 0, 0, 0, 0]]))
    np.testing.assert_array_equal(valid, [[True, False, False, False, True]])


def test_pair_folders_are_named_too(tmp_path):
    picture(tmp_path / "0.png")
    valid = numbers(0, 1) < 0.5
    np.savez(tmp_path / "0.npz", depth=numbers(1, 2), valid=valid)
    (tmp_path / "index.json").write_text('[{"file": "0.png", "depth_file": "0.npz", "kind": "depth"}]')
    assert isinstance(open_labeled(f"pairs={tmp_path}"), PairFolder)
    assert (open_labeled(f"pairs={tmp_path}").read(0).valid == valid).all()
    assert open_labeled(f"scenes={tmp_path}").read(0).valid.all()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("magadepth=x", "called 'magadepth'; the nearest is 'megadepth'"),
        ("HRWSI=x", "the nearest is 'hrwsi'"),
        ("data/kitti", "give NAME=DIR"),
        ("kitti", "has no folder; give kitti=DIR"),
        ("pairs=nowhere", "index.json: cannot be read"),
    ],
)
def test_wrong_requests(spec, said):
    with pytest.raises(InputError, match=said):
        open_labeled(spec)
