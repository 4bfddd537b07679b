"""What the README tells a reader to type exists."""

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from depth_model.config import parse
from ui.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("*/README.md"))]


def blocks(language: str) -> list:
    """Every fenced block of a language, named by page and number."""
    found = []
    for page in PAGES:
        fenced = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        found += [pytest.param(b, id=f"{page.relative_to(ROOT)}-{i}") for i, b in enumerate(fenced)]
    return found


def check_command(words: list[str]) -> None:
    """Fail unless the first word's program would take the others."""
    program, rest = words[0], words[1:]
    if program == "depth-control":
        module = import_module(COMMANDS[rest[0]][0])
        parse(module.Config, rest[1:], "depth-control")
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program == "bash":
        assert (ROOT / rest[0]).is_file(), f"{rest[0]} does not exist"
    else:
        assert program in {"git", "cd", "pip", "hf", "."}, f"nothing checks {program}"


@pytest.mark.parametrize("block", blocks("bash"))
def test_shell_commands_are_real(block):
    for line in block.replace("\\\n", " ").splitlines():
        for command in line.split(" && "):
            words = shlex.split(command, comments=True)
            if words:
                check_command(words)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_compile_and_their_imports_exist(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                import_module(alias.name)


def test_the_readme_has_both_kinds():
    assert len(blocks("bash")) >= 3 and len(blocks("python")) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]
