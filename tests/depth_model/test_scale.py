"""The page on scale is what its script computes, and its operations are those of the network."""

import runpy
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from depth_model.modeling import PRESETS, build_model

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def scale():
    return runpy.run_path(str(DOCS / "scale.py"))


def test_the_page_is_up_to_date(scale):
    assert (DOCS / "scale.md").read_text(encoding="utf-8") == scale["page"](), "run python docs/scale.py"


@pytest.mark.slow
def test_operations_are_those_that_torch_counts(scale):
    model = build_model("small").to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixel_values=torch.empty(1, 3, *scale["SIZE"], device="meta"))
    assert scale["operations"](PRESETS["small"]) == pytest.approx(counter.get_total_flops(), rel=0.05)
