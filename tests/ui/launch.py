"""The true app over tiny random models, for tests of a server process: `python -m tests.ui.launch FOLDER`.

Prompts with these words make the drawing fail: "explode", "memory", "storage". Addresses that the process connects to
or looks up go to FOLDER/outside.log.
"""

import os
import socket
import sys
import time
from pathlib import Path

import ui.studio
from depth_model import DepthEstimator
from tests.tiny import estimator, pipeline
from ui.server import Config, main

STEP_SECONDS = 0.02
FAILURES = {
    "explode": RuntimeError("the inside of the server"),
    "memory": MemoryError(),
    "storage": OSError(28, "No space left on device"),
}


def tiny_pipeline(*names, **options):
    """A depth pipeline whose steps take `STEP_SECONDS`, so that there is something to stop."""
    from depth_control.pipelines import DepthStableDiffusionControlNetPipeline

    model, processor = estimator()
    pipe = DepthStableDiffusionControlNetPipeline.from_pipe(
        pipeline(), depth_estimator=model, depth_processor=processor
    )
    stock = type(pipe).__call__

    class Slow(type(pipe)):
        def __call__(self, prompt, *args, callback_on_step_end=None, **kwargs):
            for word, failure in FAILURES.items():
                if word in prompt:
                    raise failure

            def slow(*values):
                time.sleep(STEP_SECONDS)
                return callback_on_step_end(*values)

            return stock(self, prompt, *args, callback_on_step_end=slow, **kwargs)

    pipe.__class__ = Slow
    return pipe


def watch_sockets(log: Path) -> None:
    """Write down every address outside this machine."""

    def spy(event: str, values: tuple) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            address = values[1] if event == "socket.connect" else values[0]
            host = address[0] if isinstance(address, tuple) else address
            if host not in ("127.0.0.1", "localhost", "::1", None, "", socket.gethostname()):
                with open(log, "a") as file:
                    file.write(f"{event} {address}\n")

    sys.addaudithook(spy)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    os.environ["GRADIO_HEARTBEAT_INTERVAL"] = "1"
    watch_sockets(folder / "outside.log")
    ui.studio.load_pipeline = tiny_pipeline
    DepthEstimator.from_pretrained = classmethod(lambda cls, *names, **options: cls(*estimator()))
    main(Config(port=0, runs_dir=None))
