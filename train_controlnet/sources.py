"""Images with captions: folders with text files or `metadata.jsonl`, tar shards, Hugging Face `datasets`, scenes.

Each source has `len(source)`, `source.name(i)`, `source.encoded(i)`, the bytes as they are stored, and
`source.caption(i)`, None where there is none. Opening one decodes no image.
"""

import json
from pathlib import Path

import numpy as np

from depth_model.data.labeled import PairFolder
from depth_model.data.shards import Member, index_shard, read_member, sample_key
from depth_model.data.unlabeled import ImageTree, TarShards
from depth_model.errors import InputError

CAPTION_KEYS = ("caption", "text", "prompt")
"""Keys and columns that hold a caption, in this order."""

LONGEST_CAPTION = 10_000
"""Characters; a longer text file is no caption."""


class CaptionedTree:
    """A folder tree of images with `NAME.txt` beside `NAME.jpg`, or one `metadata.jsonl` with `file_name` and caption.

    Raises:
        InputError: no images, or a `metadata.jsonl` that cannot be read.
    """

    def __init__(self, folder: Path):
        self.images, self.folder = ImageTree(folder), Path(folder)
        self.listed = _metadata(self.folder / "metadata.jsonl")

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        """Path of image `i` from the folder."""
        return self.images.name(i)

    def encoded(self, i: int) -> bytes:
        """The file of image `i`; raises InputError as `ImageTree.encoded`."""
        return self.images.encoded(i)

    def caption(self, i: int) -> str | None:
        """The caption of image `i`.

        Raises:
            InputError: a text file that is no readable caption.
        """
        if self.listed is not None:
            return self.listed.get(self.name(i))
        path = (self.folder / self.name(i)).with_suffix(".txt")
        try:
            return _caption(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error


class CaptionedShards:
    """Tar shards in WebDataset naming: `KEY.jpg` with `KEY.txt`, or with `KEY.json` that holds a caption.

    Raises:
        InputError: as `TarShards`.
    """

    def __init__(self, folder: Path):
        self.images = TarShards(folder)
        self._texts: dict[str, tuple[Path, Member]] = {}
        for shard in self.images.shards:
            path = Path(folder) / shard
            for member in index_shard(path):
                if member.name.endswith((".txt", ".json")):
                    key = sample_key(f"{shard}/{member.name}")
                    self._texts[key + Path(member.name).suffix] = path, member

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        """`SHARD/MEMBER` of image `i`."""
        return self.images.name(i)

    def encoded(self, i: int) -> bytes:
        """The member of image `i`; raises InputError as `TarShards.encoded`."""
        return self.images.encoded(i)

    def caption(self, i: int) -> str | None:
        """The caption of image `i`.

        Raises:
            InputError: a text or JSON member that holds no readable caption.
        """
        key = sample_key(self.name(i))
        if found := self._texts.get(f"{key}.txt"):
            return _caption(read_member(*found), f"{found[0]}: {found[1].name}")
        if found := self._texts.get(f"{key}.json"):
            where = f"{found[0]}: {found[1].name}"
            try:
                return _from_row(json.loads(read_member(*found)), where)
            except ValueError as error:
                raise InputError(f"{where}: not JSON ({error})") from error
        return None


class HuggingFaceFolder:
    """A folder of the `datasets` library: written by `save_to_disk`, or of Parquet files.

    Raises:
        InputError: the library is missing, or the folder has no image column.
    """

    def __init__(self, folder: Path):
        try:
            import datasets
        except ImportError:
            raise InputError(f'{folder}: such a dataset needs a package: pip install "depth-control[data]"') from None
        try:
            parquet = sorted(str(file) for file in Path(folder).rglob("*.parquet"))
            rows = datasets.Dataset.from_parquet(parquet) if parquet else datasets.load_from_disk(str(folder))
            if isinstance(rows, datasets.DatasetDict):
                rows = rows["train"]
        except Exception as error:
            # The library meets damaged folders with the exceptions of several others.
            raise InputError(f"{folder}: cannot be read as a Hugging Face dataset ({error})") from error
        images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
        if not images:
            raise InputError(f"{folder}: has no column of images (it has {', '.join(rows.features)})")
        self.folder, self.column = folder, "image" if "image" in images else images[0]
        self.rows = rows.cast_column(self.column, datasets.Image(decode=False))
        self._captions = self.rows.select_columns([name for name in CAPTION_KEYS if name in rows.features])

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        """Number of the row."""
        return f"{i:08d}"

    def encoded(self, i: int) -> bytes:
        """The image of row `i`.

        Raises:
            InputError: the row has none, or its file cannot be read.
        """
        image = self.rows[i][self.column] or {}
        if image.get("bytes"):
            return image["bytes"]
        try:
            return Path(image["path"]).read_bytes()
        except (OSError, KeyError, TypeError) as error:
            raise InputError(f"{self.folder}: row {i} has no readable image ({error})") from error

    def caption(self, i: int) -> str | None:
        """The caption of row `i`."""
        return _from_row(self._captions[i], f"{self.folder}: row {i}")


class Scenes:
    """A folder written by `depth-control scenes`, or another RGB-D pair folder whose index has captions.

    Raises:
        InputError: no readable index.
    """

    def __init__(self, folder: Path):
        self.pairs = PairFolder(folder, scenes=True)

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, i: int) -> str:
        """File name of image `i`."""
        return self.pairs.rows[i]["file"]

    def encoded(self, i: int) -> bytes:
        """The file of image `i`.

        Raises:
            InputError: it cannot be read.
        """
        path = Path(self.pairs.folder) / self.name(i)
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error

    def caption(self, i: int) -> str | None:
        """The caption of image `i`."""
        return self.pairs.rows[i].get("caption")

    def disparity(self, i: int) -> np.ndarray:
        """The exact disparity of image `i`, float32 [H, W]; raises InputError as `PairFolder.read`."""
        return self.pairs.read(i).disparity


Captioned = CaptionedTree | CaptionedShards | HuggingFaceFolder | Scenes


def open_captioned(folder: Path) -> Captioned:
    """The source that a folder is, by what lies in it.

    Raises:
        InputError: no such folder, or what the reader refuses.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if (folder / "index.json").is_file():
        return Scenes(folder)
    markers = ("dataset_info.json", "dataset_dict.json")
    if any((folder / name).is_file() for name in markers) or next(folder.rglob("*.parquet"), None):
        return HuggingFaceFolder(folder)
    if next(folder.rglob("*.tar"), None):
        return CaptionedShards(folder)
    return CaptionedTree(folder)


def _metadata(path: Path) -> dict[str, str | None] | None:
    """Captions by file name of a `metadata.jsonl`; None when there is no such file."""
    if not path.exists():
        return None
    captions = {}
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                raise InputError(f"{path}, line {number}: must be an object with file_name")
            captions[row["file_name"].removeprefix("./")] = _from_row(row, f"{path}, line {number}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not JSON lines in UTF-8 ({error})") from error
    return captions


def _from_row(row: object, where: str) -> str | None:
    """The caption of a JSON object or a row; of a list of captions the first."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: not a JSON object")
    for key in CAPTION_KEYS:
        value = row.get(key)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, str):
            return _caption(value.encode(), where)
    return None


def _caption(data: bytes, where: str) -> str | None:
    if len(data) > 4 * LONGEST_CAPTION:
        raise InputError(f"{where}: {len(data)} bytes are no caption")
    try:
        return " ".join(data.decode("utf-8-sig").split()) or None
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text") from None
