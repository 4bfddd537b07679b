"""Configs: frozen dataclasses in, command lines and YAML files out.

A config is a frozen dataclass with a docstring under each field. tyro makes the flags and `--help` from it; a YAML file
given by `--config` is read as if its keys had been typed before the other flags, so both go through one check of types.
"""

import contextlib
import dataclasses
import difflib
import io
import itertools
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

import tyro
import yaml

from depth_model.errors import InputError, RunError

ConfigT = TypeVar("ConfigT")

PACKAGED = Path(__file__).parent / "configs"
"""Configs that come with the package; `--config NAME.yaml` finds them when the current folder has no such file."""

_POSITIONAL = tyro.conf.Positional[int].__metadata__[0]
_EXPECTED = {"INT": "a whole number", "FLOAT": "a number", "PATH": "a path", "STR": "text"}


def parse(config_type: type[ConfigT], argv: Sequence[str], prog: str) -> ConfigT:
    """Build a config from a command line.

    Args:
        config_type: A dataclass; nested dataclasses give dotted flags.
        argv: Arguments after the program's name. `--config FILE.yaml` may stand anywhere; other flags override it.
        prog: The name shown in help and errors.

    Raises:
        InputError: An unknown flag or key (the nearest one is named), a value of the wrong type, a missing flag, or a
            YAML file that cannot be read.
        SystemExit: With status 0, after `--help`.
    """
    hints = dict(_leaves(config_type))
    files, argv = _take_config_files(argv)
    _check_flags(argv, hints, prog)
    from_files, origin = [], {}
    for file in files:
        for key, value in _flatten(_load_yaml(file)):
            name = key.replace("-", "_")
            if name not in hints:
                raise InputError(f"{file}: unknown key '{key}'; the nearest is '{_nearest(name, hints)}'")
            from_files += _as_arguments(name, value, hints[name], file)
            origin[_flag(name)] = f"{file}, key '{name}'"
    for token in argv:
        origin.pop(_flag_of(token), None)
    return _run_tyro(config_type, [*from_files, *argv], prog, origin)


def dump(config: Any, path: str | os.PathLike) -> None:
    """Write a config as YAML that `--config` reads back to an equal config."""
    Path(path).write_text(yaml.safe_dump(jsonable(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def run(action: Callable[[list[str]], object], argv: Sequence[str], prog: str) -> int:
    """Do what a command line asks and report the outcome the way every command of this project does.

    Args:
        action: Called with the arguments, less `--debug`.
        argv: Arguments after the program's name.
        prog: The program's name; its first word begins the line of an error.

    Returns:
        0 done; 2 the request itself is wrong; 1 the run failed; 130 interrupted. All but 0 put one line on stderr,
        after the traceback of a failed run when there is `--debug` or DEPTH_CONTROL_DEBUG=1.
    """
    debug = "--debug" in argv or os.environ.get("DEPTH_CONTROL_DEBUG", "0") not in ("", "0")
    try:
        action([token for token in argv if token != "--debug"])
        return 0
    except InputError as error:
        status, message = 2, str(error)
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    except RunError as error:
        if debug:
            traceback.print_exc()
        status, message = 1, str(error)
    except Exception as error:
        if debug:
            traceback.print_exc()
        status, message = 1, f"failed: {type(error).__name__}: {error}" + " (--debug shows where)" * (not debug)
    print(f"{prog.split()[0]}: {' '.join(message.split())}", file=sys.stderr)
    return status


def run_module(config_type: type, main: Callable[[Any], object], name: str) -> None:
    """Ends the process with the outcome of `main` on the config of its command line: `python -m NAME ...`."""
    sys.exit(run(lambda argv: main(parse(config_type, argv, name)), sys.argv[1:], name))


def _leaves(config_type: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every field that is a flag."""
    hints = typing.get_type_hints(config_type, include_extras=True)
    for field in dataclasses.fields(config_type):
        hint = hints[field.name]
        if _POSITIONAL in typing.get_args(hint)[1:]:
            continue
        if dataclasses.is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hint


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _flag_of(token: str) -> str:
    """The flag that a token names, as `--help` spells it: `--no_invert` and `--invert=1` both name `--invert`."""
    return "--" + re.sub(r"(^|\.)no-", r"\1", token.partition("=")[0].replace("_", "-").removeprefix("--"))


def _nearest(name: str, names: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)[0]


def _check_flags(argv: Sequence[str], hints: dict[str, Any], prog: str) -> None:
    # Unknown flags come before missing ones: `--promt x` should not be answered by "missing --prompt".
    kinds = {_flag(name): hint for name, hint in hints.items()} | {"--help": bool}
    for token in argv:
        if token == "--":
            return
        if not token.startswith("--"):
            continue
        flag = token.partition("=")[0].replace("_", "-")
        known = flag in kinds or kinds.get(_flag_of(token)) is bool
        if not known:
            raise InputError(f"unknown flag {flag}; the nearest is {_nearest(flag, kinds)} (see {prog} --help)")
        if kinds.get(_flag_of(token)) is bool and "=" in token:
            raise InputError(f"{flag} takes no value: pass {flag} alone, or leave it out")


def _take_config_files(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    files, rest, tokens = [], [], iter(argv)
    for token in tokens:
        flag, equals, value = token.partition("=")
        if flag != "--config":
            rest.append(token)
            continue
        value = value if equals else next(tokens, "")
        if not value:
            raise InputError("--config needs a YAML file")
        files.append(value)
    return files, rest


def _load_yaml(file: str) -> dict:
    packaged = PACKAGED / file
    path = packaged if Path(file).name == file and not Path(file).exists() and packaged.exists() else Path(file)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"--config {file}: cannot be read ({reason})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{file}{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    if not isinstance(data, dict | None):
        raise InputError(f"{file}: a config is a mapping of keys to values, not a {type(data).__name__}")
    return data or {}


def _flatten(data: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_arguments(name: str, value: Any, hint: Any, file: str) -> list[str]:
    flag = _flag(name)
    if hint is bool:
        if not isinstance(value, bool):
            raise InputError(f"{file}, key '{name}': expected true or false, got {value!r}")
        parent, _, leaf = flag.removeprefix("--").rpartition(".")
        return [flag] if value else [f"--{parent}{'.' * bool(parent)}no-{leaf}"]
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    takes_list = any(typing.get_origin(option) in (tuple, list) for option in options)
    if isinstance(value, list):
        if not takes_list:
            raise InputError(f"{file}, key '{name}': expected one value, got a list")
        return [flag, *map(str, value)]
    if value is None and type(None) not in options:
        raise InputError(f"{file}, key '{name}': has no value; give one or remove the key")
    return [f"{flag}={value}"]


def _run_tyro(config_type: type[ConfigT], argv: list[str], prog: str, origin: dict[str, str]) -> ConfigT:
    description = (
        f"{(config_type.__doc__ or '').strip()}\n\n--config FILE.yaml reads these flags from a file; flags on the line "
        "override it. --debug shows the traceback of a failed run."
    )
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(config_type, args=argv, prog=prog, description=description)
    except SystemExit as error:
        if error.code in (0, None):
            raise
        cause = error.__context__
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        message = str(cause) if cause else _one_line(printed.getvalue(), argv)
        for flag, place in origin.items():
            message = re.sub(rf"{re.escape(flag)}(?![\w.-])", place, message)
        raise InputError(message) from None


def _one_line(printed: str, argv: Sequence[str]) -> str:
    """tyro's boxed error as one sentence."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", printed).splitlines()]
    # A border (drawn, or dashes where the terminal has ASCII alone), the error, a rule, and then help.
    rules = [i for i, line in enumerate(lines) if line and set(line) <= set("─-") or line.startswith(("╭", "╰"))]
    text, helptext = lines[rules[0] + 1 : rules[1]], lines[rules[1] + 1 :]
    text = " ".join(filter(None, text))
    if choice := re.match(r"invalid choice ('.*') for argument '([^ ]+)'. Expected one of \((.*?),?\)", text):
        given, name, choices = choice.groups()
        return f"{name}: expected one of {', '.join(sorted(choices.split(', ')))}, got {given}"
    if short := re.match(r"Missing value for argument '([^ ]+)'. Expected (\d+)", text):
        return f"{short[1]}: needs {short[2]} value{'s' * (short[2] != '1')}"
    if missing := re.findall(r"(--[\w.-]+ \S+|\b[A-Z]+\b)(?: \[[^]]*\])? .*?\(required\)", text):
        return f"missing {', '.join(missing)}"
    if wrong := re.match(r"Error parsing ([^ :]+):", text):
        name = wrong[1]
        form = next((line.removeprefix(name).strip() for line in helptext if line.startswith(name + " ")), "")
        kind = form.replace("{None}|", "")
        return f"{name}: expected {_EXPECTED.get(kind, kind or 'another value')}, got {_given(name, argv)}"
    return text[:1].lower() + text[1:]


def _given(flag: str, argv: Sequence[str]) -> str:
    """What the line gives for a flag; the last one counts."""
    for i in reversed(range(len(argv))):
        if _flag_of(argv[i]) == flag:
            _, equals, value = argv[i].partition("=")
            following = itertools.takewhile(lambda token: not token.startswith("--"), argv[i + 1 :])
            return repr(value if equals else " ".join(following))
    return "another"


def jsonable(value: Any) -> Any:
    """Only what YAML's safe loader knows."""
    if dataclasses.is_dataclass(value):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value
