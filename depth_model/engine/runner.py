"""Units of work as tasks on a Ray cluster: retries, lost workers and machines, and fractions of a GPU are Ray's."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

from depth_model.errors import InputError

RETRIES = 10
"""How often Ray starts a task again whose worker died; after that its unit counts as failed."""

_IN_FLIGHT = 4096


class RaySettings(Protocol):
    """Where the tasks run and what each takes; see `label.Config`."""

    address: str
    gpus: float | None
    cpus: float


def run_on_ray(
    task: Callable[..., list[tuple[str, str]]], units: list[str], arguments: tuple, settings: RaySettings
) -> Iterator[tuple[str, str]]:
    """The results of `task(unit, *arguments)` for all units, in the order in which they end.

    A task whose worker dies more than `RETRIES` times, as one would on an image that kills its decoder, gives its unit
    and what happened.

    Raises:
        InputError: no Ray, or no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise InputError('--runner ray needs a package: pip install "depth-control[ray]"') from None
    try:
        ray.init(address=settings.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError) as error:
        raise InputError(
            f"--address {settings.address}: no Ray cluster there ({error}); start one with `ray start --head`, or give "
            "--address local"
        ) from None
    gpus = settings.gpus
    if gpus is None:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
    remote = ray.remote(task).options(num_cpus=settings.cpus, num_gpus=gpus, max_retries=RETRIES)
    left, waiting = iter(units), {}
    try:
        while True:
            for unit in islice(left, _IN_FLIGHT - len(waiting)):
                waiting[remote.remote(unit, *arguments)] = unit
            if not waiting:
                return
            ended, _ = ray.wait(list(waiting), num_returns=1)
            for reference in ended:
                unit = waiting.pop(reference)
                try:
                    yield from ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    # What the task itself raised keeps its meaning for the command line.
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    yield unit, " ".join(str(error).split())
    finally:
        ray.shutdown()
