"""A true server in a process of its own, for tests."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def serve(*flags: str, cwd: Path, log: Path, module: str = "ui") -> Iterator[str]:
    """Run `python -m MODULE` with these flags in `cwd`, its stderr in `log`, and give its address."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
    }
    command = [sys.executable, "-m", module, *flags]
    with open(log, "w") as errors:
        server = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        line = server.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"no address: {line!r} {log.read_text()}"
        yield found[0]
    finally:
        server.terminate()
        server.wait(20)
        server.stdout.close()
