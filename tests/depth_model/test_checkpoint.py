"""Checkpoints are complete or absent."""

import json
import shutil

import pytest
import torch
from torch import nn

from depth_model import checkpoint
from depth_model.errors import InputError


def save(folder, step, keep=2):
    tensors = {"model": {"weight": torch.full((3, 2), float(step))}, "ema": {"weight": torch.arange(4)}}
    return checkpoint.save_checkpoint(folder, step, tensors, {"config": {"seed": 7}}, keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path):
    path = save(tmp_path / "run" / "checkpoints", 12)
    tensors, state = checkpoint.load_checkpoint(path)
    assert state == {"step": 12, "config": {"seed": 7}} and path.name == "step-00000012"
    assert set(tensors) == {"model", "ema"} and torch.equal(tensors["ema"]["weight"], torch.arange(4))
    assert torch.equal(tensors["model"]["weight"], torch.full((3, 2), 12.0))


def test_a_checkpoint_holds_no_pickles(tmp_path):
    assert names(save(tmp_path, 1)) == ["COMPLETE.json", "ema.safetensors", "model.safetensors", "state.json"]


def test_the_newest_counts_and_older_ones_go(tmp_path):
    for step in (5, 10, 9_999_999):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-00000010", "step-09999999"]
    assert checkpoint.latest_checkpoint(tmp_path).name == "step-09999999"
    save(tmp_path, 10_000_000, keep=1)
    assert names(tmp_path) == ["step-10000000"]


def spoil(path, how):
    match how:
        case "no marker":
            (path / "COMPLETE.json").unlink()
        case "marker cut off":
            (path / "COMPLETE.json").write_text('{"state.json": {"by')
        case "empty marker":
            (path / "COMPLETE.json").write_text("")
        case "file cut off":
            file = path / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-1])
        case "file missing":
            (path / "ema.safetensors").unlink()
        case "one bit flipped":
            data = bytearray((path / "model.safetensors").read_bytes())
            data[-1] ^= 1
            (path / "model.safetensors").write_bytes(data)
        case "other state":
            text = (path / "state.json").read_text()
            (path / "state.json").write_text(text.replace("7", "8"))


@pytest.mark.parametrize(
    "how",
    ["no marker", "marker cut off", "empty marker", "file cut off", "file missing", "one bit flipped", "other state"],
)
def test_a_damaged_checkpoint_is_not_there(how, tmp_path):
    save(tmp_path, 1)
    spoil(save(tmp_path, 2), how)
    assert checkpoint.latest_checkpoint(tmp_path).name == "step-00000001"
    assert checkpoint.find_checkpoint(tmp_path, "auto").name == "step-00000001"


def test_a_cut_off_checkpoint_is_written_anew(tmp_path):
    spoil(save(tmp_path, 2), "file cut off")
    save(tmp_path, 2)
    tensors, _ = checkpoint.load_checkpoint(checkpoint.latest_checkpoint(tmp_path))
    assert (tensors["model"]["weight"] == 2).all()


@pytest.mark.parametrize("how", ["no marker", "one bit flipped"])
def test_a_run_that_resumed_before_a_damaged_checkpoint_replaces_it(how, tmp_path):
    save(tmp_path, 2, keep=1)
    shutil.copytree(tmp_path / "step-00000002", tmp_path / "copy")
    spoil(save(tmp_path, 4, keep=1), how)
    (tmp_path / "copy").rename(tmp_path / "step-00000002")
    save(tmp_path, 3, keep=1)
    assert checkpoint.latest_checkpoint(tmp_path).name == "step-00000003"
    spoil(save(tmp_path, 4, keep=1), how)
    save(tmp_path, 4, keep=1)
    assert checkpoint.latest_checkpoint(tmp_path).name == "step-00000004"


def test_a_failure_while_writing_leaves_the_older_one(tmp_path):
    save(tmp_path, 1, keep=1)
    before = {file.name: file.read_bytes() for file in (tmp_path / "step-00000001").iterdir()}
    with pytest.raises(TypeError):
        checkpoint.save_checkpoint(tmp_path, 2, {"model": {"w": torch.ones(2)}}, {"config": object()}, keep=1)
    assert names(tmp_path) == ["step-00000001"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "step-00000001").iterdir()} == before


def test_a_full_disk_leaves_the_older_one(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-00000001"] and checkpoint.latest_checkpoint(tmp_path)


def test_leftovers_of_a_kill_are_cleared(tmp_path):
    shutil.copytree(save(tmp_path, 1), tmp_path / "step-00000002.tmp-1234abcd")
    assert checkpoint.latest_checkpoint(tmp_path).name == "step-00000001"
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


def test_resume_words(tmp_path):
    folder = tmp_path / "checkpoints"
    assert checkpoint.find_checkpoint(folder, "auto") is None and checkpoint.find_checkpoint(folder, "never") is None
    with pytest.raises(InputError, match=r"--resume must: .*checkpoints holds no complete checkpoint"):
        checkpoint.find_checkpoint(folder, "must")
    path = save(folder, 4)
    assert checkpoint.find_checkpoint(folder, "auto") == checkpoint.find_checkpoint(folder, "must") == path
    with pytest.raises(InputError, match=r"--resume never: .*already holds step-00000004"):
        checkpoint.find_checkpoint(folder, "never")
    with pytest.raises(InputError, match="auto, must or never, got 'yes'"):
        checkpoint.find_checkpoint(folder, "yes")


def trained(steps, first=0, saved=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW([{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}])
    if saved:
        model.load_state_dict(saved["model"])
        checkpoint.load_optimizer_tensors(optimizer, saved["optimizer"])
    for step in range(first, steps):
        x = torch.rand(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def test_an_optimizer_goes_on_bit_for_bit(tmp_path):
    model, optimizer = trained(3)
    tensors = {"model": model.state_dict(), "optimizer": checkpoint.optimizer_tensors(optimizer)}
    saved, _ = checkpoint.load_checkpoint(checkpoint.save_checkpoint(tmp_path, 3, tensors, {}))
    resumed, resumed_optimizer = trained(7, 3, saved)
    straight, straight_optimizer = trained(7)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), straight.parameters(), strict=True))
    one, other = (checkpoint.optimizer_tensors(o) for o in (resumed_optimizer, straight_optimizer))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert resumed_optimizer.param_groups[0]["lr"] == 0.1


def test_the_marker_lists_every_file(tmp_path):
    listed = json.loads((save(tmp_path, 1) / "COMPLETE.json").read_text())
    assert set(listed) == {"ema.safetensors", "model.safetensors", "state.json"}
    assert all(len(entry["sha256"]) == 64 and entry["bytes"] > 0 for entry in listed.values())
