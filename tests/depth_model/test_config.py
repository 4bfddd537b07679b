"""Configs from flags and YAML, and back."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from depth_model.config import dump, parse, run
from depth_model.errors import InputError


@dataclasses.dataclass(frozen=True)
class Optimizer:
    lr: float = 1e-3
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of both moments."""
    fused: bool = True
    """One kernel for all weights."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a thing."""

    out: Path
    """Run folder."""
    steps: int = 20
    """Optimizer steps."""
    pairs: tuple[Path, ...] = ()
    """Folders of pairs."""
    seed: int | None = None
    """Seed of the order."""
    version: Literal["v1", "v2"] = "v2"
    """Which taps."""
    note: str = ""
    """Free text."""
    optimizer: Optimizer = Optimizer()
    """The optimizer."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"--steps {self.steps}: at least 1")


def from_yaml(tmp_path: Path, text: str, *flags: str) -> Config:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return parse(Config, ["--config", str(file), *flags], "prog")


def test_flags_reach_nested_fields():
    flags = "--out o --optimizer.lr 1e-4 --optimizer.no-fused --pairs a b"
    config = parse(Config, flags.split(), "prog")
    assert config == Config(Path("o"), pairs=(Path("a"), Path("b")), optimizer=Optimizer(lr=1e-4, fused=False))


def test_flags_override_the_file_wherever_they_stand(tmp_path):
    text = "out: o\nsteps: 7\noptimizer: {lr: 1e-4, betas: [0.5, 0.6], fused: false}\n"
    assert from_yaml(tmp_path, text) == Config(Path("o"), 7, optimizer=Optimizer(1e-4, (0.5, 0.6), False))
    assert from_yaml(tmp_path, text, "--optimizer.lr", "2", "--steps", "9").optimizer.lr == 2.0
    assert parse(Config, ["--steps", "9", f"--config={tmp_path / 'run.yaml'}"], "prog").steps == 9


@pytest.mark.parametrize(
    "config",
    [
        Config(Path("a b"), 3, (Path("x"), Path("y z")), 5, "v1", "tüüt: 'x' #1", Optimizer(1e-9, (0.0, 1.0), False)),
        Config(Path("o"), note="-1", pairs=()),
    ],
)
def test_dump_reads_back_equal(tmp_path, config):
    dump(config, tmp_path / "config.yaml")
    assert parse(Config, ["--config", str(tmp_path / "config.yaml")], "prog") == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stpes: 3", ["run.yaml", "'stpes'", "'steps'"]),
        ("optimizer: {lrr: 3}", ["optimizer.lrr", "'optimizer.lr'"]),
        ("steps: ten", ["run.yaml", "'steps'", "whole number", "'ten'"]),
        ("steps: 1.5", ["'steps'", "whole number", "'1.5'"]),
        ("steps: true", ["'steps'", "whole number"]),
        ("steps: [1, 2]", ["'steps'", "list"]),
        ("steps:", ["'steps'", "no value"]),
        ("optimizer: {fused: 3}", ["'optimizer.fused'", "true or false"]),
        ("version: v3", ["'version'", "v1", "v2"]),
        ("steps: 0", ["'steps'", "at least 1"]),
        ("- steps", ["run.yaml", "mapping"]),
        ("a: [", ["run.yaml", "line", "YAML"]),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path, text, words):
    with pytest.raises(InputError) as error:
        from_yaml(tmp_path, text, "--out", "o")
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out", "o", "--stpes", "3"], ["--stpes", "--steps", "prog --help"]),
        (["--ouut", "o"], ["--ouut", "--out"]),
        (["--steps", "3"], ["missing", "--out"]),
        (["--out", "o", "--steps", "ten"], ["--steps", "whole number", "'ten'"]),
        (["--out", "o", "--seed", "1.5"], ["--seed", "whole number", "'1.5'"]),
        (["--out", "o", "--optimizer.lr", "fast"], ["--optimizer.lr", "a number", "'fast'"]),
        (["--out", "o", "--optimizer.betas", "1"], ["--optimizer.betas", "2 values"]),
        (["--out", "o", "--version", "v3"], ["--version", "'v1', 'v2'", "'v3'"]),
        (["--out", "o", "--optimizer.fused=yes"], ["--optimizer.fused", "no value"]),
        (["--out", "o", "stray"], ["stray"]),
        (["--out", "o", "--config", "absent.yaml"], ["--config", "absent.yaml"]),
        (["--out", "o", "--config"], ["--config"]),
    ],
)
def test_wrong_flags_are_one_clear_line(flags, words, capsys):
    with pytest.raises(InputError) as error:
        parse(Config, flags, "prog")
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert capsys.readouterr().err == ""


def test_help_tells_meaning_and_default(capsys):
    with pytest.raises(SystemExit) as done:
        parse(Config, ["--help"], "prog")
    text = capsys.readouterr().out
    assert done.value.code == 0
    assert all(word in text for word in ("--optimizer.lr", "Learning rate.", "0.001", "--config", "Train a thing."))


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (InputError("bad\nfile"), 2, "prog: bad file"),
        (RuntimeError("broke"), 1, "broke"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_run_reports_each_outcome_in_one_line(error, status, word, capsys):
    def action(arguments: list[str]) -> None:
        raise error

    assert run(action, [], "prog stage") == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and word in lines[0]


def test_debug_shows_where_a_run_failed(capsys, monkeypatch):
    def action(arguments: list[str]) -> None:
        assert arguments == ["--out"]
        raise RuntimeError("broke")

    assert run(action, ["--debug", "--out"], "prog") == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("DEPTH_CONTROL_DEBUG", "1")
    assert run(action, ["--out"], "prog") == 1
    assert "Traceback" in capsys.readouterr().err
