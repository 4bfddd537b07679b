"""Ways to spoil a picture file."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def text_renamed(path: Path) -> None:
    path.write_text("not a picture")


def truncated_jpeg(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:700])


def huge_header(path: Path) -> None:
    """A valid header that declares 60000 x 60000 pixels, and no pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def absent(path: Path) -> None:
    pass
