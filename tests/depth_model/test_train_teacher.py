"""Supervised training end to end, on a few small scenes."""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from depth_model import DepthEstimator
from depth_model.errors import InputError
from depth_model.train_teacher import Config, main
from tests.depth_model.conftest import rows


@pytest.fixture
def config(scenes, tmp_path):
    return Config(
        out=tmp_path / "run",
        preset="tiny",
        version="v2",
        scenes=(scenes,),
        validation=(scenes,),
        validation_count=2,
        lower_bound=28,
        steps=6,
        batch=2,
        aspects=(1.0, 2.0),
        jitter=0.2,
        encoder_lr=5e-4,
        decoder_lr=5e-4,
        gradient_weight=0.5,
        ema=0.9,
        save_every=3,
        log_every=1,
        validate_every=3,
        least_crop=0.6,
        tracker="",
    )


def same(one, other):
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_killed_run_goes_on_bit_for_bit(config, tmp_path):
    main(config)
    straight, killed = config.out, tmp_path / "killed"
    shutil.copytree(straight, killed)
    # What a kill after step 3 leaves: a checkpoint of step 3, a log that went further, and no model.
    shutil.rmtree(killed / "checkpoints" / "step-00000006")
    shutil.rmtree(killed / "model")
    main(replace(config, out=killed, resume="must"))
    for name in ("model", "ema", "optimizer"):
        files = [out / "checkpoints" / "step-00000006" / f"{name}.safetensors" for out in (straight, killed)]
        assert same(*files), name
    assert same(straight / "model" / "model.safetensors", killed / "model" / "model.safetensors")
    assert rows(straight) == rows(killed)
    assert [row["step"] for row in rows(straight)] == [1, 2, 3, 3, 4, 5, 6, 6]

    model = DepthEstimator.from_pretrained(straight / "model")
    assert model(Image.new("RGB", (50, 40), "grey")).values.shape == (40, 50)
    assert model.preprocess(Image.new("RGB", (50, 50))).shape == (1, 3, 28, 28), "as trained"
    name = config.validation[0].name
    assert all((straight / file).stat().st_size for file in ("config.yaml", "curves.png", f"grid_{name}.png"))
    assert {f"{name}_abs_rel", f"{name}_delta1", f"{name}_loss"} <= rows(straight)[3].keys()

    with pytest.raises(InputError, match="decoder_lr: the run was started with 0.0005, now it is 0.001"):
        main(replace(config, decoder_lr=1e-3))
    with pytest.raises(InputError, match="--resume never"):
        main(replace(config, resume="never"))
    main(replace(config, log_every=5))
    assert rows(straight) == rows(killed), "a finished run has nothing left to do"


def test_numbers_go_to_tensorboard_out_of_the_box(config):
    main(replace(config, steps=1, validation=(), tracker="tensorboard"))
    assert list((config.out / "depth_model").glob("events.*"))
    with pytest.raises(InputError, match="--tracker nonsense"):
        main(replace(config, tracker="nonsense", resume="auto"))


def test_a_run_starts_from_a_model_and_leaves_out_bad_files(config, scenes, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(scenes, damaged)
    for i in range(6):
        if i != 2:
            (damaged / f"{i:06d}.npz").write_bytes(b"PK")
    first = replace(config, scenes=(damaged,), steps=3, validation=(damaged,), validation_count=6)
    main(first)
    said = capsys.readouterr().out
    assert "skipped" in said and "000000.npz" in said and "000002.npz" not in said
    assert rows(first.out)[-1][f"{damaged.name}_images"] == 1
    main(replace(config, out=tmp_path / "second", init=first.out / "model", steps=1, encoder_lr=0.0, decoder_lr=0.0))
    assert same(tmp_path / "second" / "model" / "model.safetensors", first.out / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"preset": "huge"}, "--preset huge: choose one of tiny"),
        ({"scenes": ()}, "give --labeled NAME=DIR, --pairs DIR or --scenes DIR"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"batch": 0}, "--batch must be at least 1"),
        ({"aspects": (0.0,)}, "--aspects must be ratios"),
        ({"least_crop": 1.5}, "--least-crop must be"),
        ({"resume": "must"}, "--resume must: .* holds no complete checkpoint"),
        ({"resume": "yes"}, "--resume takes auto, must or never"),
    ],
)
def test_wrong_settings_are_refused(config, change, said):
    with pytest.raises(InputError, match=said):
        main(replace(config, **change))
    assert not config.out.exists()


def test_wrong_folders_are_refused(config, scenes, tmp_path):
    with pytest.raises(InputError, match="index.json: cannot be read"):
        main(replace(config, pairs=(tmp_path / "none",)))
    with pytest.raises(InputError, match="--pairs-holdout 6 leaves nothing of the 6 pairs"):
        main(replace(config, pairs=(scenes,), pairs_holdout=6))


@pytest.mark.slow
def test_training_learns(config):
    main(replace(config, steps=120, batch=8, aspects=(1.0,), jitter=0.0, save_every=120, validate_every=120))
    losses = [row["loss"] for row in rows(config.out) if "loss" in row]
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])
