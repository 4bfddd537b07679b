"""Tiny models, a photo, and no network."""

import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny import save_estimator, save_pipeline


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, str]:
    """Folders of a tiny random pipeline and a tiny random estimator."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "model": str(save_pipeline(folder / "pipeline")),
        "depth_model": str(save_estimator(folder / "estimator")),
    }


@pytest.fixture
def photo(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((160, 120)).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
