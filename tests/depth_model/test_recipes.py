"""The CPU twin of the recipe, and the configs of the published ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from depth_model import train_student, train_teacher
from depth_model.config import parse
from depth_model.errors import InputError
from depth_model.recipes.ablation import Config, main

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "depth_model" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_configs_are_read_and_hold_the_published_values(file):
    stage = train_teacher if "teacher" in file.stem else train_student
    config = parse(stage.Config, ["--config", str(file)], "test")
    assert (config.encoder_lr, config.decoder_lr) == (5e-6, 5e-5) and config.encoder.startswith("facebook/dinov2-")
    assert config.least_crop == 1 and config.jitter == 0 and config.aspects == (1.0,) and config.warmup == 0
    if stage is train_student and config.version == "v1":
        assert config.unlabeled_batch == 2 * config.batch and config.tolerance == 0.85 and config.cutmix == 0.5
        assert config.steps * config.unlabeled_batch == pytest.approx(62e6, rel=0.01)


def test_packaged_configs_are_found_by_name_and_own_files_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(train_student.Config, ["--config", "vits.yaml"], "test").steps == 484000
    (tmp_path / "vits.yaml").write_text("steps: 7\n")
    assert parse(train_student.Config, ["--config", "vits.yaml"], "test").steps == 7
    with pytest.raises(InputError, match="vitx.yaml: cannot be read"):
        parse(train_student.Config, ["--config", "vitx.yaml"], "test")


def test_the_table_needs_all_four_runs(tmp_path):
    (tmp_path / "unseen.json").write_text('{"runs/teacher/model": {"abs_rel": 0.1, "delta1": 0.9, "images": 3}}')
    with pytest.raises(InputError, match="unseen.json: not the numbers of the recipe's four runs"):
        main(Config(results=(tmp_path / "unseen.json",), out=tmp_path / "ablation.md"))


@pytest.mark.slow
def test_the_cpu_recipe_ends_with_its_table_and_goes_on_where_it_stopped(tmp_path):
    # The commands of this installation, from another folder.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", str(ROOT / "depth_model" / "recipes" / "cpu.sh"), "--out", "runs", "--scale", "3"]
    for _ in range(2):
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "| + feature alignment |" in done.stdout
    table = (tmp_path / "runs" / "ablation.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ") and "AbsRel" not in line]
    assert len(rows) == 4 and all(0 < float(row.split("|")[2]) < 1 for row in rows)
    wrong = subprocess.run([*command, "--scales", "3"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "unknown flag --scales" in wrong.stderr
