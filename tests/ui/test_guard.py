"""The guard in front of Gradio: routes, hosts, origins, sizes, JSON and rates."""

import asyncio
import json
import os
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse

from depth_model.errors import InputError
from ui.guard import ALLOWED, BURST, DENIED, MAX_BODY, MAX_JSON, Guard, Rate, Refusal, check_json, host_name, is_allowed
from ui.server import Config, build_server, own_hosts, read_auth, sweep_folder

HOSTS = frozenset({"localhost", "127.0.0.1"})


class Behind:
    """An application that reads its whole request and remembers that it ran."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, int]] = []

    async def __call__(self, scope, receive, send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        self.ran.append((scope["path"], size))
        headers = {"Access-Control-Allow-Origin": "https://evil.example", "Access-Control-Allow-Credentials": "true"}
        await PlainTextResponse("through", headers=headers)(scope, receive, send)


def ask(app, method: str, path: str, client: str = "127.0.0.1", host: str = "localhost:7860", **options):
    """One request to an ASGI application."""

    async def run():
        transport = httpx.ASGITransport(app, client=(client, 5000), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7860") as http:
            headers = {"host": host} | options.pop("headers", {})
            return await http.request(method, path, headers=headers, **options)

    return asyncio.run(run())


@pytest.fixture
def behind():
    return Behind()


@pytest.fixture
def guard(behind, tmp_path):
    return Guard(behind, HOSTS, tmp_path)


def routes_of(app) -> set[str]:
    """Every path that an application has registered, of mounted applications and included routers too."""
    found = set()
    for route in app.routes:
        inner = getattr(route, "app", None) if not hasattr(route, "endpoint") else None
        inner = getattr(route, "original_router", inner)
        if inner is not None and hasattr(inner, "routes"):
            found |= {getattr(route, "path", "") + path for path in routes_of(inner)}
        else:
            found.add(route.path)
    return found


def test_every_route_of_gradio_is_classified(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "GRADIO_TEMP_DIR", str(tmp_path))
    paths = routes_of(build_server(Config(runs_dir=None), tmp_path))
    assert len(paths) > 60 and "/gradio_api/queue/join" in paths
    unknown = {path for path in paths if not path.startswith(DENIED) and not is_allowed(path)}
    assert not unknown, "routes that Gradio has added: put each into ALLOWED or DENIED of ui/guard.py"
    assert all(any(path.startswith(route) for path in paths) for route in ALLOWED), "routes that are gone"


@pytest.mark.parametrize("route", DENIED)
def test_routes_that_nothing_uses_are_closed(guard, behind, route):
    for path in (route, f"{route}x", route.replace("m", "%6D", 1)):
        assert ask(guard, "GET", path).status_code == 403
    assert not behind.ran


@pytest.mark.parametrize("path", ["/new", "/gradio_api/new", "/gradio_api", "/admin", "/gradio_api/queue"])
def test_unknown_routes_are_closed(guard, behind, path):
    assert ask(guard, "GET", path).status_code in (403, 404)
    assert not behind.ran


ORIGINS = [
    "null",
    "https://evil.example",
    "http://localhost.evil.example",
    "http://evil.example:7860",
    "file://",
    "http://x@evil",
]


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1:7860"])
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/cancel", "/login"])
def test_other_pages_are_refused_before_anything_runs(guard, behind, origin, host, path):
    answer = ask(guard, "POST", path, host=host, headers={"origin": origin}, content=b"{}")
    assert answer.status_code == 403 and not behind.ran
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_other_pages_may_not_read_either_and_cors_is_never_granted(guard, behind):
    assert ask(guard, "GET", "/config", headers={"origin": "https://evil.example"}).status_code == 403
    answer = ask(guard, "GET", "/config", headers={"origin": "http://localhost:7860"})
    assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_cross_site_post_without_an_origin_is_refused(guard, behind):
    headers = {"sec-fetch-site": "cross-site"}
    assert ask(guard, "POST", "/gradio_api/upload", headers=headers, content=b"x").status_code == 403
    assert not behind.ran


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "169.254.169.254", "localhost:7860@x"])
def test_rebound_names_are_refused(guard, behind, host):
    assert ask(guard, "GET", "/", host=host).status_code == 403 and not behind.ran


def test_own_names():
    assert own_hosts(Config()) >= {"localhost", "127.0.0.1", "[::1]"}
    assert "gallery.example" in own_hosts(Config(allowed_hosts=("Gallery.example",)))
    assert host_name("LOCALHOST:7860") == "localhost" and host_name("[::1]:7860") == "[::1]"


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/login"])
@pytest.mark.parametrize("stated", [True, False])
def test_bodies_beyond_the_limit_are_cut_off(guard, behind, path, stated):
    async def chunks():
        for _ in range(MAX_BODY // 2**20 + 8):
            yield bytes(2**20)

    content = bytes(MAX_BODY + 1) if stated else chunks()
    assert ask(guard, "POST", path, content=content).status_code == 413
    assert not behind.ran


def test_forms_within_the_limit_pass(guard, behind):
    assert ask(guard, "POST", "/gradio_api/upload", content=bytes(5 * 2**20)).status_code == 200
    assert behind.ran == [("/gradio_api/upload", 5 * 2**20)]


@pytest.mark.parametrize("kind", ["application/json", "text/plain", None])
def test_other_bodies_must_be_small_json_whatever_they_say_they_are(guard, behind, kind):
    headers = {"content-type": kind} if kind else {}
    path = "/gradio_api/queue/join"
    assert ask(guard, "POST", path, headers=headers, content=bytes(MAX_JSON + 1)).status_code == 413
    assert ask(guard, "POST", path, headers=headers, content=b'{"data": [NaN]}').status_code == 422
    assert ask(guard, "POST", path, headers=headers, content=b"<xml/>").status_code == 400
    assert not behind.ran
    assert ask(guard, "POST", path, headers=headers, content=b'{"data": [1]}').status_code == 200
    assert behind.ran == [(path, len(b'{"data": [1]}'))]


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400"])
def test_numbers_that_are_none_are_refused(text):
    with pytest.raises(Refusal) as refused:
        check_json(f'{{"data": [[{{"x": {text}}}]]}}'.encode())
    assert refused.value.status == 422


@pytest.mark.parametrize("body", [b"[" * 400_000, b'{"a":' * 100_000, b"{", b"\xff\xfe", b"nul"])
def test_broken_json_is_refused(body):
    with pytest.raises(Refusal) as refused:
        check_json(body)
    assert refused.value.status == 400


REMOTE = ["http://evil.example/a.png", "HTTPS://evil", "ftp://x/a", "file:///etc/passwd", "data:image/png;base64,AA"]
REMOTE += ["//evil/a.png", "\\\\evil\\a.png", " http://[::1]/", "h%74tp://0x7f.1/", "/ok\0.png"]


@pytest.mark.parametrize("path", REMOTE)
def test_files_elsewhere_are_not_fetched(guard, behind, path):
    with pytest.raises(Refusal) as refused:
        check_json(json.dumps({"data": [None, [{"path": path, "meta": {}}]]}).encode())
    assert refused.value.status == 403
    if "\0" not in path:
        assert ask(guard, "GET", f"/gradio_api/file={path}").status_code in (403, 404)
    assert not behind.ran


def test_own_files_pass():
    url = "http://localhost:7860/gradio_api/file=/x/a.png"
    check_json(json.dumps({"data": [{"path": "/x/a.png", "url": url}, "http://in a prompt"]}).encode())
    with pytest.raises(Refusal):
        check_json(json.dumps({"data": [{"path": "/x/a.png", "url": "data:image/png;base64,AAAA"}]}).encode())


@pytest.mark.parametrize("ranges", [",".join(f"{i}-{i}" for i in range(10_000)), "0-1,2-3", "0" * 200])
def test_many_ranges_are_refused(guard, behind, ranges):
    answer = ask(guard, "GET", "/gradio_api/file=/x/a.png", headers={"range": f"bytes={ranges}"})
    assert answer.status_code == 416 and not behind.ran


def test_a_full_disk_is_told(guard, behind, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    answer = ask(guard, "POST", "/gradio_api/upload", content=b"x")
    assert answer.status_code == 507 and "full" in answer.json()["detail"] and not behind.ran


def test_strangers_are_slowed_down_and_this_machine_is_not(guard):
    def statuses(client: str, path: str, count: int) -> list[int]:
        return [ask(guard, "POST", path, client=client, content=b"{}").status_code for _ in range(count)]

    assert statuses("10.0.0.1", "/login", 12).count(429) >= 1
    assert 429 not in statuses("10.0.0.2", "/login", 5)
    assert statuses("10.0.0.3", "/gradio_api/cancel", int(BURST) + 40).count(429) >= 1
    assert 429 not in statuses("127.0.0.1", "/login", 30)


def test_strangers_may_have_few_jobs_waiting(behind, tmp_path):
    guard = Guard(behind, HOSTS, tmp_path, crowded=lambda client: client == "10.0.0.1")
    join = "/gradio_api/queue/join"
    assert ask(guard, "POST", join, client="10.0.0.1", content=b"{}").status_code == 429
    assert ask(guard, "POST", join, client="10.0.0.2", content=b"{}").status_code == 200


def test_buckets_refill_and_stay_few(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    rate = Rate(per_second=1, burst=2)
    assert [rate.take("a") for _ in range(3)] == [True, True, False]
    now[0] = 1.0
    assert rate.take("a") and not rate.take("a")
    for i in range(10_000):
        rate.take(str(i))
    assert len(rate._buckets) <= 4096


@pytest.mark.parametrize("text", ["alice", "alice:", ":secret", "@missing"])
def test_auth_without_a_name_or_password_is_refused(text):
    with pytest.raises(InputError, match="--auth"):
        read_auth(text)


def test_auth_from_a_file(tmp_path):
    (tmp_path / "people").write_text("alice:se:cret\n\nbob: x\n")
    assert read_auth(f"@{tmp_path / 'people'}") == [("alice", "se:cret"), ("bob", "x")]
    assert read_auth(None) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_a_network_needs_a_password(host):
    with pytest.raises(InputError, match="--auth"):
        Config(host=host)
    assert Config(host=host, auth="a:b").host == host


def test_old_files_go_first_and_the_rest_fits(tmp_path):
    for i in range(6):
        folder = tmp_path / f"job{i}"
        folder.mkdir()
        (folder / "a.png").write_bytes(bytes(1000))
        os.utime(folder / "a.png", (1000 + i, 1000 + i) if i < 2 else None)
    sweep_folder(tmp_path, quota=3000)
    kept = {path.parent.name for path in Path(tmp_path).rglob("*.png")}
    assert len(kept) == 3 and not kept & {"job0", "job1"}
