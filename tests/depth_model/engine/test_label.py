"""Pseudo-labels: what is in the shards, and that the command goes on where it stopped."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from depth_model import DepthEstimator
from depth_model.data.pseudo import PseudoLabeled
from depth_model.engine.label import Config, main
from depth_model.errors import InputError


@pytest.fixture
def config(photos, teacher, tmp_path):
    return Config(images=f"images={photos}", teacher=str(teacher), out=tmp_path / "labels", per_shard=3, batch=2)


def shards(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != "labels.json"}


def test_a_label_is_the_teachers_map_in_16_bits(labels, photos, teacher):
    pseudo = PseudoLabeled(f"images={photos}", labels)
    estimator = DepthEstimator.from_pretrained(teacher)
    assert len(pseudo) == 7 and pseudo.name(0) == "b/000000.png"
    for i in range(len(pseudo)):
        image, disparity = pseudo.read(i)
        assert image.size == Image.open(photos / pseudo.name(i)).size
        expected = estimator.predict_tensor(estimator.preprocess(image))[0].numpy()
        np.testing.assert_allclose(disparity, expected, atol=np.ptp(expected) / 65000)


def test_shards_are_plain_tars_with_16_bit_pngs_and_a_quarantine(labels):
    kinds = {
        0: (".json", ".npy", ".quarantine.json", ".tar"),
        1: (".json", ".npy", ".tar"),
        2: (".json", ".npy", ".tar"),
    }
    files = [f"labels-{unit:06d}{kind}" for unit, suffixes in kinds.items() for kind in suffixes]
    assert sorted(file.name for file in labels.iterdir()) == sorted([*files, "labels.json"])
    with tarfile.open(labels / "labels-000000.tar", "r:") as shard:
        names = shard.getnames()
        assert sorted(names) == ["b/000000.png.png", "b/000001.png.png"]
        with Image.open(io.BytesIO(shard.extractfile(names[0]).read())) as picture:
            assert picture.mode == "I;16" and "depth-control" in picture.info
    quarantine = json.loads((labels / "labels-000000.quarantine.json").read_text())
    assert list(quarantine) == ["a.jpg"] and "not an image" in quarantine["a.jpg"]
    made_by = json.loads((labels / "labels.json").read_text())
    assert made_by["images"] == 8 and len(made_by["teacher_sha256"]) == 64


def test_what_is_missing_is_made_again_with_the_same_bytes(config, labels):
    main(config)
    straight = shards(config.out)
    assert straight == shards(labels), "batches change nothing"
    (config.out / "labels-000001.json").unlink()
    (config.out / "labels-000001.tar.tmp-0").write_bytes(b"half")
    (config.out / "labels-000000.tar").write_bytes(b"kept")
    main(config)
    assert shards(config.out) == straight | {"labels-000000.tar": b"kept"}, "and nothing half is left"


def test_labels_of_another_teacher_or_source_are_not_mixed(config, labels, photos, scenes):
    with pytest.raises(InputError, match="holds labels of other per_shard"):
        main(replace(config, out=labels, per_shard=4))
    with pytest.raises(InputError, match="teacher_sha256"):
        main(replace(config, out=labels, teacher="embedded"))
    with pytest.raises(InputError, match="labels of 8 images, the source has 6"):
        PseudoLabeled(f"images={scenes}", labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": ""}, "--images is missing"),
        ({"images": "photos=here"}, "unknown set 'photos'"),
        ({"teacher": "nowhere"}, "nowhere: no such file or folder"),
        ({"batch": 0}, "must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(config, change, said):
    with pytest.raises(InputError, match=said):
        main(replace(config, **change))
    assert not config.out.exists()


def test_a_folder_without_labels_is_refused(photos, tmp_path):
    with pytest.raises(InputError, match="no labels there"):
        PseudoLabeled(f"images={photos}", tmp_path)
