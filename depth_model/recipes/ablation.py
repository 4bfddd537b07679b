"""The ablation table of the CPU recipe (V1 table 9), from what `evaluate` measured on the runs of `cpu.sh`."""

import json
from dataclasses import dataclass
from pathlib import Path

from depth_model.config import run_module
from depth_model.errors import InputError

ROWS = {
    "teacher": "labelled images only",
    "pseudo": "+ pseudo-labels",
    "perturbed": "+ strong perturbations",
    "student": "+ feature alignment",
}

NOTE = """No crop, 0.001 to 10 m, least squares in disparity per image, mean over images. The frozen encoder knows the
scenes' class labels, not what DINOv2 knows, so the last row says little about DINOv2."""


@dataclass(frozen=True)
class Config:
    """Prints the four runs of the CPU recipe as a table."""

    results: tuple[Path, ...]
    """JSON files of `depth-control evaluate`, one for each set that was measured."""
    out: Path
    """Markdown file for the table."""


def main(config: Config) -> None:
    """Prints and writes the table.

    Raises:
        InputError: a file that is not the result of `evaluate` on the four runs.
    """
    columns = []
    for file in config.results:
        try:
            # A model is a folder RUN/model.
            measured = {Path(model).parent.name: numbers for model, numbers in json.loads(file.read_text()).items()}
            count = measured["teacher"]["images"]
            cells = [f"{measured[run]['abs_rel']:.4f} | {measured[run]['delta1']:.4f}" for run in ROWS]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{file}: not the numbers of the recipe's four runs ({error!r})") from error
        columns.append((f"{file.stem} ({count}) AbsRel | delta1", cells))
    lines = [f"| | {' | '.join(head for head, _ in columns)} |", f"|---|{'---|---|' * len(columns)}"]
    for i, meaning in enumerate(ROWS.values()):
        lines.append(f"| {meaning} | {' | '.join(cells[i] for _, cells in columns)} |")
    table = "\n".join([*lines, "", NOTE])
    config.out.write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    run_module(Config, main, "depth_model.recipes.ablation")
