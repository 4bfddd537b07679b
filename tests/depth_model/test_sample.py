"""Crops, and samples for training."""

import numpy as np
import pytest
import torch
from PIL import Image

from depth_model.data.labeled import Pair, PairFolder
from depth_model.data.sample import LabeledSamples, PseudoLabeledSamples, random_crop
from depth_model.errors import InputError
from tests.depth_model.test_labeled import DAMAGES, damage, write_pairs


def samples(folder, sizes=((28, 42),), repeat=1, jitter=0.2, seed=0):
    return LabeledSamples([(PairFolder(folder), repeat)], list(sizes), seed, 0.5, jitter)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_pair_is_replaced_and_listed(how, tmp_path):
    damage(write_pairs(tmp_path), how)
    replaced = samples(tmp_path)[0, 0, 0]
    assert replaced["valid"].any() and replaced["problem"].startswith(str(tmp_path / "0."))
    assert not samples(tmp_path)[0, 0, 1]["problem"]
    assert torch.equal(replaced["pixel_values"], samples(tmp_path)[0, 0, 0]["pixel_values"]), "always by the same one"


def test_a_pair_without_depth_is_replaced_and_a_set_of_them_is_refused(tmp_path):
    write_pairs(tmp_path, 2)
    np.savez(tmp_path / "0.npz", depth=np.ones((40, 60)), valid=np.zeros((40, 60), bool))
    assert "0.png: no valid depth" in samples(tmp_path)[0, 0, 0]["problem"]
    np.savez(tmp_path / "1.npz", depth=np.ones((40, 60)), valid=np.zeros((40, 60), bool))
    with pytest.raises(InputError, match="one after another, cannot be used"):
        samples(tmp_path)[0, 0, 0]


def test_sets_are_concatenated_and_memory_changes_nothing(tmp_path):
    one, two = (PairFolder(write_pairs(tmp_path / name, count)) for name, count in (("a", 2), ("b", 3)))
    kept, read = (LabeledSamples([(one, 2), (two, 1)], [(28, 28)], 0, 0.5, 0.2, memory) for memory in (1 << 30, 0))
    assert len(kept) == len(read) == 7
    for _ in range(2):
        for i in range(7):
            assert torch.equal(kept[0, 0, i]["disparity"], read[0, 0, i]["disparity"])
    assert len(kept.memory.held) == 5 and not read.memory.held
    some = LabeledSamples([(one, 1)], [(28, 28)], 0, memory=kept.memory.used // 4)
    assert [len(some[0, 0, i]["problem"]) for i in (0, 1)] == [0, 0] and len(some.memory.held) == 1


def test_a_sample_has_its_shapes_and_ranges(tmp_path):
    sample = samples(write_pairs(tmp_path))[0, 0, 0]
    assert sample.pop("problem") == "" and sample.pop("name") == "0.png"
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


class Labels:
    """Pictures whose label says where each pixel is, at half the picture's resolution."""

    def __init__(self, count=4, height=80, width=120):
        self.count, self.height, self.width = count, height, width

    def __len__(self):
        return self.count

    def name(self, i):
        return f"picture {i}"

    def read(self, i):
        if i == 3:
            raise InputError("picture 3: damaged")
        y, x = np.mgrid[: self.height, : self.width].astype(np.float32)
        image = np.stack([2 * x, 2 * y, np.full_like(x, 60 * i)], -1).astype(np.uint8)
        coarse = (y + x / 1000)[::2, ::2] + np.float32(0.5 + 0.0005)
        return Image.fromarray(image), coarse


def shown(sample):
    """A sample's picture as uint8 [h, w, 3]."""
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return ((sample["pixel_values"].permute(1, 2, 0) * std + mean) * 255).round().byte().numpy()


def test_a_clean_pseudo_labelled_sample_keeps_picture_and_label_together():
    sample = PseudoLabeledSamples(Labels(), [(56, 84)], 0, 0.8, perturb=False)[0, 0, 1]
    assert sample["mask"].all() and torch.equal(sample["target_a"], sample["target_b"]) and not sample["problem"]
    rows, picture = sample["target_a"].numpy(), shown(sample)
    assert np.abs(np.floor(rows) - picture[..., 1] / 2)[2:-2, 2:-2].max() <= 2


def test_a_mixed_sample_shows_each_target_where_its_mask_says():
    samples = PseudoLabeledSamples(Labels(3), [(56, 84)], 0, 0.6, cutmix=1.0)
    for epoch in range(6):
        sample = samples[0, epoch, 0]
        assert 0.6 <= sample["mask"].float().mean() < 1
        assert sample["target_a"].shape == sample["target_b"].shape == sample["mask"].shape == (56, 84)
        assert not torch.equal(sample["target_a"], sample["target_b"])
    clean = PseudoLabeledSamples(Labels(3), [(56, 84)], 0, 1.0, perturb=False, cutmix=1.0)
    assert clean[0, 0, 0]["mask"].all(), "without perturbations nothing is mixed"


def test_pseudo_labelled_samples_are_functions_of_their_keys():
    one, other = (PseudoLabeledSamples(Labels(3), [(56, 84)], 4) for _ in range(2))
    other[0, 0, 0]
    assert all(torch.equal(one[2, 1, 1][name], other[2, 1, 1][name]) for name in ("pixel_values", "target_b", "mask"))
    assert not torch.equal(one[2, 1, 1]["pixel_values"], one[2, 2, 1]["pixel_values"])
    mixed = [not one[0, epoch, 0]["mask"].all() for epoch in range(100)]
    assert 30 < sum(mixed) < 70


def test_a_damaged_picture_is_replaced_and_listed():
    assert "picture 3: damaged" in PseudoLabeledSamples(Labels(), [(28, 28)], 0)[0, 0, 3]["problem"]
