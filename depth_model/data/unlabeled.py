"""Unlabelled images: folder trees, lists, tar shards, LMDB databases, and the paper's eight sets by name (V1 table 1).

Each source has `len(source)`, `source.name(i)`, which is unique and stays the same, and `source.encoded(i)`, the bytes
as they are stored; `depth_model.images.open_image` decodes and checks them. Listing opens no image, and a source holds
no open file, so that it can be pickled to the workers of a loader. A list costs the bytes of the names and 8 more for
each image (tar shards 28, LMDB 12), about half a gigabyte for ten million; a single folder of millions takes about
150 bytes for each of its files while it is listed.
"""

import difflib
import functools
import os
import re
import threading
from array import array
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path

from depth_model.data.listing import Strings, check, chosen, list_files, read_file
from depth_model.data.shards import Member, index_shard, read_member
from depth_model.errors import InputError
from depth_model.images import SUFFIXES


class ImageTree:
    """All images below a folder, by suffix in any case, sorted by their path from there, which is their name.

    Hidden files and folders are left out. Links are followed; a folder that is reached twice is listed once.

    Args:
        folder: where the tree starts.
        every: of numbered files, such as the frames of a video, only those whose name ends in a multiple of it.

    Raises:
        InputError: a folder that cannot be listed, or no images.
    """

    def __init__(self, folder: str | os.PathLike, every: int = 1):
        self.folder = os.fspath(folder)
        self._names = Strings()
        for name in list_files(folder, SUFFIXES):
            number = re.search(r"(\d+)\.\w+$", name, re.ASCII) if every > 1 else None
            if number is None or int(number[1]) % every == 0:
                self._names.append(os.fsencode(name))
        if not len(self):
            raise InputError(f"{folder}: no images below it ({', '.join(sorted(SUFFIXES))})")

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        """Path of image `i` from the folder, with `/` between its parts."""
        return os.fsdecode(self._names[i])

    def encoded(self, i: int) -> bytes:
        """The file of image `i`.

        Raises:
            InputError: missing, not a file, not readable, empty, above `shards.MAX_BYTES`, or not `shards.storable`.
        """
        return read_file(os.path.join(self.folder, self.name(i)), self.name(i))


class ImageList:
    """The images that a text file lists, a path a line, from the file's folder or absolute; empty lines are left out.

    Raises:
        InputError: a list that cannot be read, or without a line.
    """

    def __init__(self, file: str | os.PathLike):
        self.folder = os.path.dirname(os.fspath(file))
        self._paths = Strings()
        try:
            with open(file, "rb") as lines:
                for line in lines:
                    if line.strip():
                        self._paths.append(line.rstrip(b"\r\n"))
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}); list=FILE has a path a line") from error
        if not len(self):
            raise InputError(f"{file}: lists no image; write a path a line")

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, i: int) -> str:
        """The path of image `i` as it is listed, without what makes it absolute."""
        return os.path.normpath(os.fsdecode(self._paths[i])).lstrip("/")

    def encoded(self, i: int) -> bytes:
        """The file of image `i`; see `ImageTree.encoded`."""
        return read_file(os.path.join(self.folder, os.fsdecode(self._paths[i])), self.name(i))


class TarShards:
    """The images in tar shards, by shard and then by name; other members (JSON) and hidden ones are left out.

    Every header is read once, when the source is made: 10 to 20 microseconds for each member, and the disk.

    Args:
        folder: where the shards are.
        shards: paths from there, as `list_shards` gives them; all by default.

    Raises:
        InputError: a shard that `shards.index_shard` refuses, or no images.
    """

    def __init__(self, folder: str | os.PathLike, shards: Sequence[str] | None = None):
        self.shards = list_shards(folder) if shards is None else list(shards)
        self._paths = [os.path.join(folder, shard) for shard in self.shards]
        self._names, self._shard, self._offset, self._size = Strings(), array("I"), array("Q"), array("Q")
        for number, path in enumerate(self._paths):
            for member in sorted((m for m in index_shard(path) if chosen(m.name, SUFFIXES)), key=attrgetter("name")):
                self._names.append(member.name.encode())
                self._shard.append(number)
                self._offset.append(member.offset)
                self._size.append(member.size)
        if not len(self):
            raise InputError(f"{folder}: no images in plain .tar files; take images=DIR for a folder")

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        """`SHARD/MEMBER` of image `i`; a shard is called by its path from the folder."""
        return f"{self.shards[self._shard[i]]}/{self._names[i].decode()}"

    def member(self, i: int) -> Member:
        """Where image `i` is in its shard."""
        return Member(self._names[i].decode(), self._offset[i], self._size[i])

    def encoded(self, i: int) -> bytes:
        """The member of image `i`.

        Raises:
            InputError: empty, above `shards.MAX_BYTES`, or a shard that has changed since it was indexed.
        """
        path = self._paths[self._shard[i]]
        member = self.member(i)
        check(member.name, member.size, f"{path}: {member.name}")
        return read_member(path, member)


class Lmdb:
    """The values of LMDB databases, such as LSUN's of JPEG or WebP files, by database and then by key.

    LMDB trusts what is inside a database: only its length is checked, so take databases from their makers alone.

    Args:
        folder: a database (a folder with `data.mdb`), or a folder with databases below it; those with `val` or `test`
            in their name, as in `bedroom_val_lmdb`, are left out then.

    Raises:
        InputError: no database, an unreadable one, or the package `lmdb` is missing.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.fspath(folder)
        found = (file.rpartition("/")[::2] for file in list_files(folder, {".mdb"}))
        held_out = re.compile(r"(^|[/_])(val|test)([/_]|$)")
        self.databases = [path for path, file in found if file == "data.mdb" and not held_out.search(path)]
        self._keys, self._database = Strings(), array("I")
        for number, database in enumerate(self.databases):
            with _transaction(os.path.join(self.folder, database, "data.mdb")) as transaction:
                for key in transaction.cursor().iternext(values=False):
                    self._keys.append(key)
                    self._database.append(number)
        if not len(self):
            raise InputError(f"{folder}: no LMDB database with entries (a folder with data.mdb) in it or below it")

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, i: int) -> str:
        """`DATABASE/KEY` of image `i`, or the key alone; a key's bytes are taken as Latin-1."""
        return "/".join(filter(None, (self.databases[self._database[i]], self._keys[i].decode("latin-1"))))

    def encoded(self, i: int) -> bytes:
        """The value of image `i`.

        Raises:
            InputError: empty, above `shards.MAX_BYTES`, a name that is not `shards.storable`, or a database that has
                changed since it was listed.
        """
        file = os.path.join(self.folder, self.databases[self._database[i]], "data.mdb")
        with _transaction(file) as transaction:
            value = transaction.get(self._keys[i]) or b""
            check(self.name(i), len(value), f"{file}: {self.name(i)}")
            return bytes(value)


Unlabeled = ImageTree | ImageList | TarShards | Lmdb

# Reader, and where the training images are below DIR: the first of these folders that exists, else DIR itself.
_SETS: dict[str, tuple[Callable[[Path], Unlabeled], tuple[str, ...]]] = {
    "images": (ImageTree, ()),
    "list": (ImageList, ()),
    "tar": (TarShards, ()),
    "lmdb": (Lmdb, ()),
    "bdd100k": (functools.partial(ImageTree, every=10), ("train",)),
    "google_landmarks": (ImageTree, ("train",)),
    "imagenet21k": (ImageTree, ("train",)),
    "lsun": (Lmdb, ()),
    "objects365": (ImageTree, ("train", "images/train")),
    "open_images": (ImageTree, ("train",)),
    "places365": (ImageTree, ("train", "data_large", "data_256")),
    "sa1b": (TarShards, ()),
}


def open_unlabeled(spec: str) -> Unlabeled:
    """The source that `NAME=DIR` means; see `locate`."""
    reader, folder = locate(spec)
    return reader(folder)


def locate(spec: str) -> tuple[Callable[[Path], Unlabeled], Path]:
    """Reader and folder that `NAME=DIR` means: `images`, `list`, `tar` or `lmdb`, or one of the paper's sets.

    Where DIR has a folder `train`, a set is that folder. Layouts, and how sure they are (facts 1.3):

    - bdd100k: frames of the training videos, one folder each, of which every tenth counts by its number (V1 issue 194):
      `ffmpeg -i V.mov -vf "select=not(mod(n\\,10))" -fps_mode passthrough -frame_pts 1 -q:v 2 train/V/%06d.jpg`
      writes only those, and they keep their numbers. The folders' names are free.
    - google_landmarks: `train/a/b/c/ID.jpg`. UNVERIFIED.
    - imagenet21k: `nXXXXXXXX/*.JPEG`.
    - lsun: a database for each category, `CATEGORY_train_lmdb`. UNVERIFIED.
    - objects365: `train/patchN/*.jpg`, or `images/train`.
    - open_images: `train/*.jpg`.
    - places365: `train`, or `data_large` or `data_256` as its archives are named. UNVERIFIED.
    - sa1b: `sa_XXXXXX.tar`.

    Raises:
        InputError: not of this form, an unknown name (the nearest one is given), validation or test folders without the
            training folder beside them, or what the reader refuses.
    """
    name, _, folder = spec.partition("=")
    if name not in _SETS:
        nearest = difflib.get_close_matches(name, _SETS, n=1, cutoff=0.0)[0]
        raise InputError(f"{spec}: unknown set {name!r}; the nearest is {nearest!r} (of {', '.join(_SETS)})")
    if not folder:
        raise InputError(f"{spec}: no folder; write {name}=DIR")
    reader, training = _SETS[name]
    root = Path(folder).expanduser()
    start = next((root / part for part in training if (root / part).is_dir()), root)
    if training and start == root:
        held_out = (root / part for part in ("val", "validation", "test"))
        if found := next((part for part in held_out if part.is_dir()), None):
            raise InputError(f"{found}: is beside no folder {training[0]}; name the folder of the training images")
    return reader, start


def list_shards(folder: str | os.PathLike) -> list[str]:
    """Sorted paths from `folder` of all `*.tar` below it; none is opened.

    Raises:
        InputError: a folder that cannot be listed.
    """
    return list(list_files(folder, {".tar"}))


_opening = threading.Lock()


@functools.cache
def _environment(file: str):
    """The LMDB environment in a file, which a process may open only once; forked processes inherit it."""
    import lmdb

    environment = lmdb.open(file, subdir=False, readonly=True, lock=False, readahead=False, create=False)
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if os.path.getsize(file) < needed:
        # Reading the missing pages would kill the process.
        environment.close()
        raise InputError(f"{file}: is cut off, it should have {needed} bytes; get it again")
    return environment


@contextmanager
def _transaction(file: str):
    try:
        import lmdb
    except ImportError as error:
        raise InputError(f'{file}: LMDB needs a package: pip install "depth-control[data]"') from error
    try:
        with _opening:
            environment = _environment(os.path.realpath(file))
        with environment.begin(buffers=True) as transaction:
            yield transaction
    except (lmdb.Error, OSError) as error:
        raise InputError(f"{file}: not a readable LMDB database ({error})") from error
