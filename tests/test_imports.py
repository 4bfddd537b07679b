"""Each package imports only from those to its left, and the command line starts without the heavy libraries."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ("depth_model", "depth_control", "train_controlnet", "ui")


def imported_packages(source: str, package: str) -> Iterator[str]:
    """Top-level names of all imports, at any depth of the code; a relative import stays in its package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield package if node.level else (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module" and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value).partition(".")[0] or package


@pytest.mark.parametrize("package", HOUSE)
def test_packages_import_only_to_the_left(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} has no Python files"
    forbidden = {*HOUSE[HOUSE.index(package) + 1 :], "tests"}
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imported_packages(file.read_text(encoding="utf-8"), package)
        if name in forbidden
    ]
    assert not wrong


@pytest.mark.parametrize("source", ["import ui.cli", "def f():\n    from ui import cli", "from ui.cli import main"])
def test_the_check_sees_every_kind_of_import(source):
    assert "ui" in imported_packages(source, "depth_model")


@pytest.mark.parametrize(
    "code",
    [
        "import ui.cli; ui.cli.main(['--help'])",
        "import ui.cli, pytest\nwith pytest.raises(SystemExit): ui.cli.main(['generate', '--help'])",
        "import depth_model, depth_control, train_controlnet, ui",
    ],
    ids=["help", "help-of-a-command", "packages"],
)
def test_starting_needs_no_heavy_library(code):
    heavy = "torch", "transformers", "diffusers", "gradio", "trimesh"
    check = f"{code}\nimport sys; loaded = set({heavy!r}) & set(sys.modules); assert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["depth_model", "depth_control"])
def test_functions_are_not_hidden_by_modules_of_their_name(package):
    modules = [file.stem for file in (ROOT / package).glob("*.py") if not file.stem.startswith("__")]
    exported = set(import_module(package).__all__)
    assert exported and not exported & set(modules), "importing the module would replace the function"
    assert all(getattr(import_module(package), name) for name in exported)
