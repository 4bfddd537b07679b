"""Tar shards: what the index finds and refuses, reading by offset, and complete-or-absent writing."""

import bz2
import gzip
import io
import lzma
import os
import random
import tarfile
import tracemalloc

import pytest

from depth_model.data import shards
from depth_model.data.shards import Member, ShardWriter, index_shard, read_member, sample_key
from depth_model.errors import InputError

FILES = {
    "b/0001.jpg": bytes(range(250)) * 3,
    "b/0001.json": b"{}",
    "a.jpg": b"",
    "ä/名前.png": b"x" * 512,
    f"{'long' * 20}/{'name' * 20}.jpg": b"y" * 513,
    f"{'x' * 180}.jpg": b"z",
}


def tar(path, files=FILES, form=tarfile.PAX_FORMAT, mode="w", prefix=""):
    with tarfile.open(path, mode, format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def header(name="evil.jpg", kind=tarfile.REGTYPE, size=0, link=""):
    """One raw header as GNU tar writes it, whatever it claims."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info.tobuf(tarfile.GNU_FORMAT)


def signed(block):
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


END = bytes(1024)
GOOD = header("good.jpg", size=3) + b"abc".ljust(512, b"\0")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_every_member_is_found_and_read(form, tmp_path):
    path = tar(tmp_path / "s.tar", form=form)
    members = index_shard(path)
    assert [member.name for member in members] == list(FILES)
    assert {member.name: read_member(path, member) for member in members} == FILES
    raw = path.read_bytes()
    assert all(raw[m.offset : m.offset + m.size] == FILES[m.name] for m in members)


def test_ustar_names_of_two_parts(tmp_path):
    files = {f"{'folder' * 20}/{'name' * 20}.jpg": b"1", "b.jpg": b"2"}
    assert [m.name for m in index_shard(tar(tmp_path / "s.tar", files, tarfile.USTAR_FORMAT))] == list(files)


def test_folders_global_headers_and_dots_are_no_members(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"abc")
    with tarfile.open(
        tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "made up"}
    ) as archive:
        archive.add(tmp_path / "in", ".")
    (member,) = index_shard(tmp_path / "s.tar")
    assert member.name == "a.jpg" and read_member(tmp_path / "s.tar", member) == b"abc"


def test_sizes_in_pax_records_and_in_base_256(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"size": "3"}
    # The record counts; the header's own size is 0.
    pax = info.tobuf(tarfile.PAX_FORMAT) + b"abc".ljust(512, b"\0")
    block = bytearray(header("b.jpg"))
    block[124:136] = b"\x80" + (3).to_bytes(11, "big")
    (tmp_path / "s.tar").write_bytes(pax + signed(block) + b"def".ljust(512, b"\0") + END)
    found = [(m.name, read_member(tmp_path / "s.tar", m)) for m in index_shard(tmp_path / "s.tar")]
    assert found == [("a.jpg", b"abc"), ("b.jpg", b"def")]


def test_an_archive_without_members(tmp_path):
    assert index_shard(tar(tmp_path / "s.tar", {})) == []


NEGATIVE = bytearray(header())
NEGATIVE[124:136] = b"\xff" * 12
MINUS = bytearray(header())
MINUS[124:136] = b"-0000000777\0"
LATIN = bytearray(header())
LATIN[:8] = b"\xe9\xe9\xe9.jpg\0"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (header("/etc/passwd") + END, "unsafe name"),
        (header("C:/a.jpg") + END, "unsafe name"),
        (header("\\\\host\\a.jpg") + END, "unsafe name"),
        (header("../a.jpg") + END, "unsafe name"),
        (header("a/../../b.jpg") + END, "unsafe name"),
        (header("a\\..\\b.jpg") + END, "unsafe name"),
        (header("a/..", tarfile.DIRTYPE) + END, "unsafe name"),
        (header("a\nb.jpg") + END, "unsafe name"),
        (header(f"../{'x' * 300}.jpg") + END, "unsafe name"),
        (header("x" * 2000) + END, "unsafe name"),
        (header(kind=tarfile.SYMTYPE, link="good.jpg") + END, "'evil.jpg' is a link"),
        (header(kind=tarfile.LNKTYPE, link="good.jpg") + END, "'evil.jpg' is a link"),
        (header(kind=tarfile.SYMTYPE, link="../" * 99) + END, "is a link"),
        (header(kind=tarfile.CHRTYPE) + END, "a device"),
        (header(kind=tarfile.BLKTYPE) + END, "a device"),
        (header(kind=tarfile.FIFOTYPE) + END, "a device"),
        (header(kind=tarfile.GNUTYPE_SPARSE) + END, "sparse"),
        (header("good.jpg", size=3) + b"abc".ljust(512, b"\0") + END, "'good.jpg' is there twice"),
        (header("./good.jpg") + END, "'good.jpg' is there twice"),
        (header(size=10 << 30) + END, "'evil.jpg' of 10737418240 bytes runs past the end"),
        (header(size=1 << 80) + END, "runs past the end"),
        (header(size=1537) + END, "runs past the end"),
        (header(size=10), "runs past the end"),
        (header()[:300], "ends at byte 1024 without the closing block"),
        (b"", "ends at byte 1024 without the closing block"),
        (signed(NEGATIVE) + END, "damaged at byte 1024"),
        (signed(MINUS) + END, "damaged at byte 1024"),
        (signed(LATIN) + END, "damaged at byte 1024"),
        (header()[:-1] + b"x" + END, "damaged at byte 1024"),
        (header("x", tarfile.GNUTYPE_LONGNAME, 1 << 40) + END, "extended header of 1099511627776 bytes"),
        (header("x", tarfile.XHDTYPE, 1 << 40) + END, "extended header of 1099511627776 bytes"),
        (header("x", tarfile.XHDTYPE, 6) + b"9 a=b\n".ljust(512, b"\0") + END, "damaged at byte 1024"),
        (header("x", tarfile.XHDTYPE, 6) + b"0 a=b\n".ljust(512, b"\0") + END, "damaged at byte 1024"),
        (header("x", tarfile.XHDTYPE, 6) + b"-6 a=b".ljust(512, b"\0") + END, "damaged at byte 1024"),
        (header("x", tarfile.XHDTYPE, 11) + b"11 size=-9\n".ljust(512, b"\0") + header() + END, "damaged at byte 2048"),
        (header("x", tarfile.XHDTYPE, 22) + b"22 GNU.sparse.major=1\n".ljust(512, b"\0") + header() + END, "sparse"),
    ],
    ids=range(36),
)
def test_hostile_members_are_refused(raw, said, tmp_path):
    path = tmp_path / "hostile.tar"
    path.write_bytes(GOOD + raw)
    tracemalloc.start()
    with pytest.raises(InputError, match=f"hostile.tar: .*{said}"):
        index_shard(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert os.listdir(tmp_path) == ["hostile.tar"]


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x89PNG" * 500, GOOD[:100], *(f(GOOD + END) for f in (gzip.compress, bz2.compress, lzma.compress))],
    ids=["empty", "other", "cut", "gzip", "bzip2", "xz"],
)
def test_only_plain_tars_are_shards(raw, tmp_path):
    path = tmp_path / "s.tar"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"s\.tar: not a plain tar file"):
        index_shard(path)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.tar", tmp_path):
        with pytest.raises(InputError, match=f"{path}: cannot be read"):
            index_shard(path)


def test_a_shard_cut_off_anywhere_is_refused(tmp_path):
    whole = tar(tmp_path / "s.tar").read_bytes()
    *_, last = index_shard(tmp_path / "s.tar")
    for cut in range(0, last.offset + 1024, 97):
        (tmp_path / "s.tar").write_bytes(whole[:cut])
        with pytest.raises(InputError):
            index_shard(tmp_path / "s.tar")


def test_damaged_bytes_never_raise_anything_else(tmp_path):
    whole = tar(tmp_path / "s.tar").read_bytes()
    headers = [i for i in range(len(whole) // 512) if whole[i * 512 + 257 : i * 512 + 262] == b"ustar"]
    refused = 0
    for seed in range(300):
        rng, damaged = random.Random(seed), bytearray(whole)
        start = 512 * rng.choice(headers)
        for _ in range(rng.randint(1, 4)):
            damaged[start + rng.randrange(512)] = rng.randrange(256)
        if seed % 2:
            damaged[start : start + 512] = signed(damaged[start : start + 512])
        (tmp_path / "s.tar").write_bytes(damaged)
        try:
            assert all(len(read_member(tmp_path / "s.tar", m)) == m.size for m in index_shard(tmp_path / "s.tar"))
        except InputError:
            refused += 1
    assert refused > 150


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_MEMBERS", 3)
    assert len(index_shard(tar(tmp_path / "s.tar", {str(i): b"" for i in range(3)}))) == 3
    with pytest.raises(InputError, match="more than 3 members"):
        index_shard(tar(tmp_path / "s.tar", {str(i): b"" for i in range(4)}))


def test_a_member_too_large_for_the_memory_is_not_read(tmp_path):
    path = tmp_path / "s.tar"
    path.write_bytes(header("big.jpg", size=1 << 40))
    try:
        os.truncate(path, (1 << 40) + 2048)
    except OSError:
        pytest.skip("no sparse files of that size here")
    (member,) = index_shard(path)
    with pytest.raises(InputError, match=r"s\.tar: member 'big.jpg' has 1099511627776 bytes, more than 64 MiB"):
        read_member(path, member)


def test_a_shard_that_changed_since_it_was_indexed(tmp_path):
    path = tar(tmp_path / "s.tar")
    member = index_shard(path)[0]
    os.truncate(path, member.offset + 10)
    with pytest.raises(InputError, match=r"s\.tar: ends inside member 'b/0001.jpg'"):
        read_member(path, member)
    path.unlink()
    with pytest.raises(InputError, match=r"s\.tar: member 'b/0001.jpg' cannot be read"):
        read_member(path, member)


def test_memory_does_not_grow_with_what_is_read(tmp_path):
    path = tar(tmp_path / "s.tar", {f"{i}.jpg": bytes(200_000) for i in range(40)})
    tracemalloc.start()
    assert sum(len(read_member(path, member)) for member in index_shard(path)) == 8_000_000
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("0001.jpg", "0001"),
        ("a.b/0001.depth.png", "a.b/0001"),
        ("a/b/0001", "a/b/0001"),
        ("a.b/0001", "a.b/0001"),
    ],
)
def test_sample_keys(name, key):
    assert sample_key(name) == key


def write(path, files=FILES):
    with ShardWriter(path) as writer:
        return [writer.add(name, data) for name, data in files.items()]


def test_what_is_written_is_a_tar_of_fixed_bytes(tmp_path):
    members = write(tmp_path / "new" / "s.tar")
    assert members == index_shard(tmp_path / "new" / "s.tar")
    with tarfile.open(tmp_path / "new" / "s.tar", "r:") as archive:
        infos = archive.getmembers()
        assert {info.name: archive.extractfile(info).read() for info in infos} == FILES
    fields = {(i.mtime, i.uid, i.gid, i.mode, i.uname, i.gname, i.type) for i in infos}
    assert fields == {(0, 0, 0, 0o644, "", "", tarfile.REGTYPE)}
    write(tmp_path / "other.tar")
    assert (tmp_path / "other.tar").read_bytes() == (tmp_path / "new" / "s.tar").read_bytes()
    assert os.listdir(tmp_path / "new") == ["s.tar"]


def test_nothing_has_the_name_before_the_end(tmp_path):
    writer = ShardWriter(tmp_path / "s.tar")
    member = writer.add("a.jpg", b"abc")
    assert not (tmp_path / "s.tar").exists() and len(os.listdir(tmp_path)) == 1
    writer.close()
    writer.close()
    assert os.listdir(tmp_path) == ["s.tar"] and read_member(tmp_path / "s.tar", member) == b"abc"


@pytest.mark.parametrize("before", [None, b"an older shard"])
def test_a_failure_leaves_nothing_new(before, tmp_path, monkeypatch):
    if before:
        (tmp_path / "s.tar").write_bytes(before)
    with pytest.raises(KeyboardInterrupt):
        with ShardWriter(tmp_path / "s.tar") as writer:
            writer.add("a.jpg", b"abc")
            raise KeyboardInterrupt

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "s.tar")
    assert os.listdir(tmp_path) == (["s.tar"] if before else [])
    assert not before or (tmp_path / "s.tar").read_bytes() == before


@pytest.mark.parametrize(
    "name", ["a.jpg", "", "/a", "../a", "a/../b", "./b", "b/", "a//b", "a\nb", "\udcff", "x" * 1001]
)
def test_names_that_are_not_written(name, tmp_path):
    with pytest.raises(InputError, match="is unsafe or taken"), ShardWriter(tmp_path / "s.tar") as writer:
        writer.add("a.jpg", b"")
        writer.add(name, b"")
    assert not os.listdir(tmp_path)


def test_no_more_is_written_than_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_MEMBERS", 2)
    monkeypatch.setattr(shards, "MAX_BYTES", 10)
    assert [m.size for m in write(tmp_path / "s.tar", {"a": bytes(10), "b": b""})] == [10, 0]
    for files in ({"a": bytes(11)}, {"a": b"", "b": b"", "c": b""}):
        with pytest.raises(InputError, match="a shard holds up to 2 members"):
            write(tmp_path / "t.tar", files)


def test_members_are_values():
    assert Member("a", 512, 3) == Member("a", 512, 3)
    with pytest.raises(AttributeError):
        Member("a", 512, 3).size = 4
