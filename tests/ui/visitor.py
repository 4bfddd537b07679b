"""Somebody who talks to the server without a browser."""

import json
import uuid
from pathlib import Path
from typing import Any

import httpx

from ui.handlers import FIELDS

PROMPT = "red clay room"


class Visitor:
    """One session: uploads, jobs, and what they answered."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=f"{address}/gradio_api", timeout=60)
        self.session = uuid.uuid4().hex
        config = self.http.get(f"{address}/config").json()
        self.endpoints = {d["api_name"]: d["id"] for d in config["dependencies"] if d["api_name"]}

    def upload(self, name: str, data: bytes) -> dict[str, Any]:
        """Upload bytes under a name; gives the file as handlers get it."""
        answer = self.http.post("/upload", files={"files": (name, data)})
        answer.raise_for_status()
        return as_file(answer.json()[0])

    def join(self, endpoint: str, data: list[Any]) -> httpx.Response:
        """Put a job into the queue."""
        body = {"data": data, "fn_index": self.endpoints[endpoint], "session_hash": self.session}
        return self.http.post("/queue/join", content=json.dumps(body), headers={"content-type": "application/json"})

    def messages(self):
        """What the server says about this session's jobs, until it has no more."""
        with self.http.stream("GET", "/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line.removeprefix("data:"))
                    yield message
                    if message["msg"] == "close_stream":
                        return

    def result(self, endpoint: str, data: list[Any]) -> tuple[bool, Any]:
        """Run a job to its end: whether it was done, and its answer or what was said instead."""
        answer = self.join(endpoint, data)
        if answer.status_code != 200:
            return False, answer.json()["detail"]
        last = [m for m in self.messages() if m["msg"] == "process_completed"][-1]
        return last["success"], last["output"]["data"] if last["success"] else str(last["output"]["error"])

    def generate(self, photo: Any = None, depth: Any = None, **fields: Any) -> tuple[bool, Any]:
        """`result` of a drawing."""
        return self.result("generate", drawing(photo, depth, **fields))


def as_file(path: str) -> dict[str, Any]:
    """A server's file as requests name it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": Path(path).name}


def drawing(photo: Any = None, depth: Any = None, **fields: Any) -> list[Any]:
    """The data of `/generate`, with quick defaults."""
    values = {"prompt": PROMPT, "negative_prompt": "", "model": "embedded", "controlnet": "", "depth_model": ""}
    values |= {"near": 0, "far": 1, "gamma": 1, "invert": False, "steps": 2, "guidance_scale": 1, "control_scale": 1}
    values |= {"control_start": 0, "control_end": 1, "num_images": 1, "seed": 0, "depth_kind": "stated"} | fields
    return [photo, depth, False, *(values[name] for name in FIELDS)]
