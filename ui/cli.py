"""The command line: the one place that knows every command.

A command is a module with a `Config` dataclass and `main(config)`. It is imported only when its command runs, so that
`depth-control --help` loads no torch.
"""

import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {
    "demo": ("ui.demo", "a packaged photo to depth and three pictures, offline, in ./demo"),
    "generate": ("ui.generate", "a photo and a prompt to pictures that keep the photo's geometry"),
    "estimate": ("ui.estimate", "photos to depth maps"),
    "ui": ("ui.server", "the app in the browser, on this machine"),
    "scenes": ("ui.scenes", "draw procedural scenes with exact depth, labels and captions"),
    "train-teacher": ("depth_model.train_teacher", "train a depth model on images with known depth"),
    "label-sky": ("depth_model.label_sky", "find the sky in labelled images"),
    "collect": ("depth_model.engine.collect", "clean shards from image folders, shards and lists"),
    "label": ("depth_model.engine.label", "label images with a teacher, as shards that a student learns from"),
    "status": ("depth_model.engine.status", "how far the labelling is, and how long it will take"),
    "verify": ("depth_model.engine.verify", "check counts and hashes of clean shards and labels"),
    "train-student": ("depth_model.train_student", "train a depth model on labelled and pseudo-labelled images"),
    "evaluate": ("depth_model.evaluate", "measure depth models on pairs with known depth"),
    "measure-copies": ("depth_model.measure_copies", "how many changed copies collect finds among your images"),
    "measure-engine": ("depth_model.measure_engine", "what label and collect cost beside network and decoding"),
    "measure-input": ("depth_model.measure_input", "whether reading keeps up with training"),
    "train-autoencoder": ("train_controlnet.autoencoder", "train the small autoencoder of the image model"),
    "train-base": ("train_controlnet.base", "train the small text-to-image model"),
    "prepare-controlnet": ("train_controlnet.prepare", "images and captions to the cache of ControlNet training"),
    "train-controlnet": ("train_controlnet.train", "train a ControlNet on a frozen base model"),
    "validate-controlnet": ("train_controlnet.validate", "measure how well pictures obey their depth"),
    "benchmark-controlnet": ("train_controlnet.benchmark", "measure training beside diffusers' example script"),
}
"""Name -> (module, what it does)."""

_PACKAGES = ("depth_model", "depth_control", "train_controlnet", "ui")
_QUIET = {
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "DIFFUSERS_VERBOSITY": "critical",
    "TRANSFORMERS_VERBOSITY": "critical",
    "HF_HUB_VERBOSITY": "critical",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 2 wrong request, 1 failed, 130 interrupted.

    Args:
        argv: Arguments after the program's name; the process's own by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"depth-control {version('depth-control')}")
        return 0
    if argv[0] == "--debug" and len(argv) > 1:
        argv = [*argv[1:], argv[0]]
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        print(f"depth-control: unknown command '{name}'; the nearest is '{nearest}' (see --help)", file=sys.stderr)
        return 2
    _settle_libraries()
    from depth_model.config import parse, run

    def action(arguments: list[str]) -> None:
        module = importlib.import_module(COMMANDS[name][0])
        module.main(parse(module.Config, arguments, f"depth-control {name}"))

    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return run(action, rest, "depth-control")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {meaning}" for name, (_, meaning) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: depth-control COMMAND ...",
            "",
            "From a photo to its depth, and to pictures that keep it; and the training of every model involved.",
            "",
            *lines,
            "",
            "depth-control COMMAND --help lists the flags of one command. Start with: depth-control demo",
        ]
    )


def _settle_libraries() -> None:
    """Choose what libraries may do and print; they read these when they are first imported."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Print this project's own warnings as one line each; those of libraries are for developers."""
    root = Path(__file__).absolute().parents[1]
    if any(Path(filename).absolute().is_relative_to(root / package) for package in _PACKAGES):
        print(f"depth-control: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
