"""The app from programs: gradio_client, plain HTTP, and the health page."""

import json
import threading

import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from PIL import Image

from depth_control import load_pipeline
from depth_model import DepthMap
from tests.ui.serving import serve

pytestmark = pytest.mark.slow
PROMPT = "red clay shapes on green grass hills at noon"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with serve("--port", "0", cwd=folder, log=folder / "server.log") as found:
        yield found


@pytest.fixture
def client(address, tmp_path):
    return Client(address, verbose=False, download_files=tmp_path / "downloads")


@pytest.fixture
def depth_file(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (16, 24)).astype(np.uint16)
    Image.fromarray(np.kron(values, np.ones((8, 8), np.uint16))).save(tmp_path / "depth.png")
    return tmp_path / "depth.png"


def test_own_depth_gives_the_pictures_that_python_gives(client, depth_file, tmp_path):
    report, files = client.predict(
        depth_file=handle_file(depth_file), prompt=PROMPT, steps=3, num_images=1, seed=11, api_name="/generate"
    )
    values = np.asarray(Image.open(depth_file)).astype(np.float32)
    np.savez(tmp_path / "depth.npz", values=values, kind="disparity")
    expected = load_pipeline("embedded", device="cpu")(
        PROMPT,
        depth=DepthMap.load(tmp_path / "depth.npz"),
        num_inference_steps=3,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(11),
    )
    # The server runs with one thread, this process with all: sums are rounded in another order.
    difference = np.asarray(Image.open(files[0])).astype(int) - np.asarray(expected.images[0]).astype(int)
    assert np.abs(difference).max() <= 2
    assert report[0]["seed"] == 11 and set(report[0]) >= {"structure", "detail", "spearman", "rmse"}
    saved = Image.open(files[1])
    assert saved.mode.startswith("I;16") and len(np.unique(np.asarray(saved))) > 256
    np.testing.assert_allclose(DepthMap.load(files[2]).values, values)


def test_estimates_come_with_their_kind(client, photo):
    told, files = client.predict(photo=handle_file(photo), api_name="/estimate")
    assert told == {"kind": "disparity", "width": 160, "height": 120, "model": "embedded"}
    assert DepthMap.load(files[1]).values.shape == (120, 160)


def test_plain_http_is_enough(address, photo):
    with httpx.Client(base_url=f"{address}/gradio_api", timeout=60) as http:
        (path,) = http.post("/upload", files={"files": ("photo.jpg", photo.read_bytes())}).json()
        body = {"photo": {"path": path, "meta": {"_type": "gradio.FileData"}}, "prompt": PROMPT, "steps": 2}
        job = http.post("/call/v2/generate", json=body).json()["event_id"]
        lines = http.get(f"/call/v2/generate/{job}").text.splitlines()
        report, files = json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))
        picture = http.get(f"/file={files[0]['path']}")
        assert picture.headers["content-type"] == "image/png" and report[0]["file"].startswith("picture_")


def test_health_answers_while_a_job_runs(client, address, photo):
    job = client.submit(photo=handle_file(photo), prompt=PROMPT, steps=60, num_images=2, api_name="/generate")
    seen = threading.Event()
    for _ in range(200):
        state = httpx.get(f"{address}/health", timeout=10).json()
        assert state["status"] == "ok"
        if state["running"]:
            seen.set()
            break
    assert seen.is_set()
    job.cancel()


def test_only_programs_endpoints_are_shown(client):
    shown = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(shown) == {"/generate", "/estimate"}


def test_a_password_keeps_strangers_out(tmp_path, photo):
    (tmp_path / "people").write_text("alice:secret\n")
    with serve("--port", "0", "--auth", f"@{tmp_path / 'people'}", cwd=tmp_path, log=tmp_path / "log") as address:
        stranger = httpx.Client(base_url=address, timeout=60)
        assert stranger.get("/health").json()["status"] == "ok"
        assert "alice" not in stranger.get("/").text
        picture = {"files": ("photo.jpg", photo.read_bytes())}
        assert stranger.post("/gradio_api/upload", files=picture).status_code == 401
        for path in ("/config", "/gradio_api/info", "/gradio_api/file=/etc/passwd"):
            assert stranger.get(path).status_code in (401, 403)
        assert stranger.post("/gradio_api/call/v2/estimate", json={"photo": None}).status_code == 401
        assert stranger.post("/login", data={"username": "alice", "password": "guess"}).status_code == 400
        assert stranger.post("/login", data={"username": "alice", "password": "secret"}).status_code == 200
        assert stranger.post("/gradio_api/upload", files=picture).status_code == 200
        assert Client(address, auth=("alice", "secret"), verbose=False).predict(
            photo=handle_file(photo), api_name="/estimate"
        )
