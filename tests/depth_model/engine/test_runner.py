"""The Ray runner: results of every unit, workers that die, and what a task raises."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from depth_model.engine import runner
from depth_model.engine.runner import run_on_ray
from depth_model.errors import InputError, RunError

pytestmark = pytest.mark.slow
pytest.importorskip("ray")


@dataclass
class Local:
    address: str = "local"
    gpus: float | None = None
    cpus: float = 1.0


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    # A busy machine starts a cluster slowly.
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")


def test_units_of_workers_that_die_are_done_by_others(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "RETRIES", 2)

    def task(unit, folder):
        first = Path(folder, unit)
        if unit == "poison" or (unit in ("b", "d") and not first.exists()):
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [(unit, "")]

    results = dict(run_on_ray(task, [*"abcdef", "poison"], (str(tmp_path),), Local()))
    assert {unit for unit, problem in results.items() if not problem} == set("abcdef")
    assert "died" in results["poison"]


def test_what_a_task_raises_is_raised(tmp_path):
    def task(unit):
        raise RunError("the disk is full")

    with pytest.raises(RunError, match="the disk is full"):
        list(run_on_ray(task, ["a"], (), Local()))


def test_an_address_without_a_cluster():
    began = time.monotonic()
    with pytest.raises(InputError, match="--address auto: no Ray cluster there"):
        list(run_on_ray(print, ["a"], (), Local("auto")))
    assert time.monotonic() - began < 60
