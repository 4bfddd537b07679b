"""House rules that a reader would check by hand: nothing that runs what a file carries, no paths of one machine."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("depth_model", "depth_control", "train_controlnet", "ui")
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
PICKLERS = {"_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
NEVER_TRUE = {"shell", "trust_remote_code", "share", "allow_pickle"}
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(work|root|home|Users|tmp|opt|mnt|srv)/")


def slips(source: str) -> Iterator[str]:
    """Each unsafe call or import in a source text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            # `import pickle` alone is harmless: its exceptions are worth catching.
            banned = PICKLERS | ({"pickle"} if isinstance(node, ast.ImportFrom) else set())
            yield from (f"line {node.lineno}: imports {n}" for n in names if n.partition(".")[0] in banned)
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        bad = [f"{key}=True" for key in NEVER_TRUE if given.get(key) is True]
        bad += ["weights_only=False"] if given.get("weights_only") is False else []
        bad += ["no weights_only=True"] if call == "torch.load" and given.get("weights_only") is not True else []
        bad += ["no allow_pickle=False"] if call in ("np.load", "numpy.load") and "allow_pickle" not in given else []
        bad += ["runs what it reads"] if call.startswith("pickle.") else []
        bad += ["runs text"] if call in ("eval", "exec", "os.system", "os.popen") else []
        bad += ["unpacks an archive"] if call.endswith((".extractall", ".unpack_archive")) else []
        bad += ["unsafe loader"] if call in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") else []
        yield from (f"line {node.lineno}: {call}: {reason}" for reason in bad)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_unsafe_calls(file):
    assert not list(slips(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "from pickle import loads",
        "pickle.loads(data)",
        "from dill import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "tar.extractall(folder)",
        "eval(text)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "yaml.load(text)",
        "app.launch(share=True)",
    ],
)
def test_the_check_sees_each_slip(source):
    assert list(slips(source))


def test_the_check_lets_safe_calls_pass():
    safe = "import pickle", "torch.load(p, weights_only=True)", "np.load(p, allow_pickle=False)", "model.eval()"
    assert not list(slips("\n".join(safe)))


def test_no_path_of_one_machine():
    kinds = {".py", ".sh", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ""}
    top = [file for file in ROOT.iterdir() if file.is_file() and not file.name.startswith(".git")]
    files = [*top, *(ROOT / ".ci").iterdir(), *(f for package in PACKAGES for f in (ROOT / package).rglob("*"))]
    wrong = []
    for file in files:
        if file.is_file() and file.suffix in kinds and file.stat().st_size < 1_000_000:
            text = file.read_text(encoding="utf-8", errors="ignore")
            wrong += [f"{file.relative_to(ROOT)}: {match[0]}" for match in MACHINE_PATH.finditer(text)]
    assert not wrong


@pytest.mark.slow
def test_the_wheel_holds_the_package_data(tmp_path):
    # From a copy, since a build folder left in the checkout would find its way into later wheels.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path)]
    done = subprocess.run([*pip, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("depth_control-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    kinds = {".py", ".sh", ".yaml", ".json", ".txt", ".safetensors", ".jpg", ".md"}
    wanted = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.suffix in kinds and (file.suffix != ".md" or "embedded" in file.parts)
    }
    assert wanted <= packed, sorted(wanted - packed)
    assert not [name for name in packed if name.startswith("tests/")]
    assert sum(info.file_size for info in zipfile.ZipFile(wheel).infolist() if "embedded" in info.filename) < 52 << 20
