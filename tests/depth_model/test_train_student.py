"""The student: what it learns from, and that it goes on bit for bit."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForDepthEstimation, Dinov2Config, Dinov2Model

from depth_model import DepthEstimator
from depth_model.encoder import Student, frozen_features, initialise_from_encoder, load_encoder
from depth_model.errors import InputError
from depth_model.modeling import build_model
from depth_model.train_student import Config, main
from tests.depth_model.conftest import rows


@pytest.fixture
def config(scenes, photos, labels, encoder, tmp_path):
    return Config(
        out=tmp_path / "run",
        preset="tiny",
        encoder=str(encoder),
        lower_bound=28,
        scenes=(scenes,),
        images=f"images={photos}",
        labels=labels,
        validation=(scenes,),
        validation_count=2,
        batch=2,
        unlabeled_batch=4,
        steps=4,
        encoder_lr=1e-4,
        decoder_lr=1e-3,
        ema=0.9,
        save_every=2,
        log_every=1,
        validate_every=4,
        tracker="",
    )


def same(one, other):
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_killed_run_goes_on_bit_for_bit_and_opens_in_transformers(config, tmp_path):
    main(config)
    straight, killed = config.out, tmp_path / "killed"
    shutil.copytree(straight, killed)
    shutil.rmtree(killed / "checkpoints" / "step-00000004")
    shutil.rmtree(killed / "model")
    main(replace(config, out=killed, resume="must"))
    for name in ("model", "ema", "optimizer"):
        assert same(*(out / "checkpoints" / "step-00000004" / f"{name}.safetensors" for out in (straight, killed)))
    assert rows(straight) == rows(killed)
    log = rows(straight)
    assert all({"labeled", "unlabeled", "features", "loss"} <= row.keys() for row in log[:4])
    terms = [log[0][name] for name in ("labeled", "unlabeled", "features")]
    assert log[0]["loss"] == pytest.approx(sum(terms) / 3), "the plain average"
    assert log[0]["features"] == 0, "the student begins where the frozen encoder is"

    estimator = DepthEstimator.from_pretrained(straight / "model")
    stock = AutoModelForDepthEstimation.from_pretrained(straight / "model")
    pixels = torch.randn(1, 3, 28, 42)
    with torch.no_grad():
        assert torch.equal(stock(pixel_values=pixels).predicted_depth, estimator.predict_tensor(pixels))


def test_accumulation_changes_nothing_but_rounding(config, tmp_path):
    main(replace(config, steps=2, validation=()))
    main(replace(config, steps=2, validation=(), out=tmp_path / "parts", accumulate=2))
    whole, parts = rows(config.out), rows(tmp_path / "parts")
    assert [row["loss"] for row in parts] == pytest.approx([row["loss"] for row in whole], rel=1e-4)


def test_pseudo_labels_alone_as_in_v2(config):
    v2 = {"batch": 0, "scenes": (), "version": "v2", "gradient_weight": 2.0, "discard": 0.1}
    main(replace(config, **v2, steps=2, validation=()))
    assert all("labeled" not in row and row["unlabeled"] > 0 for row in rows(config.out))


def test_without_perturbations_and_alignment(config):
    main(replace(config, perturb=False, align=False, encoder=None, steps=1, validation=()))
    assert rows(config.out)[0].keys() >= {"labeled", "unlabeled"} and "features" not in rows(config.out)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": ""}, "--images is missing"),
        ({"encoder": None}, "--encoder is missing"),
        ({"scenes": ()}, "no labelled images"),
        ({"batch": -1}, "--batch must be at least 0"),
        ({"unlabeled_batch": 0}, "--unlabeled-batch must be at least 1"),
        ({"discard": 1.0}, "--discard must be"),
        ({"loss": "least-squares"}, "--loss"),
        ({"accumulate": 3}, "does not divide by 1 processes times 3 parts"),
        ({"encoder": "nowhere"}, "--encoder nowhere: no such folder"),
        ({"preset": "small"}, "an encoder 192 wide with 8 layers .* does not fit"),
    ],
)
def test_wrong_settings_are_refused(config, change, said):
    with pytest.raises(InputError, match=said):
        main(replace(config, **change))


def test_the_students_features_are_those_of_the_encoder(encoder):
    frozen, model = load_encoder(str(encoder)), build_model("tiny", "v1")
    initialise_from_encoder(model, frozen)
    student, pixels = Student(model, 192).eval(), torch.randn(2, 3, 28, 42)
    with torch.no_grad():
        disparity, features = student(pixels)
        assert torch.equal(disparity, model(pixel_values=pixels).predicted_depth)
    assert features.shape == (2, 6, 192)
    torch.testing.assert_close(features, frozen_features(frozen, pixels))
    assert not any(p.requires_grad for p in frozen.parameters())
    assert Student(model, 64)(pixels)[1].shape == (2, 6, 64), "projected to another width"


def test_a_damaged_encoder_is_refused(encoder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(encoder, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a DINOv2 encoder that can be loaded"):
        load_encoder(str(broken))
    Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path / "e"
    )
    with pytest.raises(InputError, match="does not fit a model 192 wide"):
        initialise_from_encoder(build_model("tiny"), load_encoder(str(tmp_path / "e")))
