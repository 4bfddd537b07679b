"""The public labelled sets: where their files lie, and how their numbers become disparity.

A set is one function, from a label file to (image file, disparity [H, W], valid bool [H, W]), and one row of `LAYOUTS`.
The sets of V1 table 1 are blendedmvs, diml, hrwsi, irs, megadepth and tartanair; V2 table 7 has hypersim and vkitti2
besides; nyuv2 and kitti are what both papers measure on.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import NamedTuple

import numpy as np

from depth_model.data.formats import read_exr, read_hdf5, read_npy, read_pfm, read_png
from depth_model.data.labeled import Pair, PairFolder
from depth_model.errors import InputError
from depth_model.images import open_image

Labels = tuple[Path, np.ndarray, np.ndarray]
"""Image file, disparity [H, W] (larger = nearer, anything where not valid), valid bool [H, W]."""

SKY_SUFFIX = ".sky.png"
"""A mask of the sky, `<image without its suffix>.sky.png`, 8 bits, 255 = sky; `depth_model.label_sky` writes them."""

_NO_DEPTH = 1e-8  # labels up to this are none, as in MegaDepth's own code
# The authors of DIML suggest about 0.9; what Depth Anything took is not known, and this keeps more of the pixels.
_DIML_CONFIDENCE = 0.6
_DIML_FARTHEST = 65500  # mm; what is above marks failures, as in Metric3D
_IRS_BASELINE_FOCAL = 48.0  # metres x pixels: depth = 48 / disparity
_IRS_FARTHEST = 200.0  # metres, as in CUT3R
_TARTANAIR_SKY = 1e4  # metres; what is above is sky
_HYPERSIM_WIDTH, _HYPERSIM_HEIGHT, _HYPERSIM_FOCAL = 1024, 768, 886.81  # pixels
_VKITTI2_SKY = 65535  # centimetres


def depth_to_disparity(depth: np.ndarray, sky: np.ndarray | bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Disparity 1 / depth and its valid mask, both [H, W].

    Args:
        depth: any unit; 0, negative, NaN and infinity are no label.
        sky: bool [H, W]. It is infinitely far: disparity 0, and valid (V1 section 4.1).
    """
    measured = np.isfinite(depth) & (depth > _NO_DEPTH) & ~np.asarray(sky)
    return 1 / np.where(measured, depth, np.inf), measured | sky


def _mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An 8-bit picture that must have the size of the map it belongs to."""
    mask = read_png(path, bits=8)
    if mask.shape != shape:
        raise InputError(f"{path}: the mask is {mask.shape}, its map is {shape}")
    return mask


def blendedmvs(label: Path) -> Labels:
    """BlendedMVS, + and ++: depth, of a scale of its own in each scene. Images with a masked background are unused."""
    image = label.parents[1] / "blended_images" / f"{label.stem}.jpg"
    return image, *depth_to_disparity(read_pfm(label))


def diml(label: Path) -> Labels:
    """DIML/CVL RGB-D: uint16 millimetres; outdoors, from stereo, only where the confidence is above 0.6 of 255."""
    millimetres, folder, stem = read_png(label), label.parents[1], label.stem
    confidence = None
    match label.parent.name:
        case "depth_filled":
            image = folder / "color" / f"{stem.removesuffix('_depth_filled')}_c.png"
        case "up_png":
            image = folder / "col" / f"{stem.rpartition('_')[0]}_c.png"
        case "depthmap":
            image, confidence = folder / "outleft" / label.name, folder / "confidencemap" / label.name
        case _:
            stem = stem.removesuffix("_depth")
            image, confidence = folder / "left" / f"{stem}_left.png", folder / "conf" / f"{stem}_conf.png"
    known = millimetres <= _DIML_FARTHEST
    if confidence:
        known &= _mask(confidence, known.shape) / 255 > _DIML_CONFIDENCE
    return image, *depth_to_disparity(np.where(known, millimetres / 1000, 0))


def hrwsi(label: Path) -> Labels:
    """HRWSI: 8-bit disparity from optical flow, up to scale and shift, with masks of what is valid."""
    disparity, folder = read_png(label, bits=8), label.parents[1]
    valid = _mask(folder / "valid_masks" / label.name, disparity.shape) == 255
    return folder / "imgs" / f"{label.stem}.jpg", disparity, valid


def irs(label: Path) -> Labels:
    """IRS: disparity of a stereo pair in pixels; what is farther than 200 m is not valid."""
    disparity = read_exr(label)
    valid = np.isfinite(disparity) & (disparity >= _IRS_BASELINE_FOCAL / _IRS_FARTHEST)
    return label.with_name(f"l_{label.stem.removeprefix('d_')}.png"), disparity, valid


def megadepth(label: Path) -> Labels:
    """MegaDepth v1: depth from stereo, of a scale of its own in each scene; the nearest 1 % and farthest 2 % go.

    Raises:
        InputError: a file of ordinal labels (whole numbers, such as -1), which the set stores under the same key.
    """
    depth = read_hdf5(label, "depth")
    labelled = depth[np.isfinite(depth) & (depth > _NO_DEPTH)]
    if not labelled.size or (depth < 0).any() or (depth == np.rint(depth)).all():
        raise InputError(f"{label}: holds ordinal labels, or none, instead of depth; it cannot be trained on")
    low, high = np.percentile(labelled, [1, 98])
    image = label.parents[1] / "imgs" / f"{label.stem}.jpg"
    return image, *depth_to_disparity(np.where((depth >= low) & (depth <= high), depth, 0))


def tartanair(label: Path) -> Labels:
    """TartanAir v1: metres; what is farther than 10 km is sky."""
    depth = read_npy(label)
    image = label.parents[1] / "image_left" / f"{label.stem.removesuffix('_depth')}.png"
    return image, *depth_to_disparity(depth, sky=depth > _TARTANAIR_SKY)


def hypersim(label: Path) -> Labels:
    """Hypersim: metres from the centre of the camera, made planar with the released code's intrinsics; NaN is none."""
    distance = read_hdf5(label, "dataset")
    height, width = distance.shape
    x = (np.arange(width) - (width - 1) / 2) * _HYPERSIM_WIDTH / width
    y = (np.arange(height)[:, None] - (height - 1) / 2) * _HYPERSIM_HEIGHT / height
    depth = distance / np.sqrt((x / _HYPERSIM_FOCAL) ** 2 + (y / _HYPERSIM_FOCAL) ** 2 + 1)
    folder = label.parents[1] / label.parent.name.replace("geometry_hdf5", "final_preview")
    return folder / label.name.replace("depth_meters.hdf5", "tonemap.jpg"), *depth_to_disparity(depth)


def vkitti2(label: Path) -> Labels:
    """Virtual KITTI 2: uint16 centimetres, the largest of which is sky."""
    centimetres = read_png(label)
    image = label.parents[2] / "rgb" / label.parent.name / f"rgb{label.stem.removeprefix('depth')}.jpg"
    return image, *depth_to_disparity(centimetres / 100, sky=centimetres == _VKITTI2_SKY)


def nyuv2(label: Path) -> Labels:
    """NYUv2 as BTS packs it: uint16 millimetres. Recipes for zero-shot models leave it out: papers measure on it."""
    image = label.with_name(f"rgb{label.stem.removeprefix('sync_depth')}.jpg")
    return image, *depth_to_disparity(read_png(label) / 1000)


def kitti(label: Path) -> Labels:
    """KITTI, left colour camera: uint16 / 256 m, sparse. Recipes for zero-shot models leave it out, as NYUv2."""
    drive, root = label.parents[3].name, label.parents[6]
    # A drive is named by its date and number.
    image = root / "raw" / drive[:10] / drive / "image_02" / "data" / label.name
    return image, *depth_to_disparity(read_png(label) / 256)


class Layout(NamedTuple):
    """How one set lies on disk: how to read a label, what people must have where, and glob patterns of the labels."""

    read: Callable[[Path], Labels]
    files: str
    labels: tuple[str, ...]


_DIML_LABELS = ("*/depth_filled/*_depth_filled.png", "depthmap/*.png", "*/*/*/up_png/*.png", "*/*/depth/*_depth.png")
_MEGADEPTH_LABELS = "*/dense*/depths/*.h5"
_TARTANAIR_LABELS = "P*/depth_left/*_left_depth.npy"

LAYOUTS = {
    "blendedmvs": Layout(
        blendedmvs,
        "<scene>/blended_images/N.jpg and <scene>/rendered_depth_maps/N.pfm",
        ("*/rendered_depth_maps/*.pfm",),
    ),
    # HR and LR hold the same images in two sizes.
    "diml": Layout(
        diml,
        "<scene>/{color/N_c.png, depth_filled/N_depth_filled.png} or {outleft, depthmap, confidencemap}/N.png, both "
        "also in HR/, or <scene>/<date>/<batch>/{col/N_c.png, up_png/N_*.png} or <date>/<batch>/{left/N_left.png, "
        "depth/N_depth.png, conf/N_conf.png}",
        _DIML_LABELS + tuple(f"HR/{pattern}" for pattern in _DIML_LABELS),
    ),
    "hrwsi": Layout(
        hrwsi,
        "train/{imgs/N.jpg, gts/N.png, valid_masks/N.png}; for the validation part give DIR/val",
        ("train/gts/*.png", "gts/*.png"),
    ),
    "irs": Layout(irs, "<kind>/<scene>/{l_N.png, d_N.exr}", ("*/*/d_*.exr", "IRSDataset/*/*/d_*.exr")),
    "megadepth": Layout(
        megadepth,
        "<number>/dense<number>/{imgs/N.jpg, depths/N.h5}",
        (_MEGADEPTH_LABELS, f"phoenix/S6/zl548/MegaDepth_v1/{_MEGADEPTH_LABELS}"),
    ),
    # Every environment but `amusement`, where the sky is a dome of geometry.
    "tartanair": Layout(
        tartanair,
        "<environment>/{Easy,Hard}/P<number>/{image_left/N_left.png, depth_left/N_left_depth.npy}",
        tuple(f"{name}/*/{_TARTANAIR_LABELS}" for name in ("[!a]*", "a[!m]*")),
    ),
    "hypersim": Layout(
        hypersim,
        "<scene>/images/{scene_cam_C_final_preview/frame.N.tonemap.jpg, scene_cam_C_geometry_hdf5/frame.N.depth_meters."
        "hdf5}",
        ("*/images/scene_cam_*_geometry_hdf5/frame.*.depth_meters.hdf5",),
    ),
    # The papers count the frames of one camera; the other stands half a metre beside it.
    "vkitti2": Layout(
        vkitti2,
        "Scene<number>/<variant>/frames/{rgb/Camera_0/rgb_N.jpg, depth/Camera_0/depth_N.png}",
        ("Scene*/*/frames/depth/Camera_0/depth_*.png",),
    ),
    "nyuv2": Layout(nyuv2, "<scene>/{rgb_N.jpg, sync_depth_N.png}", ("*/sync_depth_*.png",)),
    "kitti": Layout(
        kitti,
        "raw/<date>/<drive>/image_02/data/N.png and "
        "data_depth_annotated/{train,val}/<drive>/proj_depth/groundtruth/image_02/N.png",
        ("data_depth_annotated/*/*/proj_depth/groundtruth/image_02/*.png",),
    ),
}


@dataclass
class LabeledSet:
    """One of the public sets, in a folder: `len(set)` pairs and `set.read(i)`, sorted by the names of the label files.

    Making one only lists names; an image that is missing comes up when its pair is read.

    Raises:
        InputError: no such folder, or none of the set's labels in it.
    """

    name: str
    root: Path
    files: list[str] = field(init=False)

    def __post_init__(self):
        if not Path(self.root).is_dir():
            raise InputError(f"{self.root}: no such folder")
        layout = LAYOUTS[self.name]
        found = {file for pattern in layout.labels for file in glob(pattern, root_dir=self.root)}
        self.files = sorted(file for file in found if not file.endswith(SKY_SUFFIX))
        if not self.files:
            raise InputError(f"{self.root}: holds nothing of {self.name}, which has {layout.files}")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> Pair:
        """Pair number `i`; its name is the image's path below the root. Sky of a mask is filled in.

        Raises:
            InputError: a file that is missing, damaged, or of another size than its partner.
        """
        path, disparity, valid = LAYOUTS[self.name].read(Path(self.root) / self.files[i])
        image = np.asarray(open_image(path))
        if disparity.shape != image.shape[:2]:
            raise InputError(f"{path}: the image is {image.shape[:2]}, its label is {disparity.shape}")
        disparity = np.where(valid, disparity, 0).astype(np.float32)
        valid = valid | _sky(path, disparity.shape)
        return Pair(path.relative_to(self.root).as_posix(), image, disparity, valid)


def _sky(image: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Where an image's mask says sky, bool [H, W]. Pixels without a label have disparity 0, so they need no more."""
    path = image.with_suffix(SKY_SUFFIX)
    return _mask(path, shape) == 255 if path.exists() else np.zeros(shape, bool)


def open_labeled(spec: str) -> LabeledSet | PairFolder:
    """The labelled set that `NAME=DIR` names, such as `megadepth=data/MegaDepth`.

    NAME is one of `LAYOUTS`, or `pairs` or `scenes` for a folder of RGB-D pairs, in scenes with sky where not valid.

    Raises:
        InputError: an unknown name, or a folder without the set's files.
    """
    name, _, folder = spec.partition("=")
    names = [*LAYOUTS, "pairs", "scenes"]
    if name not in names:
        nearest = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0)[0]
        raise InputError(f"{spec}: no labelled set is called '{name}'; the nearest is '{nearest}' (give NAME=DIR)")
    if not folder:
        raise InputError(f"{spec}: has no folder; give {name}=DIR")
    if name in LAYOUTS:
        return LabeledSet(name, Path(folder))
    return PairFolder(Path(folder), scenes=name == "scenes")
