"""Tar shards: plain tar files with WebDataset naming, read by offset and never extracted.

Headers are parsed here, not by `tarfile`: it stops silently at a damaged header, allocates what a long name claims to
need, and before Python 3.11.14 some headers send it into an endless loop (CVE-2025-8194).
"""

import glob
import hashlib
import os
import posixpath
import re
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from depth_model.errors import InputError

MAX_MEMBERS = 200_000
"""A shard with more is refused; SA-1B's hold about 22,000, ours 1,000 to 2,000."""

MAX_BYTES = 64 << 20
"""Larger members are not read."""

_BLOCK = 512
_MAX_EXTENDED = 1 << 16
_REGULAR, _FOLDER, _LONG_NAME, _PAX, _PAX_GLOBAL = (b"0", b"\0", b"7"), b"5", b"L", (b"x", b"X"), b"g"
# Absolute on any system, with a part "..", with characters that break a line of a log, without any, or with too many.
_UNSAFE = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|[\x00-\x1f\x7f\ud800-\udfff]|^$|^.{1001}")


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a shard: its name, where its bytes start in the shard, and how many there are."""

    name: str
    offset: int
    size: int


def sample_key(name: str) -> str:
    """The WebDataset key, common to all files of a sample: the name up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def storable(name: str) -> bool:
    """Whether a shard can hold a file of this name: a plain relative path in UTF-8, up to 1000 characters long."""
    return not _UNSAFE.search(name) and posixpath.normpath(name) == name


def index_shard(path: str | os.PathLike) -> list[Member]:
    """The files of a shard in their order, from one pass over the headers; folders are left out.

    A leading `./` is no part of a name. Takes 10 to 20 microseconds and 200 bytes for each member.

    Raises:
        InputError: not a plain tar, compressed, damaged or cut off; or a member that is a link, a device or sparse, is
            there twice, has an unsafe name, or claims more bytes than the file has.
    """
    members, seen = [], set()
    try:
        with open(path, "rb") as file:
            for name, kind, offset, size in _entries(path, file):
                if _UNSAFE.search(name):
                    raise InputError(f"{path}: member {name!r} has an unsafe name; pack the shard with relative names")
                name = posixpath.normpath(name)
                if kind == _FOLDER:
                    continue
                if kind not in _REGULAR:
                    raise InputError(f"{path}: member {name!r} is a link, a device or sparse; pack plain files only")
                if name in seen:
                    raise InputError(f"{path}: member {name!r} is there twice; pack the shard again")
                if len(members) == MAX_MEMBERS:
                    raise InputError(f"{path}: more than {MAX_MEMBERS} members; split it into shards of a few thousand")
                seen.add(name)
                members.append(Member(name, offset, size))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return members


def read_member(path: str | os.PathLike, member: Member) -> bytes:
    """The bytes of a member that `index_shard` found.

    Raises:
        InputError: more than `MAX_BYTES`, or a shard that is gone or has become shorter.
    """
    if member.size > MAX_BYTES:
        raise InputError(f"{path}: member {member.name!r} has {member.size} bytes, more than {MAX_BYTES >> 20} MiB")
    try:
        with open(path, "rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
    except OSError as error:
        raise InputError(f"{path}: member {member.name!r} cannot be read ({error.strerror})") from error
    if len(data) < member.size:
        raise InputError(f"{path}: ends inside member {member.name!r}; the shard has changed since it was indexed")
    return data


class ShardWriter:
    """Writes a shard that is complete or absent, whose bytes depend on names and contents alone.

    It grows under another name in the same folder and takes its own when the `with` block, or `close`, ends well; an
    older file of that name is replaced then. Times and owners are 0, the mode is 0644; names that USTAR has no room for
    are PAX records. A killed process leaves a `*.tmp-*` file behind.

    Raises:
        OSError: the disk is full or not writable; nothing new is under the shard's name then.

    Attributes:
        bytes, sha256: of the whole shard, once it is closed.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = _partial_of(self.path)
        self._file = self._partial.open("xb")
        self._seen: set[str] = set()
        self._digest = hashlib.sha256()
        self.bytes, self.sha256 = 0, ""

    def add(self, name: str, data: bytes) -> Member:
        """Append a file, and say where it is.

        Raises:
            InputError: what `index_shard` or `read_member` would refuse: the name, a second file of the name, too many
                members or bytes.
        """
        if not storable(name) or name in self._seen:
            raise InputError(f"{self.path}: member name {name!r} is unsafe or taken; names are relative and unique")
        if len(data) > MAX_BYTES or len(self._seen) == MAX_MEMBERS:
            raise InputError(
                f"{self.path}: no room for {name!r} of {len(data)} bytes; a shard holds up to {MAX_MEMBERS} members of "
                f"{MAX_BYTES >> 20} MiB"
            )
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._write(info.tobuf(tarfile.PAX_FORMAT))
        member = Member(name, self.bytes, len(data))
        self._write(data)
        self._write(bytes(-len(data) % _BLOCK))
        self._seen.add(name)
        return member

    def close(self) -> None:
        """End the shard, put it on the disk and give it its name; a second time nothing happens."""
        if self._file.closed:
            return
        try:
            self._write(bytes(2 * _BLOCK))
            self.sha256 = self._digest.hexdigest()
            _publish(self._file, self._partial, self.path)
        except BaseException:
            self._discard()
            raise

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    def _discard(self) -> None:
        # On a full disk the last flush fails as well.
        with suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()


def write_file(path: Path, data: bytes) -> None:
    """Write a file that is complete or absent; an older one is replaced.

    Raises:
        OSError: the disk is full or not writable; nothing new is under the name then.
    """
    partial = _partial_of(path)
    try:
        with partial.open("xb") as file:
            file.write(data)
            _publish(file, partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sweep(path: Path) -> None:
    """Remove what killed processes left of a file that is complete now."""
    for partial in path.parent.glob(glob.escape(path.name) + ".tmp-*"):
        partial.unlink(missing_ok=True)


def _partial_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")


def _publish(file: BinaryIO, partial: Path, path: Path) -> None:
    """Put a written file on the disk and give it its name."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _entries(path: str | os.PathLike, file: BinaryIO) -> Iterator[tuple[str, bytes, int, int]]:
    """Name, type, offset and size of each member, with GNU long names and PAX records applied."""
    length = os.fstat(file.fileno()).st_size
    position, extended = 0, {}
    while True:
        file.seek(position)
        block = file.read(_BLOCK)
        if position and len(block) < _BLOCK:
            raise InputError(f"{path}: ends at byte {position} without the closing block of a tar; get the file again")
        if block == bytes(_BLOCK):
            return
        try:
            name, kind, size = _header(block)
            offset = position + _BLOCK
            special = kind == _LONG_NAME or kind in _PAX or kind == _PAX_GLOBAL
            if special and size > _MAX_EXTENDED:
                raise ValueError(f"an extended header of {size} bytes")
            if kind in _PAX:
                extended |= _pax_records(file.read(size))
            elif kind == _LONG_NAME:
                extended[b"path"] = file.read(size)
            elif not special:
                name = _text(extended[b"path"]) if b"path" in extended else name
                size = _number(extended[b"size"], 10) if b"size" in extended else size
        except ValueError as error:
            hint = f"damaged at byte {position}" if position else "not a plain tar file, unpack it if it is compressed"
            raise InputError(f"{path}: {hint} ({error})") from None
        # A folder has no data, whatever its header says.
        position = offset if kind == _FOLDER else offset + -(-size // _BLOCK) * _BLOCK
        if kind != _FOLDER and offset + size > length:
            raise InputError(f"{path}: member {name!r} of {size} bytes runs past the end of the file; get it again")
        if not special:
            sparse = any(key.startswith(b"GNU.sparse") for key in extended)
            yield name, b"S" if sparse else kind, offset, size
            extended = {}


def _header(block: bytes) -> tuple[str, bytes, int]:
    """Name, type and size of a USTAR, GNU or old header block; ValueError when it is none."""
    if len(block) < _BLOCK:
        raise ValueError(f"{len(block)} bytes")
    # The checksum is taken as if its own field were eight spaces.
    if sum(block) - sum(block[148:156]) + 8 * 32 != _number(block[148:156], 8):
        raise ValueError("wrong checksum")
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    # Tars from before types mark a folder by its last character.
    kind = _FOLDER if block[156:157] == b"\0" and name.endswith("/") else block[156:157]
    return name, kind, _number(block[124:136], 8)


def _number(field: bytes, base: int) -> int:
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ") or b"0"
    if not digits.isdigit():
        raise ValueError("a size or checksum that is no number")
    return int(digits, base)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode()


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """PAX records, each `LENGTH KEY=VALUE` and a line feed; ValueError when they are damaged."""
    records, start = {}, 0
    while start < len(data):
        space = data.index(b" ", start)
        stop = start + _number(data[start:space], 10)
        if not space < stop <= len(data):
            raise ValueError("a wrong PAX record")
        key, _, value = data[space + 1 : stop - 1].partition(b"=")
        records[key] = value
        start = stop
    return records
