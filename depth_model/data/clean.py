"""Files of a collection of clean shards, as `collect` writes and `verify` reads them.

`images-NNNNNN.tar` holds images under their number among all that were examined, in the bytes they were found in.
`images-NNNNNN.jsonl`, written after it, has a line for each image examined meanwhile, in order: `number`, `set` (which
of the sources), `name`, and either `file`, `offset`, `size`, `sha256`, `width`, `height`, `code` (perceptual hash) of
one that was kept, or `reason` and `detail` of one that was dropped. `collect.json` ends the collection.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from depth_model.errors import InputError

MANIFEST, SETTINGS, EXCLUDED = "collect.json", "settings.json", "excluded.jsonl"


def shard_file(folder: Path, number: int) -> Path:
    """The tar of shard `number`; its index is beside it."""
    return folder / f"images-{number:06d}.tar"


def index_files(folder: Path) -> list[Path]:
    """The indexes in their order, up to the first that is missing."""
    found = []
    while (index := shard_file(folder, len(found)).with_suffix(".jsonl")).exists():
        found.append(index)
    return found


def read_rows(index: Path) -> Iterator[dict]:
    """The lines of an index.

    Raises:
        InputError: a damaged line.
    """
    try:
        with index.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise InputError(f"{index}: cannot be read ({error}); remove it and all later ones, then go on") from error
