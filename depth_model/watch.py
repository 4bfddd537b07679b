"""What ends a run early and what it leaves out: SIGTERM, losses that are not finite, lost processes, bad samples."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Self

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from depth_model.errors import RunError

PATIENCE = 10
"""Steps in a row without a finite gradient after which a run gives up."""

TERMINATED = 143
"""Exit status after SIGTERM: 128 + 15."""


class Watch:
    """Stands around a training loop, in every process of the run.

    At the first SIGTERM the step is finished in all processes and `stop` becomes true, so that the loop can save and
    leave; a second one exits at once.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, skipped: dict[str, int] | None = None):
        """Begin with the samples that the run had `skipped` before, by reason."""
        self.folder, self.accelerator = folder, accelerator
        self.skipped, self.stop = Counter(skipped), False
        self._new, self._names, self._bad, self._signalled = Counter(), [], 0, False

    def __enter__(self) -> Self:
        self._handler = signal.signal(signal.SIGTERM, self._on_term)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        signal.signal(signal.SIGTERM, self._handler)
        if self.accelerator.num_processes > 1:
            # Gloo's threads need the interpreter to drop the tensors of the last exchange; a process group that ends
            # before holds the interpreter and waits for them, for ever.
            time.sleep(0.5)
        if self.accelerator.num_processes > 1 and isinstance(error, RuntimeError) and not isinstance(error, RunError):
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"another process of the run was lost, or did not answer ({reason}); the same command goes on from the "
                "last checkpoint"
            ) from error

    def _on_term(self, *_: object) -> None:
        if self._signalled:
            os._exit(TERMINATED)
        self._signalled = True

    def saw(self, batch: dict) -> dict:
        """Notes the samples of a batch, and what was skipped in their stead, and returns it."""
        self._names += batch["name"]
        self._new.update(line for problem in batch["problem"] for line in problem.splitlines())
        return batch

    def exchange(self, loss: Tensor) -> float:
        """The mean of a step's loss over all processes, which agree here whether to stop."""
        both = torch.stack([loss.detach().float(), torch.tensor(float(self._signalled), device=loss.device)])
        mean, signalled = self.accelerator.reduce(both, "mean").tolist()
        self.stop = signalled > 0
        return mean

    def finite(self, norm: Tensor) -> bool:
        """Whether the gradient norm, the same in all processes, lets the step be taken.

        Raises:
            RunError: it did not for `PATIENCE` steps; the samples of the last stand in `nonfinite.json`.
        """
        self._bad = 0 if torch.isfinite(norm) else self._bad + 1
        if self._bad == PATIENCE:
            names, file = gather_object(self._names), self.folder / "nonfinite.json"
            if self.accelerator.is_main_process:
                file.write_text(json.dumps(names, indent=1))
            raise RunError(
                f"the gradient was NaN or infinite for {PATIENCE} steps; the weights stayed as before, and {file} "
                "lists the last samples. Look at them, or lower the learning rate and start from the last checkpoint"
            )
        self._names = []
        return not self._bad

    def collect(self) -> int:
        """Samples skipped so far in all processes; every process must call this at the same step."""
        for new in gather_object([self._new]):
            self.skipped.update(new)
        self._new = Counter()
        if self.skipped and self.accelerator.is_main_process:
            (self.folder / "skipped.json").write_text(json.dumps(self.skipped, indent=1))
        return self.skipped.total()
