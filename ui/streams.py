"""No answer is lost between two jobs of one page.

Gradio tells a page by a `close_stream` message that nothing is left to report, and the page then closes its stream.
Of a job that joins the queue while this message is on its way the page hears nothing: it still counts the stream as
open, then closes it, and the answer waits on the server until the page asks for something else.
"""

import asyncio
import json
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

JOIN, DATA = "/gradio_api/queue/join", "/gradio_api/queue/data"
CLOSING = b'"msg":"close_stream"'
CLOSING_SECONDS = 2.0


class Streams:
    """ASGI middleware: a page hears that its job has joined only after it has closed the stream that is ending."""

    def __init__(self, app: ASGIApp, closing_seconds: float = CLOSING_SECONDS) -> None:
        """Wrap an application; a page that does not close its stream is waited for `closing_seconds`."""
        self.app, self.closing_seconds = app, closing_seconds
        self._closing: dict[str, asyncio.Event] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on one request."""
        path = scope["path"].rstrip("/") if scope["type"] == "http" else ""
        if path == DATA:
            await self._report(scope, receive, send)
        elif path == JOIN:
            await self._join(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _report(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        gone = asyncio.Event()
        end: Message | None = None

        async def watched(message: Message) -> None:
            nonlocal end
            if CLOSING in message.get("body", b""):
                self._closing[session] = gone
            last = message["type"] == "http.response.body" and not message.get("more_body")
            if last and self._closing.get(session) is gone:
                end = message
            else:
                await send(message)

        try:
            await self.app(scope, receive, watched)
            if end is not None:
                await _disconnected(receive, self.closing_seconds)
                await send(end)
        finally:
            gone.set()
            if self._closing.get(session) is gone:
                del self._closing[session]

    async def _join(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = ""

        async def read() -> Message:
            nonlocal session
            message = await receive()
            if message["type"] == "http.request":
                session = _session_of(message.get("body", b""))
            return message

        async def later(message: Message) -> None:
            if message["type"] == "http.response.start" and session in self._closing:
                await self._closing[session].wait()
            await send(message)

        await self.app(scope, read, later)


def _session_of(body: bytes) -> str:
    """The session that a join's body names; the guard has read it whole and found it to be JSON."""
    value = json.loads(body or b"null")
    session = value.get("session_hash") if isinstance(value, dict) else None
    return session if isinstance(session, str) else ""


async def _disconnected(receive: Receive, seconds: float) -> None:
    """Wait until the client has gone, at most some seconds."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        pass
