"""What stands in front of Gradio: sizes, hosts, origins, routes and rates are checked before it sees a request.

Gradio leaves some doors open that this app does not need: it reads form fields without a limit, fetches addresses that
a request names, and runs requests of foreign pages while it merely withholds their answers.
"""

import ipaddress
import json
import re
import shutil
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.failures import log_failure

MAX_BODY = 32 * 2**20
MAX_JSON = 2**20
RATE, BURST = 20.0, 120.0
LOGINS_PER_MINUTE = 10
MOST_CLIENTS = 4096
LEAST_FREE = 256 * 2**20
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

# Routes of Gradio that nothing here uses. Each of the others is listed in `ALLOWED`; a test compares both with what the
# installed Gradio has, so that an upgrade cannot open a new one unseen.
DENIED = (
    "/openapi.json",
    "/monitoring",
    "/gradio_api/proxy=",
    "/gradio_api/deep_link",
    "/gradio_api/vibe-",
    "/gradio_api/undo-vibe-",
    "/gradio_api/process_recording",
    "/gradio_api/dev/",
    "/gradio_api/stream/",
    "/gradio_api/component_server",
    "/gradio_api/custom_component",
    "/gradio_api/run-history",
    "/gradio_api/runs",
    "/gradio_api/api/",
    "/gradio_api/token",
    "/gradio_api/profiling",
    "/gradio_api/queue/status",
    "/gradio_api/file/",
    "/pwa_icon",
    "/svelte/",
)
ALLOWED = (
    "/",
    "/health",
    "/login",
    "/logout",
    "/config",
    "/theme.css",
    "/robots.txt",
    "/favicon.ico",
    "/manifest.json",
    "/static/",
    "/assets/",
    "/gradio_api/user",
    "/gradio_api/login_check",
    "/gradio_api/app_id",
    "/gradio_api/info",
    "/gradio_api/openapi.json",
    "/gradio_api/theme.css",
    "/gradio_api/startup-events",
    "/gradio_api/heartbeat/",
    "/gradio_api/queue/join",
    "/gradio_api/queue/data",
    "/gradio_api/call/",
    "/gradio_api/run/",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/gradio_api/upload",
    "/gradio_api/upload_progress",
    "/gradio_api/file=",
)
FORMS = ("/gradio_api/upload", "/login")
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass(frozen=True)
class Refusal(Exception):
    """An answer in place of Gradio's."""

    status: int
    message: str


@dataclass
class Rate:
    """Token buckets, one for each client."""

    per_second: float
    burst: float
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def take(self, client: str) -> bool:
        """Whether the client may go on now."""
        now = time.monotonic()
        tokens, last = self._buckets.pop(client, (self.burst, now))
        tokens = min(self.burst, tokens + (now - last) * self.per_second)
        self._buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        while len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return tokens >= 1


class Guard:
    """ASGI middleware; see the module."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: frozenset[str],
        root: Path,
        crowded: Callable[[str], bool] = lambda client: False,
        functions: Callable[[], Container[int]] | None = None,
    ) -> None:
        """Wrap an application.

        Args:
            app: What is guarded.
            hosts: Names under which this server may be addressed, without ports, lower case.
            root: Folder of uploads, whose storage must not run full.
            crowded: Whether a client has as many jobs waiting as it may.
            functions: Numbers of the functions that requests may call; any by default.
        """
        self.app, self.hosts, self.root, self.crowded, self.functions = app, hosts, root, crowded, functions
        self._requests, self._logins = Rate(RATE, BURST), Rate(LOGINS_PER_MINUTE / 60, LOGINS_PER_MINUTE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse or pass on one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state: dict[str, Any] = {"refusal": None, "started": False}
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._check(scope, headers)
            body = _counted(receive, _limit(scope), state)
            if scope["method"] not in SAFE_METHODS and not _is_form(scope):
                data = await _read(body)
                self._check_function(check_json(data))
                body = _replayed(data, receive)
            await self.app(scope, body, _secured(send, state))
        except Refusal as refusal:
            if not state["started"]:
                await _answer(refusal, scope, send)
        except Exception as error:
            # Where the body was cut off, Gradio fails over that, and the refusal says why.
            refusal = state["refusal"] or Refusal(500, f"this failed on the server (reference {log_failure(error)})")
            if not state["started"]:
                await _answer(refusal, scope, send)

    def _check_function(self, value: Any) -> None:
        number = value.get("fn_index") if isinstance(value, dict) else None
        if number is None or self.functions is None:
            return
        if not isinstance(number, int) or number not in self.functions():
            raise Refusal(404, "no such function")

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        path = unquote(scope["path"])
        client = scope["client"][0] if scope.get("client") else "unknown"
        host = host_name(headers.get("host", ""))
        if host not in self.hosts:
            raise Refusal(403, "this server is not addressed by that name; see --allowed-hosts")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise Refusal(403, "requests of other pages are refused")
        if origin is None and scope["method"] not in SAFE_METHODS and headers.get("sec-fetch-site") == "cross-site":
            raise Refusal(403, "requests of other pages are refused")
        if not is_allowed(path):
            raise Refusal(403 if path.startswith(DENIED) else 404, "not available here")
        if path.startswith("/gradio_api/file=") and not _is_plain_path(path.removeprefix("/gradio_api/file=")):
            raise Refusal(403, "only files of this server")
        if headers.get("range", "").count(",") or len(headers.get("range", "")) > 100:
            raise Refusal(416, "one range at a time")
        if scope["method"] in SAFE_METHODS:
            return
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > _limit(scope):
            raise Refusal(413, f"the request is larger than {_limit(scope) // 2**20} MB")
        if path.startswith("/gradio_api/upload") and shutil.disk_usage(self.root).free < LEAST_FREE:
            raise Refusal(507, "the server's storage is full; try again in a minute")
        if is_loopback(client):
            return
        if path.startswith("/login") and not self._logins.take(client):
            raise Refusal(429, "too many attempts; wait a minute")
        if not self._requests.take(client):
            raise Refusal(429, "too many requests; wait a moment")
        if path.startswith(("/gradio_api/queue/join", "/gradio_api/call/")) and self.crowded(client):
            raise Refusal(429, "your earlier jobs are still waiting; let one of them finish first")


def is_allowed(path: str) -> bool:
    """Whether a path belongs to a route of `ALLOWED` and to none of `DENIED`."""
    if path.startswith(DENIED):
        return False
    bare = path.rstrip("/") or "/"
    return any(
        path.startswith(route) if route.endswith(("/", "=")) and route != "/" else bare == route for route in ALLOWED
    )


def is_loopback(address: str) -> bool:
    """Whether a client sits on this machine."""
    try:
        return ipaddress.ip_address(address.split("%")[0]).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """A Host header without its port, lower case."""
    return re.sub(r":\d+$", "", host.strip().lower())


def check_json(body: bytes) -> Any:
    """Read JSON, but refuse what Gradio would take amiss: numbers that are none, and files that are elsewhere.

    Raises:
        Refusal: 400 for what is no JSON, 422 for NaN and infinity, 403 for a file that this server would have to fetch.
    """

    def no_constant(name: str) -> None:
        raise Refusal(422, f"{name} is not a number that can be used here")

    try:
        value = json.loads(body or b"null", parse_constant=no_constant, parse_float=_finite)
    except RecursionError:
        raise Refusal(400, "nested too deeply") from None
    except ValueError:
        raise Refusal(400, "not JSON") from None
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if isinstance(item.get("path"), str) and not _is_plain_path(item["path"]):
                raise Refusal(403, "upload the file instead of naming where it is")
            if isinstance(item.get("url"), str) and item["url"].strip().lower().startswith("data:"):
                raise Refusal(403, "upload the file instead of sending it inside the request")
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return value


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise Refusal(422, f"{text[:20]} is not a number that can be used here")
    return value


def _is_plain_path(path: str) -> bool:
    """Whether it names a local file: no scheme, no second host, no NUL."""
    path = unquote(path).strip()
    return not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", path) and not path.startswith(("//", "\\")) and "\0" not in path


def _is_form(scope: Scope) -> bool:
    """Whether a body is form data. By route, not by what the request says of itself: all other bodies must be JSON."""
    return scope["path"].startswith(FORMS)


def _limit(scope: Scope) -> int:
    return MAX_BODY if _is_form(scope) else MAX_JSON


def _counted(receive: Receive, limit: int, state: dict[str, Any]) -> Receive:
    """`receive` that ends a body beyond the limit, whatever its headers said."""
    count = 0

    async def counted() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > limit:
            state["refusal"] = Refusal(413, f"the request is larger than {limit // 2**20} MB")
            raise state["refusal"]
        return message

    return counted


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "disconnected")
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` that first gives a body that was already read."""
    first = True

    async def replayed() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed


def _secured(send: Send, state: dict[str, Any]) -> Callable[[Message], Awaitable[None]]:
    """`send` that adds the safety headers, and puts a refusal in the place of an answer that came in spite of it."""

    async def secured(message: Message) -> None:
        if state["refusal"] is not None and not state["started"]:
            raise state["refusal"]
        if message["type"] == "http.response.start":
            state["started"] = True
            kept = [(k, v) for k, v in message.get("headers", []) if not k.lower().startswith(b"access-control-")]
            message = message | {"headers": [*kept, *HEADERS]}
        await send(message)

    return secured


async def _answer(refusal: Refusal, scope: Scope, send: Send) -> None:
    headers = {name.decode(): value.decode() for name, value in HEADERS} | {"connection": "close"}
    response = JSONResponse({"detail": refusal.message}, refusal.status, headers)

    async def no_receive() -> Message:
        return {"type": "http.disconnect"}

    await response(scope, no_receive, send)
