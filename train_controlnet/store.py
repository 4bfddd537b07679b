"""Tensors on disk by key: safetensors files that only grow in number, each complete or absent."""

import os
import uuid
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from depth_model.errors import RunError

FLUSH_BYTES = 64 << 20
"""Tensors are gathered up to this size; a kill loses no more than that."""


class Store:
    """A folder of `*.safetensors` files, read by key through memory maps.

    Attributes:
        damaged: files that cannot be read; what they held counts as absent.
    """

    def __init__(self, folder: Path):
        self.folder, self.damaged = Path(folder), []
        self._files: dict[str, Path] = {}
        self._open: dict[Path, safe_open] = {}
        self._pending: dict[str, Tensor] = {}
        self._bytes = 0
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    self._files |= dict.fromkeys(file.keys(), path)
            except (OSError, SafetensorError):
                self.damaged.append(path)

    def __contains__(self, key: str) -> bool:
        return key in self._files or key in self._pending

    def __getstate__(self) -> dict:
        # Memory maps do not travel to the workers of a loader; each opens its own.
        return self.__dict__ | {"_open": {}}

    def __getitem__(self, key: str) -> Tensor:
        if key in self._pending:
            return self._pending[key]
        path = self._files[key]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        return self._open[path].get_tensor(key)

    def add(self, key: str, tensor: Tensor) -> None:
        """Keeps a tensor, and writes a file when enough have come together; raises RunError as `flush`."""
        self._pending[key] = tensor.contiguous()
        self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since the last file.

        Raises:
            RunError: the disk is full or not writable; the files before are untouched.
        """
        if not self._pending:
            return
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        partial = path.with_suffix(".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(self._pending, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.rename(path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise RunError(
                f"{path}: cannot be written ({error}); what was prepared before is kept: make room and run the same "
                "command again"
            ) from error
        self._files |= dict.fromkeys(self._pending, path)
        self._pending, self._bytes = {}, 0

    def clean(self) -> None:
        """Removes damaged files, and what killed runs left half written."""
        for path in [*self.damaged, *self.folder.glob("*.partial")]:
            path.unlink(missing_ok=True)
        self.damaged = []
