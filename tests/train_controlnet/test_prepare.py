"""The training cache."""

import errno
import hashlib
import io
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionControlNetPipeline
from PIL import Image

from depth_control import to_control
from depth_model import DepthEstimator, DepthMap
from depth_model.data.labeled import PairFolder
from depth_model.data.shards import ShardWriter
from depth_model.errors import InputError, RunError
from tests import tiny
from train_controlnet import store
from train_controlnet.cache import Cache, from_stored
from train_controlnet.prepare import Config, main


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Pictures of several aspects with captions beside them, one grey, one a copy, one damaged, one without caption."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate([(96, 64), (64, 64), (64, 96), (200, 60), (80, 70), (64, 64)]):
        blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        blocks[..., 1:] = blocks[..., :1] if i == 4 else blocks[..., 1:]
        image = Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {('red', 'blue')[i % 2]} room\n")
    shutil.copy(folder / "1.png", folder / "copy.png")
    (folder / "copy.txt").write_text("blue ice")
    shutil.copy(folder / "2.png", folder / "silent.png")
    (folder / "damaged.png").write_bytes((folder / "0.png").read_bytes()[:200])
    (folder / "damaged.txt").write_text("a room")
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return tiny.save_pipeline(folder / "base", "kl"), tiny.save_estimator(folder / "depth")


@pytest.fixture
def photo_config(photos, models, tmp_path):
    return Config(
        images=photos, base=str(models[0]), depth_model=str(models[1]), out=tmp_path / "cache", device="cpu", batch=2
    )


def tensors(out):
    """Every tensor by its key, with the file it is in."""
    found = store.Store(out / "tensors")
    return {key: found[key].clone() for key in found._files}


def sample(cache, name):
    return next(s for bucket in cache.buckets for s in bucket if s.name == name)


def test_scenes_keep_their_size_and_exact_depth(cache_config):
    cache, pairs = Cache(cache_config.out), PairFolder(cache_config.scenes, scenes=True)
    vae = AutoencoderTiny.from_pretrained(cache_config.vae)
    assert len(cache) == len(cache.captions) == 6 and cache.latent_channels == 4 and not cache.sampled
    assert [bucket[0].bucket for bucket in cache.buckets] == ["32x32", "32x48"]
    one, pair = cache.buckets[1][1], pairs.read(3)  # the second of its size
    assert one.caption == pairs.rows[3]["caption"] and one.name == pair.name
    control = to_control(DepthMap(pair.disparity, "disparity"))
    np.testing.assert_allclose(from_stored(cache.store[one.controls[0][0]]), control, atol=1e-3)
    for mirrored in (0, 1):
        image = (pair.image[:, ::-1] if mirrored else pair.image).copy()
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            latents = vae.encode(pixels).latents * vae.config.scaling_factor
        torch.testing.assert_close(cache.store[one.latents[0][mirrored]].float(), latents, atol=5e-3, rtol=5e-3)


def test_a_batch_is_a_function_of_seed_and_step(cache_config):
    cache = Cache(cache_config.out, seed=0)
    batch, again = cache.batch(7, 5), Cache(cache_config.out, seed=0).batch(7, 5)
    latents, controls = batch["latents"], batch["controls"]
    assert len(batch["captions"]) == 5 and latents.dtype == controls.dtype == torch.float32
    assert latents.shape[:2] == (5, 4) and controls.shape[:2] == (5, 3) and "text" not in batch
    assert controls.shape[2] == 8 * latents.shape[2] and controls.shape[3] == 8 * latents.shape[3]
    assert 0 <= controls.min() and controls.max() <= 1 and (controls[:, 0] == controls[:, 2]).all()
    assert torch.equal(latents, again["latents"]) and torch.equal(controls, again["controls"])
    assert batch["name"] == again["name"]
    assert {tuple(cache.batch(step, 5)["latents"].shape) for step in range(12)} == {(5, 4, 4, 4), (5, 4, 4, 6)}
    assert any(batch["name"] != Cache(cache_config.out, seed).batch(7, 5)["name"] for seed in (1, 2, 3))


def test_the_batches_of_the_embedded_recipe_stay_what_they_were(cache_config):
    # The order, the choice of size and the mirroring, by the draws that made the packaged models.
    cache = Cache(cache_config.out, seed=3)
    for step in range(6):
        rng = np.random.default_rng([3, 4, step])
        bucket = cache.buckets[int(rng.choice(2, p=cache.shares))]
        mirrored = rng.integers(2, size=4)
        batch = cache.batch(step, 4)
        for name, latent, control, flip in zip(
            batch["name"], batch["latents"], batch["controls"][:, 0], mirrored, strict=True
        ):
            (one,) = [s for s in bucket if s.name == name]
            assert torch.equal(cache.store[one.latents[0][flip]][0].float(), latent)
            stored = torch.from_numpy(from_stored(cache.store[one.controls[0][0]]))
            assert torch.equal(control, stored.flip(-1) if flip else stored)


def test_photos_go_to_buckets_and_what_is_wrong_is_listed(photo_config, photos, models, capsys):
    main(photo_config)
    said = capsys.readouterr().out
    skipped = json.loads((photo_config.out / "skipped.json").read_text())
    assert set(skipped) == {"damaged.png", "silent.png"} and "has no caption" in skipped["silent.png"]
    assert "skipped 2" in said and "damaged.png" in said and "7 images" in said
    found = json.loads((photo_config.out / "lint.json").read_text())
    assert found["grey"] == ["4.png"] and found["duplicated"] == ["copy.png"] and "3.png" in found["mis-sized"]
    cache = Cache(photo_config.out)
    assert {s.name: s.bucket for b in cache.buckets for s in b} == {
        **{"0.png": "48x80", "1.png": "64x64", "2.png": "80x48", "3.png": "48x80", "4.png": "56x72", "5.png": "64x64"},
        "copy.png": "64x64",
    }
    one, image = sample(cache, "1.png"), Image.open(photos / "1.png")
    estimator = DepthEstimator.from_pretrained(models[1])
    np.testing.assert_allclose(from_stored(cache.store[one.controls[0][0]]), to_control(estimator(image)), atol=2e-3)
    wide = sample(cache, "3.png")
    assert wide.time_ids[0][:2] == [60, 200] and wide.time_ids[0][2] == 0 and wide.time_ids[0][3] > 0


def test_latents_are_a_distribution_and_text_is_the_pipelines(photo_config, models):
    main(replace(photo_config, flips=False))
    cache, pipe = Cache(photo_config.out), StableDiffusionControlNetPipeline.from_pretrained(models[0])
    one = sample(cache, "1.png")
    image = np.array(Image.open(photo_config.images / "1.png"))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = pipe.vae.encode(pixels).latent_dist
        text = pipe.encode_prompt(["a blue room", ""], "cpu", 1, False)[0]
    mean, log_variance = cache.store[one.latents[0][0]].float()
    scale = pipe.vae.config.scaling_factor
    torch.testing.assert_close(mean, posterior.mean[0] * scale, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close((0.5 * log_variance).exp(), posterior.std[0] * scale, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(cache.text("a blue room")["text"], text[0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(cache.text("")["text"], text[1], atol=2e-3, rtol=2e-3)
    assert len(one.latents[0]) == 1 and cache.sampled
    # Drawn anew each step, and the same for every share of the batch.
    steps = [s for s in range(40) if "1.png" in cache.batch(s, 4)["name"]][:2]
    drawn = [b["latents"][b["name"].index("1.png")] for b in (cache.batch(s, 4) for s in steps)]
    assert not torch.equal(*drawn)
    whole, part = cache.batch(5, 4, dropout=0.5), cache.batch(5, 4, slice(1, 4, 2), dropout=0.5)
    assert all(torch.equal(whole[key][1::2], part[key]) for key in ("latents", "controls", "text", "time_ids"))
    dropped = [cache.batch(step, 4, dropout=0.5)["captions"].count("") for step in range(50)]
    assert 70 < sum(dropped) < 130 and len(set(dropped)) > 2


def test_preparing_again_makes_only_what_is_missing(photo_config, photos, tmp_path):
    folder = tmp_path / "more"
    shutil.copytree(photos, folder)
    config = replace(photo_config, images=folder)
    main(config)
    first = tensors(config.out)
    for other in (config, replace(config, batch=4, workers=1, seed=5, percentiles=(0.0, 5.0))):
        main(other)
        assert tensors(config.out).keys() == first.keys(), "nothing new, whatever else was asked for"
    Image.open(photos / "2.png").transpose(Image.Transpose.ROTATE_180).save(folder / "new.png")
    (folder / "new.txt").write_text("a blue room")
    main(config)
    assert len(tensors(config.out)) == len(first) + 3  # two latents and a condition; its caption was there
    (folder / "new.txt").write_text("a blue clay room")
    main(replace(config, depth_dtype="uint16"))
    third = tensors(config.out)
    pictures = {hashlib.sha256(file.read_bytes()).digest() for file in folder.glob("?.png")} | {b"new"}
    assert len(third) == len(first) + 3 + 1 + len(pictures)
    assert all(torch.equal(third[key], value) for key, value in first.items())


def test_several_estimators_resolutions_crops_and_percentiles(photo_config, models):
    several = {"depth_model": f"{models[1]},embedded", "depth_resolutions": (0, 28), "percentiles": (0.0, 20.0)}
    config = replace(photo_config, **several, crops=3, depth_dtype="uint16")
    main(config)
    cache = Cache(config.out)
    one = sample(cache, "1.png")
    assert len(one.controls) == len(one.latents) == 3 and {len(keys) for keys in one.controls} == {4}
    maps = [from_stored(cache.store[key]) for key in one.controls[0]]
    assert all(not np.array_equal(maps[i], maps[j]) for i in range(4) for j in range(i))
    assert all(m.min() == 0 and m.max() == 1 for m in maps)
    seen = [cache.batch(step, 8) for step in range(60)]
    clipped = [(c[0] == 0).float().mean() > 0.15 for b in seen for c in b["controls"]]
    assert 0.3 < np.mean(clipped) < 0.7
    ids = {tuple(i.tolist()) for b in seen for i, n in zip(b["time_ids"], b["name"], strict=True) if n == "1.png"}
    assert len(ids) == 3


def captioned_tar(photos, folder):
    with ShardWriter(folder / "a.tar") as shard:
        for name in ("0", "1", "2"):
            shard.add(f"x/{name}.png", (photos / f"{name}.png").read_bytes())
        shard.add("x/0.txt", b"a red room")
        shard.add("x/1.json", b'{"caption": "blue ice"}')


def captioned_metadata(photos, folder):
    (folder / "train").mkdir()
    for name in ("0", "1", "2"):
        shutil.copy(photos / f"{name}.png", folder / "train")
    rows = [{"file_name": "train/0.png", "text": "a red room"}, {"file_name": "train/1.png", "prompt": "blue ice"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def rows_of(photos):
    import datasets

    images = [{"bytes": (photos / f"{name}.png").read_bytes(), "path": None} for name in ("0", "1", "2")]
    kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": images, "text": ["a red room", "blue ice", None]}, kinds)


def captioned_rows(photos, folder):
    rows_of(photos).save_to_disk(str(folder))


def captioned_parquet(photos, folder):
    rows_of(photos).to_parquet(str(folder / "train-00000.parquet"))


@pytest.mark.parametrize("write", [captioned_tar, captioned_metadata, captioned_rows, captioned_parquet])
def test_every_kind_of_source_gives_the_same_cache(photo_config, photos, tmp_path, write):
    folder = tmp_path / "source"
    folder.mkdir()
    write(photos, folder)
    main(replace(photo_config, images=folder))
    cache = Cache(photo_config.out)
    assert sorted(cache.captions) == ["a red room", "blue ice"]
    assert len(json.loads((photo_config.out / "skipped.json").read_text())) == 1
    main(replace(photo_config, images=photos, out=tmp_path / "reference"))
    reference = tensors(tmp_path / "reference")
    for one in (s for bucket in cache.buckets for s in bucket):
        assert all(torch.allclose(cache.store[key], reference[key], atol=5e-3) for key in one.latents[0])


def test_an_interrupted_preparation_goes_on(photo_config, monkeypatch):
    main(replace(photo_config, out=photo_config.out.with_name("straight")))
    straight = tensors(photo_config.out.with_name("straight"))
    from train_controlnet import maker

    encode, calls = maker.encode, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(maker, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(photo_config)
    kept = tensors(photo_config.out)
    assert kept and len(kept) < len(straight)
    with pytest.raises(InputError, match="no complete cache"):
        Cache(photo_config.out)
    calls.clear()
    calls.extend([1] * 3)
    main(photo_config)
    after = tensors(photo_config.out)
    assert after.keys() == straight.keys() and all(torch.equal(after[key], straight[key]) for key in kept)


def test_a_full_disk_loses_nothing(photo_config, monkeypatch):
    write, calls = store.save_file, []

    def full(content, path):
        calls.append(path)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(content, path)

    monkeypatch.setattr(store, "save_file", full)
    monkeypatch.setattr(store, "FLUSH_BYTES", 10_000)
    with pytest.raises(RunError, match="cannot be written .* is kept: make room and run the same command again"):
        main(photo_config)
    kept = tensors(photo_config.out)
    assert kept and not list(photo_config.out.rglob("*.partial"))
    monkeypatch.undo()
    main(photo_config)
    assert kept.keys() < tensors(photo_config.out).keys() and len(Cache(photo_config.out)) == 7


def test_a_damaged_file_of_the_cache_is_made_again(photo_config):
    main(photo_config)
    before = tensors(photo_config.out)
    (file,) = (photo_config.out / "tensors").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="no complete cache .*prepare-controlnet again"):
        Cache(photo_config.out)
    main(photo_config)
    after = tensors(photo_config.out)
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_the_linter_sees_inverted_and_flat_depth(scenes, vae, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(scenes, folder)
    for i, change in ((0, lambda d: d.max() + d.min() - d), (1, np.ones_like)):
        path = folder / f"{i:06d}.npz"
        with np.load(path, allow_pickle=False) as arrays:
            content = dict(arrays)
        finite = np.where(content["valid"], content["depth"], 30).astype(np.float32)
        content |= {"depth": change(np.clip(finite, 0.5, 30)), "valid": np.ones_like(content["valid"])}
        np.savez(path, **content)
    main(Config(scenes=folder, vae=vae, depth_model="exact", out=tmp_path / "cache"))
    found = json.loads((tmp_path / "cache" / "lint.json").read_text())
    assert "000000.png" in found["inverted"] and found["flat"] == ["000001.png"]
    main(Config(scenes=folder, vae=vae, depth_model="exact", out=tmp_path / "cache", leave_out=("flat",)))
    assert len(Cache(tmp_path / "cache")) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": None}, "--images DIR or --scenes DIR"),
        ({"base": None}, "--base MODEL, or --vae DIR"),
        ({"depth_model": "exact"}, "only the scenes of --scenes"),
        ({"crops": 2, "resolution": 0}, "--crops needs buckets"),
        ({"resolution": 16}, "--resolution must be at least 64"),
        ({"percentiles": (50.0,)}, "--percentiles"),
        ({"depth_resolutions": (13,)}, "--depth-resolutions must be multiples of 14"),
        ({"batch": 0}, "--batch must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(photo_config, change, said):
    with pytest.raises(InputError, match=said):
        main(replace(photo_config, **change))
    assert not photo_config.out.exists()


def test_wrong_folders_are_refused(photo_config, cache_config, scenes, tmp_path):
    with pytest.raises(InputError, match="--vae .*: no autoencoder there"):
        main(replace(cache_config, vae=tmp_path))
    with pytest.raises(InputError, match="no index.json there|no images below it"):
        main(replace(cache_config, scenes=tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        main(replace(photo_config, images=tmp_path / "none"))
    other = tmp_path / "scenes"
    shutil.copytree(scenes, other)
    rows = [{k: v for k, v in row.items() if k != "caption"} for row in json.loads((other / "index.json").read_text())]
    (other / "index.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="no image can be used; the first: .*has no caption"):
        main(replace(cache_config, scenes=other, out=tmp_path / "cache"))
    main(replace(cache_config, scenes=other, out=tmp_path / "cache", caption="a room"))
    assert set(Cache(tmp_path / "cache").captions) == {"a room"}
    with pytest.raises(InputError, match="no complete cache .*run depth-control prepare-controlnet"):
        Cache(tmp_path / "nothing")
    (tmp_path / "wrong").mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (70, 70)).save(buffer, "PNG")
    (tmp_path / "wrong" / "a.png").write_bytes(buffer.getvalue())
    (tmp_path / "wrong" / "metadata.jsonl").write_text('{"name": 1}')
    with pytest.raises(InputError, match="metadata.jsonl, line 1: must be an object with file_name"):
        main(replace(photo_config, images=tmp_path / "wrong"))
