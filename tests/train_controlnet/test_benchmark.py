"""The measurement of training speed."""

import json

import pytest

from depth_model.errors import InputError
from train_controlnet import benchmark

# What the example script does, as far as the measurement goes: it reads pictures, takes steps, and ends.
SCRIPT = """
import argparse, torch
from torchvision import transforms
parser = argparse.ArgumentParser()
parser.add_argument("--max_train_steps", type=int)
parser.add_argument("--resolution", type=int)
args, _ = parser.parse_known_args()
look = transforms.Compose([transforms.Resize(args.resolution, interpolation=transforms.InterpolationMode.BILINEAR),
    transforms.CenterCrop(args.resolution), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
from PIL import Image
assert look(Image.new("RGB", (80, 100), "white")).shape == (3, args.resolution, args.resolution)
assert look(Image.new("RGB", (80, 100), "white")).min() == 1
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight])
for _ in range(args.max_train_steps):
    weight.sum().backward()
    optimizer.step()
"""


@pytest.mark.slow
def test_both_are_measured_in_turns(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    config = benchmark.Config(script=script, out=tmp_path / "out", images=6, resolution=64, batch=2, steps=4, turns=1)
    report = benchmark.main(config)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert report["ours"]["samples_per_second"] > 0 and report["script"]["peak_bytes"] > 1 << 20
    assert report["speedup"] < 1, "a script that does nothing is faster"
    assert report["preparation"]["seconds"] > report["preparation"]["bare_seconds"] * 0.5
    with pytest.raises(InputError, match="is not empty"):
        benchmark.main(config)


def test_a_wrong_script_is_refused(tmp_path):
    with pytest.raises(InputError, match="--script .*no such file"):
        benchmark.main(benchmark.Config(script=tmp_path / "none.py", out=tmp_path / "out"))
