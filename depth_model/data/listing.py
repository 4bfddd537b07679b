"""Listing and reading files of images: compact lists of names, sorted walks, checked reads."""

import os
import stat
from array import array
from collections.abc import Collection, Iterator

from depth_model.data.shards import MAX_BYTES, storable
from depth_model.errors import InputError


class Strings:
    """Byte strings in one block: small, quick to pickle, no reference counts for forked workers to write to."""

    def __init__(self):
        self.block, self.ends = bytearray(), array("Q", [0])

    def append(self, text: bytes) -> None:
        self.block += text
        self.ends.append(len(self.block))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> bytes:
        i = range(len(self))[i]
        return bytes(self.block[self.ends[i] : self.ends[i + 1]])


def chosen(name: str, suffixes: Collection[str]) -> bool:
    """Whether a file has one of these suffixes, in lower case, and is not hidden."""
    base = name.rpartition("/")[2]
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in suffixes


def check(name: str, size: int, where: str) -> None:
    """Refuses an image that no shard could hold, with an InputError."""
    # Labels are stored under the names of their images.
    if not storable(name):
        raise InputError(f"{where}: a shard cannot hold the name {name!r}; rename the image")
    if not 0 < size <= MAX_BYTES:
        raise InputError(f"{where}: {size} bytes; an image has at least one and at most {MAX_BYTES >> 20} MiB")


def read_file(path: str, name: str) -> bytes:
    """The file of an image that is called `name`; an InputError when it cannot be read or fails `check`."""
    try:
        status = os.stat(path)
        # A named pipe would wait for ever.
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a file")
        check(name, status.st_size, path)
        with open(path, "rb") as file:
            return file.read()
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{path!r}: not a path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def list_files(folder: str | os.PathLike, suffixes: Collection[str]) -> Iterator[str]:
    """Sorted paths from `folder` of the files with these suffixes, in lower case."""
    visited = set()
    waiting = [""]
    while waiting:
        path = waiting.pop()
        if path and not path.endswith("/"):
            yield path
            continue
        here = os.path.join(folder, path)
        try:
            status = os.stat(here)
            # Links may lead back, or many times to the same place.
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                # With its slash a folder is sorted where the paths that begin with it belong.
                names = [entry.name + "/" if _is_folder(entry) else entry.name for entry in entries]
        except OSError as error:
            raise InputError(f"{here}: cannot be listed ({error.strerror})") from error
        names = [n for n in names if chosen(n, suffixes) or (n.endswith("/") and not n.startswith("."))]
        waiting += [path + n for n in sorted(names, reverse=True)]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself.
        return False
