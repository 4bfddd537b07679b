"""Sky masks: a small SegFormer with random weights looks at a folder of pictures."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from depth_model.config import parse
from depth_model.data.readers import open_labeled
from depth_model.errors import InputError
from depth_model.label_sky import Config, find_images, main, sky_mask

LABELS = ("wall", "building", "sky", "tree")


def save_segmenter(folder, labels=LABELS, sky_bias=0.0):
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=8,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    model = SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(50)
        model.decode_head.classifier.bias.zero_()[LABELS.index("sky")] = sky_bias
    model.save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("segmenter"))


def photo(path, height=48, width=64, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def mask_of(path):
    with Image.open(path.with_suffix(".sky.png")) as mask:
        assert mask.format == "PNG" and mask.mode == "L"
        return np.asarray(mask)


def test_masks_are_where_the_model_sees_sky(segmenter, tmp_path, capsys):
    sizes = {"a.jpg": (48, 64), "b/c/d.tonemap.png": (70, 40), "b/e.JPG": (33, 99)}
    for seed, (name, size) in enumerate(sizes.items()):
        photo(tmp_path / name, *size, seed=seed)
    main(Config(images=tmp_path, model=str(segmenter), batch=2, device="cpu"))
    model = SegformerForSemanticSegmentation.from_pretrained(segmenter).eval()
    processor = SegformerImageProcessorPil.from_pretrained(segmenter)
    share = []
    for name, size in sizes.items():
        mask = mask_of(tmp_path / name)
        assert mask.shape == size and set(np.unique(mask)) <= {0, 255}
        with torch.no_grad(), Image.open(tmp_path / name) as image:
            output = model(**processor(images=image.convert("RGB"), return_tensors="pt"))
        stock = processor.post_process_semantic_segmentation(output, target_sizes=[size])[0].numpy()
        assert ((mask == 255) == (stock == 2)).mean() > 0.97
        share.append((mask == 255).mean())
    assert 0.02 < np.mean(share) < 0.98
    assert "3 masks written, 0 images skipped" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.partial"))


def test_masks_that_are_there_stay_and_are_no_images(segmenter, tmp_path, capsys):
    photo(tmp_path / "a.jpg"), photo(tmp_path / "b.jpg")
    Image.new("L", (64, 48), 7).save(tmp_path / "a.sky.png")
    for written in (1, 0):
        main(Config(images=tmp_path, model=str(segmenter), device="cpu"))
        assert f"{written} masks written" in capsys.readouterr().out
    assert (mask_of(tmp_path / "a.jpg") == 7).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.sky.png", "b.jpg", "b.sky.png"]
    assert find_images(tmp_path) == [tmp_path / "a.jpg", tmp_path / "b.jpg"]


@pytest.mark.parametrize("batch", [1, 8])
def test_unreadable_images_are_listed_and_passed_over(batch, segmenter, tmp_path, capsys):
    for name in ("a.jpg", "b.jpg", "c.png"):
        photo(tmp_path / name)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:200])
    (tmp_path / "c.png").write_text("not found")
    main(Config(images=tmp_path, model=str(segmenter), batch=batch, device="cpu"))
    said = capsys.readouterr().out
    assert f"skipped {tmp_path / 'b.jpg'}" in said and f"skipped {tmp_path / 'c.png'}" in said
    assert "1 masks written, 2 images skipped" in said
    assert sorted(path.name for path in tmp_path.glob("*.sky.png")) == ["a.sky.png"]


def test_readers_take_the_masks(tmp_path):
    root = tmp_path / "nyuv2"
    photo(root / "street/rgb_00001.jpg")
    depth = np.full((48, 64), 2000, np.uint16)
    depth[:20] = 0
    Image.fromarray(depth).save(root / "street/sync_depth_00001.png")
    all_sky = save_segmenter(tmp_path / "model", sky_bias=1e4)
    main(Config(images=root, model=str(all_sky), device="cpu"))
    reader = open_labeled(f"nyuv2={root}")
    pair = reader.read(0)
    assert len(reader) == 1 and pair.valid.all()
    assert (pair.disparity[:20] == 0).all() and (pair.disparity[20:] == 0.5).all()


def test_sky_must_lead_over_every_other_class():
    logits = torch.zeros(4, 8, 8)
    logits[2, :4], logits[0, :2, :4], logits[3, 2:, 4:] = 1, 3, 3
    mask = sky_mask(logits, 2, 80, 160)
    expected = np.zeros((8, 8), bool)
    expected[:2, 4:], expected[2:4, :4] = True, True
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask[5::10, 10::20] == 255, expected)


def break_model(folder, how):
    weights = folder / "model.safetensors"
    match how:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "pickled":
            torch.save(load_file(weights), folder / "pytorch_model.bin")
            weights.unlink()
        case "no config":
            (folder / "config.json").unlink()
        case "no preprocessing":
            (folder / "preprocessor_config.json").unlink()
        case "another model":
            (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
        case "weights missing" | "not finite":
            tensors = load_file(weights)
            name = "decode_head.classifier.weight"
            missing = how == "weights missing"
            tensors = (
                {k: v for k, v in tensors.items() if k != name} if missing else tensors | {name: tensors[name] / 0}
            )
            save_file(tensors, weights, metadata={"format": "pt"})
        case "remote code":
            fields = json.loads((folder / "config.json").read_text())
            fields |= {"model_type": "own", "auto_map": {"AutoModelForSemanticSegmentation": "own.Model"}}
            (folder / "config.json").write_text(json.dumps(fields))
            (folder / "own.py").write_text("raise SystemExit('was run')")


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "pickled",
        "no config",
        "no preprocessing",
        "another model",
        "weights missing",
        "not finite",
        "remote code",
    ],
)
def test_models_that_cannot_be_used(how, tmp_path):
    photo(tmp_path / "images/a.jpg")
    folder = save_segmenter(tmp_path / "model")
    break_model(folder, how)
    with pytest.raises(InputError, match=rf"--model {folder}: .*") as caught:
        main(Config(images=tmp_path / "images", model=str(folder), device="cpu"))
    assert "\n" not in str(caught.value)


def test_a_model_without_sky_is_refused(tmp_path):
    photo(tmp_path / "images/a.jpg")
    folder = save_segmenter(tmp_path / "model", labels=("wall", "floor", "skyscraper", "tree"))
    with pytest.raises(InputError, match="has no class called sky"):
        main(Config(images=tmp_path / "images", model=str(folder), device="cpu"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images": "absent"}, "absent: no such folder"),
        ({"images": "empty"}, "empty: holds no images"),
        ({"batch": 0}, "--batch must be at least 1"),
        ({"device": "warp"}, "--device warp is not available"),
        ({"model": "no/such/model"}, "--model no/such/model: neither a folder nor"),
        ({"model": "some-org/some-model"}, "--model some-org/some-model: neither a folder nor"),
    ],
)
def test_wrong_requests(settings, said, segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    photo(tmp_path / "images/a.jpg")
    (tmp_path / "empty").mkdir()
    given = {"images": "images", "model": str(segmenter), "device": "cpu"} | settings
    with pytest.raises(InputError, match=said):
        main(Config(**given | {"images": tmp_path / given["images"]}))


def test_no_torchvision_is_needed(segmenter, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    photo(tmp_path / "a.jpg")
    main(Config(images=tmp_path, model=str(segmenter), device="cpu"))
    assert mask_of(tmp_path / "a.jpg").shape == (48, 64)


def test_the_command_line(tmp_path):
    config = parse(Config, ["--images", str(tmp_path), "--batch", "3"], "label-sky")
    assert config == Config(images=tmp_path, batch=3) and config.model.startswith("nvidia/segformer")
    with pytest.raises(InputError, match="missing --images"):
        parse(Config, [], "label-sky")
