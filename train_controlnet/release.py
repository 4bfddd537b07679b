"""A finished ControlNet: a stock folder with a float16 variant, and a card that says what it reaches."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from huggingface_hub import HfApi

from depth_model.config import jsonable
from depth_model.errors import RunError
from depth_model.training import Ema
from train_controlnet.cache import Cache
from train_controlnet.validation import took_hold

RECORD = "depth_control.json"
"""File in the folder that records the base, the data and the settings."""


class Best:
    """The weights with the highest structure so far, in `best/` of a run folder; complete or absent."""

    def __init__(self, out: Path, step: int = 0, structure: float | None = None):
        self.folder, self.step, self.structure = out / "best", step, structure

    def state(self) -> dict:
        """What `__init__` takes to go on."""
        return {"step": self.step, "structure": self.structure}

    def offer(self, step: int, numbers: dict[str, float], network: ControlNetModel) -> None:
        """Keeps the network if its structure is the highest; the same step again replaces itself."""
        if self.structure is None or numbers["structure"] > self.structure:
            self.step, self.structure = step, numbers["structure"]
            _replace(self.folder, network)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The kept weights, or None."""
        if self.structure is None or not self.folder.is_dir():
            return None
        return ControlNetModel.from_pretrained(self.folder, dtype=torch.float32).state_dict()


def _replace(folder: Path, network: ControlNetModel) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        network.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error}); make room and run the same command again") from error


def release(config: Any, network: ControlNetModel, ema: Ema, best: Best, cache: Cache, rows: list[dict]) -> None:
    """Writes `model/` of a run: the best weights by fidelity where it was measured, else the (averaged) last ones.

    Raises:
        RunError: the disk is full; checkpoints are untouched.
    """
    ema.load_into(network)
    if (weights := best.weights()) is not None:
        network.load_state_dict(weights)
    network.eval()
    folder = config.out / "model"
    partial = folder.with_name(".model.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        network.save_pretrained(partial)
        network.half().save_pretrained(partial, variant="fp16")
        record = {"base": str(cache.about.base), "vae_sha256": cache.about.vae, "text_sha256": cache.about.text}
        record |= {
            "depth_models": list(cache.about.depth_models),
            "condition": "disparity, near = 1",
            "best": best.state(),
        }
        (partial / RECORD).write_text(json.dumps(record | {"settings": jsonable(config)}, indent=1))
        strip = config.out / "validation" / f"step-{best.step:08d}.png"
        for source, name in ((config.out / "curves.png", "curves.png"), (strip, "pictures.png")):
            if source.is_file():
                shutil.copy(source, partial / name)
        (partial / "README.md").write_text(card(config, best, cache, rows, partial), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error}); make room and run the same command again") from error


def card(config: Any, best: Best, cache: Cache, rows: list[dict], folder: Path) -> str:
    """The model card, Markdown with the Hub's YAML head."""
    base = cache.about.base
    hub_id = "/" in base and not Path(base).exists()
    pipeline = (
        "StableDiffusionXLControlNetPipeline" if "pooled" in cache.text("") else "StableDiffusionControlNetPipeline"
    )
    head = [
        "---",
        "library_name: diffusers",
        *([f"base_model: {base}"] if hub_id else []),
        "pipeline_tag: text-to-image",
    ]
    head += ["tags:", *(f"- {tag}" for tag in ("controlnet", "depth", "diffusers", "depth-control")), "---", ""]
    facts = {
        "base": base,
        "images": f"{len(cache)}, {len(set(cache.captions))} captions",
        "conditions": f"disparity, near = 1, three equal channels, by {', '.join(cache.about.depth_models)}",
        "training": f"{config.steps} steps of {config.batch} images, learning rate {config.lr:g}, "
        f"EMA {config.ema:g}, caption dropout {config.caption_dropout:g}, precision {config.precision}",
    }
    lines = ["# Depth ControlNet", "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items()), ""]
    lines += ["```python", f"from diffusers import ControlNetModel, {pipeline}"]
    lines += ["", "from depth_control.presets import base_folder"] if base == "embedded" else []
    source = 'base_folder("embedded"), dtype=controlnet.dtype' if base == "embedded" else f'"{base}"'
    lines += ["", 'controlnet = ControlNetModel.from_pretrained("THIS_FOLDER")']
    lines += [f"pipe = {pipeline}.from_pretrained({source}, controlnet=controlnet)", "```", ""]
    lines += _fidelity(config, best, rows)
    if (folder / "pictures.png").is_file():
        lines += ["Photo, condition, picture, and the depth seen in it:", "", "![pictures](pictures.png)", ""]
    if (folder / "curves.png").is_file():
        lines += ["![curves](curves.png)", ""]
    lines += ["## Terms", "", "Those of the base, of the training images and of the depth models above apply. "]
    return "\n".join([*head, *lines])


def _fidelity(config: Any, best: Best, rows: list[dict]) -> list[str]:
    measured = [row for row in rows if "structure" in row]
    if not measured:
        return ["Its fidelity was not measured: the run had no `--validation`.", ""]
    row = next((row for row in measured if row["step"] == best.step), measured[-1])
    judge = config.judge or "the estimator that made the conditions"
    lines = [
        "## Fidelity",
        "",
        f"{config.validation_count} held-out images, {config.validation_steps} steps, guidance "
        f"{config.guidance_scale:g}, pooled over the set, judged by {judge}. 1 is identical depth, 0 no better than "
        "knowing each row's mean.",
        "",
        "| | structure | detail |",
        "|---|---|---|",
        f"| with its condition | {row['structure']:.3f} | {row['detail']:.3f} |",
    ]
    if "shuffled_structure" in row:
        lines += [f"| against another image's condition | {row['shuffled_structure']:.3f} | |"]
    lines += [f"| no control | {row['no_control_structure']:.3f} | {row['no_control_detail']:.3f} |", ""]
    points = [(row["step"], row["structure"]) for row in measured]
    if (span := took_hold(points, row["no_control_structure"])) is not None:
        lines += [
            f"Control took hold between steps {span[0]} and {span[1]}; the released weights are of step {best.step}.",
            "",
        ]
    return lines


def push(folder: Path, repository: str) -> None:
    """Uploads a model folder to the Hugging Face Hub.

    Raises:
        RunError: refused or out of reach; the folder is complete on disk.
    """
    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Depth ControlNet")
    except Exception as error:
        # The transport's errors change between releases of the Hub's client.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"--push-to-hub {repository}: not uploaded ({reason}); the model is complete in {folder}: log in with "
            "`hf auth login` and run the same command again"
        ) from error
