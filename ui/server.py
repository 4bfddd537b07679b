"""`depth-control ui`: the app on a web server of its own."""

import atexit
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from depth_model.errors import InputError

CACHE_QUOTA = 2 * 2**30
CACHE_SECONDS = 3600
SWEEP_SECONDS = 60
WAITING_PER_CLIENT = 4
JOB_SECONDS = 300.0


@dataclass(frozen=True)
class Config:
    """Open the app in the browser: depth, pictures that obey it, training runs."""

    host: str = "127.0.0.1"
    """Address to listen on; anything but this machine's own needs --auth."""
    port: int = 7860
    """Port to listen on; 0 takes a free one."""
    auth: str | None = None
    """NAME:PASSWORD that visitors need, or @FILE with such lines."""
    allowed_hosts: tuple[str, ...] = ()
    """More names under which browsers reach this server, such as that of a proxy."""
    models_dir: Path | None = None
    """Folder whose model folders (pipelines, ControlNets, depth models) are on the menus."""
    runs_dir: Path | None = Path("runs")
    """Folder of training runs for the Runs tab."""
    job_seconds: float | None = None
    """Longest that one job may take. Default: 300 with --auth, else no limit."""
    device: str | None = None
    """cpu, cuda, mps. Default: the best there is."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Precision of the networks. Default: float16 on CUDA, else float32."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port must be from 0 to 65535, not {self.port}")
        if self.job_seconds is not None and not self.job_seconds > 0:
            raise InputError(f"--job-seconds must be above 0, not {self.job_seconds}")
        if self.auth is None and not is_local(self.host):
            raise InputError(f"--host {self.host} opens the app to a network: give --auth NAME:PASSWORD (or @FILE) too")


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host in ("localhost", "::1") or host.startswith("127.")


def read_auth(auth: str | None) -> list[tuple[str, str]] | None:
    """Names and passwords of `--auth`.

    Raises:
        InputError: a line without both, or a file that cannot be read.
    """
    if auth is None:
        return None
    lines = [auth]
    if auth.startswith("@"):
        try:
            lines = [line for line in Path(auth[1:]).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError):
            raise InputError(f"--auth {auth}: the file cannot be read") from None
    pairs = [tuple(part.strip() for part in line.split(":", 1)) for line in lines]
    if not pairs or any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise InputError("--auth must be NAME:PASSWORD, or @FILE with one such line for each person")
    return pairs


def own_hosts(config: Config) -> frozenset[str]:
    """Names under which browsers may address the server; any other is a rebound name of a foreign page."""
    names = {"localhost", "127.0.0.1", "[::1]", config.host.lower(), *(host.lower() for host in config.allowed_hosts)}
    if not is_local(config.host):
        name = socket.gethostname().lower()
        names |= {name, socket.getfqdn().lower()}
        try:
            names |= {info[4][0] for info in socket.getaddrinfo(name, None)}
        except OSError:
            pass  # the machine does not know its own name; --allowed-hosts helps
    return frozenset(names)


def build_server(config: Config, root: Path):
    """The FastAPI application.

    Args:
        config: Checked settings.
        root: Empty folder for uploads and results; `GRADIO_TEMP_DIR` must name it before Gradio is imported.

    Raises:
        InputError: settings that cannot be served.
    """
    import gradio as gr
    from fastapi import FastAPI
    from starlette.responses import JSONResponse

    from ui.app import SESSIONS, STYLE, build_app, theme
    from ui.catalog import read_catalog
    from ui.guard import Guard
    from ui.streams import Streams
    from ui.studio import Studio
    from ui.uploads import MAX_FILE

    auth = read_auth(config.auth)
    limit = config.job_seconds or (JOB_SECONDS if auth else None)
    studio = Studio(read_catalog(config.models_dir), root, config.device, config.dtype, limit)
    page = build_app(studio, config.runs_dir.resolve() if config.runs_dir and config.runs_dir.is_dir() else None)
    page.state_session_capacity = SESSIONS
    # Mounted apps count as not launched, and then Gradio takes any file of this machine that a request names.
    page.has_launched = True
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    started = time.monotonic()

    def waiting(client: str | None = None) -> int:
        queues = page._queue.event_queue_per_concurrency_id.values()
        events = [event for queue in queues for event in list(queue.queue)]
        return sum(client is None or (event.request.client or ("",))[0] == client for event in events)

    @app.get("/health")
    async def health() -> JSONResponse:
        running = sum(queue.current_concurrency for queue in page._queue.event_queue_per_concurrency_id.values())
        uptime = round(time.monotonic() - started, 1)
        return JSONResponse({"status": "ok", "waiting": waiting(), "running": running, "uptime_seconds": uptime})

    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=config.host,
        server_port=config.port,
        auth=auth,
        auth_message="Sign in to use depth-control." if auth else None,
        allowed_paths=[],
        show_error=False,
        max_file_size=MAX_FILE,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        footer_links=["api", "settings"],
        theme=theme(),
        css_paths=[STYLE],
    )
    # The one that is added last sees a request first.
    app.add_middleware(Streams)
    app.add_middleware(
        Guard,
        hosts=own_hosts(config),
        root=root,
        crowded=lambda client: waiting(client) >= WAITING_PER_CLIENT,
        functions=lambda: page.fns,
    )
    app.state.studio, app.state.page = studio, page
    return app


def sweep_folder(root: Path, quota: int = CACHE_QUOTA, seconds: float = CACHE_SECONDS) -> None:
    """Delete files that are old, then the oldest until the rest fits, and folders that are empty."""
    files = []
    for path in root.rglob("*"):
        try:
            if path.is_file():
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        except OSError:
            continue
    total = sum(size for _, size, _ in files)
    now = time.time()
    for modified, size, path in sorted(files):
        if now - modified <= seconds and total <= quota:
            break
        path.unlink(missing_ok=True)
        total -= size
    for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
        try:
            if now - folder.stat().st_mtime > seconds:
                folder.rmdir()
        except OSError:
            continue


def prepare_process() -> Path:
    """Settings that Gradio and diffusers read when they are imported, and the folder of this server's files."""
    from PIL import Image

    root = Path(tempfile.mkdtemp(prefix="depth-control-ui-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    os.environ |= {
        "GRADIO_TEMP_DIR": str(root),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    }
    # Pillow's own limit hides the size of what it refuses; `ui.uploads` has a lower one, and looks at the header first.
    Image.MAX_IMAGE_PIXELS = None
    return root


def main(config: Config) -> None:
    """Serve until interrupted."""
    read_auth(config.auth)
    try:
        listener = socket.create_server((config.host, config.port))
    except OSError as error:
        raise InputError(
            f"--host {config.host} --port {config.port}: cannot listen there ({os.strerror(error.errno)})"
        ) from None
    # asyncio leaves this out for sockets made elsewhere, and each small answer then waits 40 ms to be sent.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    root = prepare_process()

    import uvicorn

    app = build_server(config, root)
    # People on a network must not read what this account may read from the Hub.
    os.environ.pop("HF_TOKEN", None)
    threading.Thread(target=app.state.studio.warm_up, daemon=True).start()
    threading.Thread(target=_sweep_forever, args=(root,), daemon=True).start()
    port = listener.getsockname()[1]
    shown = f"[{config.host}]" if ":" in config.host else config.host
    print(f"depth-control is at http://{shown}:{port} (Ctrl+C ends it)", flush=True)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False, proxy_headers=False)
    )
    # uvicorn ends in order and then sends itself the signal again, whose default leaves the temporary folder behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    server.run(sockets=[listener])


def _sweep_forever(root: Path) -> None:
    while True:
        time.sleep(SWEEP_SECONDS)
        sweep_folder(root)
