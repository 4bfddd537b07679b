"""Unlabelled sources: what each lists and in which order, reading, damage, and the trip to worker processes."""

import io
import multiprocessing
import os
import pickle
import sys
import tarfile
from operator import methodcaller
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from depth_model.data.shards import MAX_BYTES, ShardWriter
from depth_model.data.unlabeled import ImageTree, Lmdb, TarShards, open_unlabeled
from depth_model.errors import InputError
from depth_model.images import open_image


def picture(seed=0, form="JPEG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def tree(folder, *names):
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(seed))
    return folder


def shard(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(path) as writer:
        for seed, name in enumerate(names):
            writer.add(name, picture(seed) if not name.endswith("json") else b"{}")
    return path


def database(folder, values):
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return folder


def names(source):
    return [source.name(i) for i in range(len(source))]


def test_a_tree_lists_images_of_any_depth_in_order(tmp_path):
    wanted = "a-b/1.png", "a.jpg", "a/1.JPEG", "a/b/c/2.webp", "a/b.jpg", "a0/1.jpg", "ä.tiff", "b.jpg"
    tree(tmp_path, *reversed(wanted), "notes.txt", ".hidden.jpg", ".hidden/1.jpg", "a/.2.jpg", "jpg", "b.jpg.part")
    source = ImageTree(tmp_path)
    assert names(source) == sorted(wanted) and len(source) == len(wanted)
    for i, name in enumerate(sorted(wanted)):
        assert source.encoded(i) == (tmp_path / name).read_bytes()
    assert open_image(source.encoded(3)).size == (8, 6)
    with pytest.raises(IndexError):
        source.name(len(wanted))


def test_links_are_followed_and_loops_end(tmp_path):
    tree(tmp_path / "set", "a/1.jpg", "b/2.jpg")
    tree(tmp_path / "elsewhere", "3.jpg", "deep/4.jpg")
    (tmp_path / "set" / "a" / "up").symlink_to("..")
    (tmp_path / "set" / "c").symlink_to("b")
    (tmp_path / "set" / "d").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "e.jpg").symlink_to("b/2.jpg")
    (tmp_path / "set" / "self").symlink_to("self")
    (tmp_path / "set" / "self.jpg").symlink_to("self.jpg")
    source = ImageTree(tmp_path / "set")
    assert names(source) == ["a/1.jpg", "b/2.jpg", "d/3.jpg", "d/deep/4.jpg", "e.jpg", "self.jpg"]
    assert source.encoded(4) == source.encoded(1)
    with pytest.raises(InputError, match=r"self\.jpg: cannot be read"):
        source.encoded(5)


def test_files_that_cannot_be_read(tmp_path):
    tree(tmp_path, "empty.jpg", "fine.jpg", "gone.jpg", "huge.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    source = ImageTree(tmp_path)
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "gone.jpg").unlink()
    os.truncate(tmp_path / "huge.jpg", MAX_BYTES + 1)
    told = {}
    for i in range(len(source)):
        try:
            assert open_image(source.encoded(i))
        except InputError as error:
            told[source.name(i)] = str(error).removeprefix(f"{tmp_path}/")
    assert told == {
        "broken.jpg": "broken.jpg: cannot be read (No such file or directory)",
        "empty.jpg": "empty.jpg: 0 bytes; an image has at least one and at most 64 MiB",
        "gone.jpg": "gone.jpg: cannot be read (No such file or directory)",
        "huge.jpg": f"huge.jpg: {MAX_BYTES + 1} bytes; an image has at least one and at most 64 MiB",
        "pipe.jpg": "pipe.jpg: not a file",
    }


@pytest.mark.parametrize("name", [b"\xe9.jpg", b"a\nb.jpg", b"a\\..\\b.jpg"], ids=["not-utf8", "line", "backslash"])
def test_names_under_which_no_label_can_be_stored(name, tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(picture())
    except OSError:
        pytest.skip("not a name here")
    source = ImageTree(tmp_path)
    assert os.fsencode(source.name(0)) == name
    with pytest.raises(InputError, match="rename the image"):
        source.encoded(0)


def test_every_tenth_frame_by_its_number(tmp_path):
    tree(tmp_path, *(f"v{v}/{n:06d}.jpg" for v in (1, 2) for n in range(25)), "v1/cover.jpg")
    wanted = ["v1/000000.jpg", "v1/000010.jpg", "v1/000020.jpg", "v1/cover.jpg"]
    source = ImageTree(tmp_path, every=10)
    assert names(source)[:4] == wanted and len(source) == 7
    # Taking every tenth when the frames are written, with their numbers, comes to the same.
    for frame in tmp_path.glob("v?/0*.jpg"):
        if int(frame.stem) % 10:
            frame.unlink()
    assert names(ImageTree(tmp_path, every=10)) == names(source)


def test_a_list_is_compact(tmp_path):
    for i in range(500):
        (tmp_path / f"{i:08d}.jpg").touch()
    source = ImageTree(tmp_path)
    # 12 bytes of name and 8 for its end.
    assert len(pickle.dumps(source)) < 500 * 20 + 1000


def test_shards_of_a_folder(tmp_path):
    shard(tmp_path / "sa_000002.tar", "sa_9.jpg", "sa_10.jpg", "sa_10.json", "._sa_9.jpg", "x/sa_9.png")
    shard(tmp_path / "more" / "sa_000001.tar", "sa_9.jpg")
    shard(tmp_path / "labels.tar", "a.json")
    tree(tmp_path, "loose.jpg")
    source = TarShards(tmp_path)
    first, second = "more/sa_000001.tar", "sa_000002.tar"
    assert names(source) == [f"{first}/sa_9.jpg", *(f"{second}/{n}" for n in ("sa_10.jpg", "sa_9.jpg", "x/sa_9.png"))]
    assert [source.encoded(i) for i in range(4)] == [picture(0), picture(1), picture(0), picture(4)]


def test_shards_of_a_list(tmp_path):
    paths = [shard(tmp_path / name, "1.jpg", "2.jpg") for name in ("b.tar", "a.tar")]
    source = TarShards(tmp_path, [path.name for path in paths])
    assert names(source) == [f"{name}/{n}.jpg" for name in ("b.tar", "a.tar") for n in (1, 2)]
    assert source.encoded(3) == picture(1)


def test_what_other_tools_pack(tmp_path):
    tree(tmp_path / "in", "a/1.jpg", "2.jpg")
    with tarfile.open(tmp_path / "sa.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(tmp_path / "in", ".")
    source = TarShards(tmp_path)
    assert names(source) == ["sa.tar/2.jpg", "sa.tar/a/1.jpg"]
    assert source.encoded(1) == (tmp_path / "in" / "a" / "1.jpg").read_bytes()


def test_shards_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="no images in plain .tar files"):
        TarShards(tree(tmp_path, "a.jpg"))
    path = shard(tmp_path / "s.tar", "a.jpg", "b.jpg")
    with ShardWriter(tmp_path / "t.tar") as writer:
        writer.add("empty.jpg", b"")
    source = TarShards(tmp_path)
    with pytest.raises(InputError, match=r"t\.tar: empty\.jpg: 0 bytes"):
        source.encoded(2)
    os.truncate(path, 1000)
    with pytest.raises(InputError, match=r"s\.tar: ends inside member 'b\.jpg'"):
        source.encoded(1)
    with pytest.raises(InputError, match=r"s\.tar: "):
        TarShards(tmp_path)


def test_one_database(tmp_path):
    values = {b"b": picture(1, "WEBP"), b"a": picture(2), b"\xff": picture(3), b"empty": b"", b"\x00": picture()}
    source = Lmdb(database(tmp_path / "bedroom_val_lmdb", values))
    assert names(source) == ["\x00", "a", "b", "empty", "\xff"]
    assert [source.encoded(i) for i in (1, 2, 4)] == [picture(2), picture(1, "WEBP"), picture(3)]
    assert open_image(source.encoded(2)).size == (8, 6)
    with pytest.raises(InputError, match="bedroom_val_lmdb/data.mdb: empty: 0 bytes"):
        source.encoded(3)
    with pytest.raises(InputError, match="rename the image"):
        source.encoded(0)
    # The same database under another name, in the same process.
    (tmp_path / "link").symlink_to("bedroom_val_lmdb")
    assert Lmdb(tmp_path / "link").encoded(1) == source.encoded(1)


def test_databases_of_all_categories(tmp_path):
    for seed, name in enumerate(
        ("tower_train_lmdb", "church/church_outdoor_train_lmdb", "cat", "tower_val_lmdb", "test_lmdb")
    ):
        database(tmp_path / name, {b"1": picture(seed)})
    source = Lmdb(tmp_path)
    assert names(source) == ["cat/1", "church/church_outdoor_train_lmdb/1", "tower_train_lmdb/1"]
    assert [source.encoded(i) for i in range(3)] == [picture(2), picture(1), picture(0)]
    assert names(open_unlabeled(f"lsun={tmp_path}")) == names(source)


def test_a_database_larger_than_the_default_map(tmp_path):
    source = Lmdb(database(tmp_path / "d", {b"%03d" % i: bytes([i]) * 100_000 for i in range(150)}))
    assert [source.encoded(i) for i in (0, 149)] == [bytes(100_000), bytes([149]) * 100_000]


@pytest.mark.parametrize("left", [0, 100, 4096, 8192, -4096, -1])
def test_a_database_that_is_cut_off(left, tmp_path):
    database(tmp_path / "d", {b"%d" % i: bytes(3000) for i in range(20)})
    file = tmp_path / "d" / "data.mdb"
    os.truncate(file, left if left >= 0 else file.stat().st_size + left)
    with pytest.raises(InputError, match=f"{tmp_path}/d/data.mdb: (not a readable LMDB database|is cut off)"):
        Lmdb(tmp_path / "d")


def test_folders_that_are_no_database(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(InputError, match="no LMDB database"):
        Lmdb(tmp_path)
    (tmp_path / "d" / "data.mdb").write_bytes(os.urandom(30_000))
    with pytest.raises(InputError, match=f"{tmp_path}/d/data.mdb: not a readable LMDB database"):
        Lmdb(tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    database(tmp_path / "d", {b"a": picture()})
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(InputError, match=r'pip install "depth-control\[data\]"'):
        Lmdb(tmp_path)


@pytest.fixture(params=["images", "tar", "lmdb"])
def source(request, tmp_path):
    match request.param:
        case "images":
            tree(tmp_path, "a.jpg", "b.jpg")
        case "tar":
            shard(tmp_path / "s.tar", "a.jpg", "b.jpg")
        case "lmdb":
            database(tmp_path / "d", {b"a": picture(0), b"b": picture(1)})
    return open_unlabeled(f"{request.param}={tmp_path}")


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_sources_work_in_worker_processes(source, start):
    assert source.encoded(0) == picture(0)
    with multiprocessing.get_context(start).Pool(1) as pool:
        assert pool.map(methodcaller("encoded", 1), [source, source]) == [picture(1), picture(1)]
        assert pool.map(methodcaller("name", 1), [source]) == [source.name(1)]
    assert source.encoded(1) == picture(1)


SETS = {
    "bdd100k": ("train/v1/000010.jpg", "train/v1/000011.jpg"),
    "google_landmarks": ("train/0/1/2/0123.jpg", "index/0/1/2/0124.jpg"),
    "imagenet21k": ("n00004475/n00004475_1.JPEG", "n00004475/n00004475_1.xml"),
    "objects365": ("images/train/patch0/1.jpg", "images/val/patch0/2.jpg"),
    "open_images": ("train/0a.jpg", "validation/0b.jpg"),
    "places365": ("data_256/a/airfield/1.jpg", "val_256/1.jpg"),
}


@pytest.mark.parametrize("name", SETS)
def test_the_training_images_of_a_set(name, tmp_path):
    kept, left = SETS[name]
    source = open_unlabeled(f"{name}={tree(tmp_path, kept, left)}")
    assert len(source) == 1 and kept.endswith(source.name(0)) and source.encoded(0) == picture(0)
    # Its training folder itself will do as well.
    inside = tmp_path / kept.removesuffix(source.name(0))
    assert names(open_unlabeled(f"{name}={inside}")) == names(source)


def test_sa1b_is_read_from_its_tars(tmp_path):
    shard(tmp_path / "sa_000000.tar", "sa_1.jpg", "sa_1.json")
    assert names(open_unlabeled(f"sa1b={tmp_path}")) == ["sa_000000.tar/sa_1.jpg"]


def test_held_out_images_are_not_taken_by_accident(tmp_path):
    tree(tmp_path, "training/1.jpg", "test/2.jpg")
    with pytest.raises(InputError, match="test: is beside no folder train; name the folder of the training images"):
        open_unlabeled(f"open_images={tmp_path}")
    assert len(open_unlabeled(f"images={tmp_path}")) == 2


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("places356=here", "unknown set 'places356'; the nearest is 'places365'"),
        ("SA-1B=here", "unknown set 'SA-1B'; the nearest is"),
        ("", "unknown set ''; the nearest is"),
        ("sa1b", "sa1b: no folder; write sa1b=DIR"),
        ("images=", "images=: no folder"),
        ("images=no/such", "no/such.*: cannot be listed"),
        ("tar=no/such", "no/such.*: cannot be listed"),
        ("lmdb=no/such", "no/such.*: cannot be listed"),
        ("imagenet21k=no/such", "no/such.*: cannot be listed"),
        ("images=.", "no images below it"),
        ("lsun=.", "no LMDB database"),
    ],
)
def test_requests_that_cannot_be_served(spec, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        open_unlabeled(spec)


def test_a_list_of_files(tmp_path):
    tree(tmp_path / "set", "a/1.jpg", "b 2.jpg", "no.txt")
    elsewhere = tree(tmp_path / "else", "3.jpg") / "3.jpg"
    (tmp_path / "set" / "list.txt").write_text(f"b 2.jpg\n\na/1.jpg\n{elsewhere}\ngone.jpg\n")
    source = open_unlabeled(f"list={tmp_path / 'set' / 'list.txt'}")
    assert names(source) == ["b 2.jpg", "a/1.jpg", str(elsewhere).lstrip("/"), "gone.jpg"]
    assert source.encoded(1) == (tmp_path / "set" / "a" / "1.jpg").read_bytes()
    assert source.encoded(2) == elsewhere.read_bytes()
    with pytest.raises(InputError, match=r"gone\.jpg: cannot be read"):
        source.encoded(3)
    (tmp_path / "empty.txt").write_text("\n")
    for file, said in (("empty.txt", "lists no image"), ("none.txt", "cannot be read")):
        with pytest.raises(InputError, match=said):
            open_unlabeled(f"list={tmp_path / file}")
