"""Collecting: what is kept and dropped and why, copies and evaluation images, and going on after a kill."""

import io
import json
import random
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from depth_model.data.clean import EXCLUDED, MANIFEST, index_files, read_rows
from depth_model.data.shards import Member, ShardWriter, read_member
from depth_model.data.unlabeled import TarShards
from depth_model.engine.collect import Config, main
from depth_model.engine.duplicates import HashIndex, distances
from depth_model.engine.verify import Config as Verify
from depth_model.engine.verify import main as verify
from depth_model.errors import InputError, RunError


def picture(seed, size=(256, 192)):
    """Something with structure at every scale, and unlike any other."""
    rng, image = random.Random(seed), Image.new("RGB", (320, 240), (90, 120, 150))
    draw = ImageDraw.Draw(image)
    for i in range(60):
        x, y, side = rng.randrange(320), rng.randrange(240), rng.randrange(5, 100 if i < 20 else 25)
        colour = tuple(rng.randrange(256) for _ in range(3))
        (draw.rectangle if rng.random() < 0.5 else draw.ellipse)((x - side, y - side, x + side, y + side), fill=colour)
    return image.resize(size, Image.Resampling.LANCZOS)


def jpeg(image, quality=90):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def cropped(image, left, top, right, bottom):
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


COPIES = {
    "encoded": lambda image: jpeg(image, 50),
    "half": lambda image: jpeg(image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)),
    "cropped": lambda image: jpeg(cropped(image, 0.03, 0.03, 0.03, 0.03)),
    "shifted": lambda image: jpeg(cropped(image, 0.02, 0, 0, 0.02)),
    "brighter": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(1.2)),
    "darker": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(0.8)),
}


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def rows(out):
    return [row for index in index_files(out) for row in read_rows(index)]


def became(out):
    return {row["name"]: row.get("reason", "kept") for row in rows(out)}


def content(out):
    return {file.name: file.read_bytes() for file in sorted(out.iterdir())}


@pytest.fixture
def mixed(tmp_path):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    large = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(large, "PNG")
    png = io.BytesIO()
    picture(3).save(png, "BMP")
    files = {
        "a.jpg": jpeg(picture(1)),
        "b.bmp": png.getvalue(),
        "blurred.jpg": jpeg(picture(4).filter(ImageFilter.GaussianBlur(8))),
        "bomb.png": bomb.getvalue(),
        "cut.jpg": jpeg(picture(5))[:-2000],
        "empty.jpg": b"",
        "flat.jpg": jpeg(Image.new("RGB", (256, 192), (80, 80, 80))),
        "large.png": large.getvalue(),
        "long.jpg": jpeg(picture(6, (800, 120))),
        "page.jpg": b"<html><body>not a picture</body></html>",
        "small.jpg": jpeg(picture(7, (64, 64))),
        "vector.jpg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "z.jpg": jpeg(picture(8)),
    }
    return write(tmp_path / "mixed", files)


def test_every_image_is_kept_or_dropped_for_a_reason(mixed, tmp_path):
    out = tmp_path / "out"
    manifest = main(Config(images=(f"images={mixed}",), out=out, per_shard=2))
    assert became(out) == {
        **{"a.jpg": "kept", "b.bmp": "kept", "z.jpg": "kept", "blurred.jpg": "blurred", "flat.jpg": "blurred"},
        **{"bomb.png": "not an image", "large.png": "large", "long.jpg": "aspect", "small.jpg": "small"},
        **{"cut.jpg": "damaged", "empty.jpg": "unreadable", "page.jpg": "not an image", "vector.jpg": "not an image"},
    }
    excluded = [json.loads(line) for line in (out / EXCLUDED).read_text().splitlines()]
    assert len(excluded) == 10 and all(row["reason"] and row["detail"] and row["name"] for row in excluded)
    assert manifest == json.loads((out / MANIFEST).read_text())
    assert manifest["examined"] == 13 == manifest["kept"] + sum(manifest["dropped"].values())
    assert Image.open(out / "collect.png").size[1] > 500
    kept = {row["file"]: row for row in rows(out) if "file" in row}
    assert list(kept) == ["000000000.jpg", "000000001.png", "000000012.jpg"]
    with tarfile.open(out / "images-000000.tar", "r:") as shard:
        assert shard.extractfile("000000000.jpg").read() == (mixed / "a.jpg").read_bytes(), "the original bytes"
    row = kept["000000012.jpg"]
    member = Member(row["file"], row["offset"], row["size"])
    assert read_member(out / "images-000001.tar", member) == (mixed / "z.jpg").read_bytes()
    assert len(TarShards(out)) == 3
    verify(Verify(clean=out))


def test_copies_are_dropped_across_shards_and_sets(tmp_path):
    first = write(tmp_path / "a", {f"{i:02d}.jpg": jpeg(picture(i)) for i in range(8)})
    copies = {f"{i:02d}_{name}.jpg": make(picture(i)) for i in range(8) for name, make in COPIES.items()}
    with ShardWriter(tmp_path / "b" / "s.tar") as shard:
        for name, data in copies.items():
            shard.add(name, data)
    others = write(tmp_path / "c", {f"{i}.jpg": jpeg(picture(i)) for i in range(100, 108)})
    out = tmp_path / "out"
    main(Config(images=(f"images={first}", f"tar={tmp_path / 'b'}", f"images={others}"), out=out, per_shard=5))
    found = became(out)
    assert sum(found[f"s.tar/{name}"] == "near-duplicate" for name in copies) >= 0.95 * len(copies)
    assert all(found[f"{i:02d}.jpg"] == "kept" for i in range(8)), "the first one stays"
    assert all(found[f"{i}.jpg"] == "kept" for i in range(100, 108))
    original = next(row for row in rows(out) if row["name"] == "s.tar/03_half.jpg")
    assert original["detail"] == "of image 3, 03.jpg"


def test_copies_of_evaluation_images_are_all_found(tmp_path):
    held_out = write(tmp_path / "eval", {f"x/{i}.jpg": jpeg(picture(i)) for i in range(12)})
    copies = {f"{i}_{name}.jpg": make(picture(i)) for i in range(12) for name, make in COPIES.items()}
    others = {f"{i}.jpg": jpeg(picture(i)) for i in range(50, 60)}
    train = write(tmp_path / "train", copies | others)
    main(Config(images=(f"images={train}",), evaluation=(str(held_out),), out=tmp_path / "out"))
    found = became(tmp_path / "out")
    assert {found[name] for name in copies} == {"evaluation"} and {found[name] for name in others} == {"kept"}


def test_a_killed_collection_goes_on_with_the_same_bytes(mixed, tmp_path):
    write(mixed, {f"m{i}.jpg": jpeg(picture(20 + i // 2)) for i in range(12)})
    straight, killed = (Config(images=(f"images={mixed}",), out=tmp_path / n, per_shard=2) for n in ("one", "two"))
    main(straight)
    main(killed)
    assert content(straight.out) == content(killed.out)
    for name in (MANIFEST, "images-000002.jsonl", "images-000003.jsonl", "images-000003.tar"):
        (killed.out / name).unlink()
    (killed.out / "images-000002.tar").write_bytes(b"half")
    (killed.out / "images-000002.tar.tmp-1").write_bytes(b"half")
    main(replace(killed, threads=3))
    assert content(straight.out) == content(killed.out)


def test_requests_that_cannot_be_served(mixed, tmp_path):
    with pytest.raises(InputError, match="--images is missing"):
        main(Config(out=tmp_path / "out"))
    config = Config(images=(f"images={mixed}",), out=tmp_path / "out", per_shard=2)
    main(config)
    with pytest.raises(InputError, match="was collected with other least_side"):
        main(replace(config, least_side=64))
    shard = tmp_path / "out" / "images-000000.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(RunError, match="1 problems"):
        verify(Verify(clean=tmp_path / "out"))


def test_the_index_of_hashes_finds_what_a_full_search_does():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << 63, (20_000, 4), dtype=np.uint64)
    index = HashIndex()
    for code in codes:
        index.add(code)
    for number in range(0, 20_000, 500):
        query = codes[[number]].copy()
        for bit in rng.choice(64, 7, replace=False):
            query[0, 0] ^= np.uint64(1 << int(bit))
        assert index.find(query)[0] == number and distances(codes[[number]], query)[0] == 7
    assert not len(index.find(rng.integers(0, 1 << 63, (1, 4), dtype=np.uint64)))
