"""A job that joins while its page's stream is ending waits until the page has closed that stream."""

import asyncio
import json
import time

import pytest

from ui.streams import DATA, JOIN, Streams


class Page:
    """Both ends of one page: requests to the middleware, and the order in which things happened."""

    def __init__(self, closing_seconds: float = 30, last: str = "close_stream") -> None:
        self.last, self.happened, self.left = last, [], asyncio.Event()
        self.app = Streams(self.behind, closing_seconds)

    async def behind(self, scope, receive, send) -> None:
        if scope["path"] == JOIN:
            assert json.loads((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == JOIN:
            await send({"type": "http.response.body", "body": b"{}"})
            return
        for name in ("process_completed", self.last):
            body = f'data: {{"event_id":null,"msg":"{name}"}}\n\n'.encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def ask(self, path: str, session: str) -> None:
        async def receive():
            if path == JOIN:
                return {"type": "http.request", "body": json.dumps({"session_hash": session}).encode()}
            await self.left.wait()
            self.happened.append("left")
            return {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.start" and path == JOIN:
                self.happened.append(f"{session} joined")
            if message.get("body") and path == DATA:
                self.happened.append(json.loads(message["body"].removeprefix(b"data: "))["msg"])

        query = f"session_hash={session}".encode()
        await self.app({"type": "http", "path": path, "query_string": query}, receive, send)


async def join_while_it_ends(page: Page, *sessions: str) -> None:
    """Open a stream of session `a`, join with each session as soon as it is ending, then leave."""
    stream = asyncio.create_task(page.ask(DATA, "a"))
    while page.last not in page.happened:
        await asyncio.sleep(0)
    joins = [asyncio.create_task(page.ask(JOIN, session)) for session in sessions]
    await asyncio.sleep(0.05)
    page.left.set()
    await asyncio.gather(stream, *joins)


def test_the_join_is_told_after_the_page_has_closed_its_stream():
    page = Page()
    asyncio.run(join_while_it_ends(page, "a"))
    assert page.happened == ["process_completed", "close_stream", "left", "a joined"]


def test_other_sessions_do_not_wait():
    page = Page()
    asyncio.run(join_while_it_ends(page, "a", "b"))
    assert page.happened == ["process_completed", "close_stream", "b joined", "left", "a joined"]


def test_a_stream_that_goes_on_holds_nobody():
    page = Page(last="process_starts")
    asyncio.run(join_while_it_ends(page, "a"))
    assert page.happened == ["process_completed", "process_starts", "a joined"]


def test_a_client_that_keeps_its_stream_open_is_not_waited_for_forever():
    async def run(page: Page) -> None:
        stream = asyncio.create_task(page.ask(DATA, "a"))
        await asyncio.sleep(0)
        await page.ask(JOIN, "a")
        await stream

    page = Page(closing_seconds=0.1)
    start = time.monotonic()
    asyncio.run(run(page))
    assert 0.1 <= time.monotonic() - start < 10 and page.happened[-1] == "a joined"


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'{"session_hash": 3}', b'{"session_hash": null}'])
def test_a_join_without_a_session_passes(body):
    sent = []

    async def behind(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 422, "headers": []})

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        sent.append(message["status"])

    asyncio.run(Streams(behind)({"type": "http", "path": JOIN, "query_string": b""}, receive, send))
    assert sent == [422]
