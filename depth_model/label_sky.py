"""Sky masks for labelled images, from semantic segmentation: the optional step of V1 section 4.1.

    depth-control label-sky --images data/MegaDepth

Writes `<image without its suffix>.sky.png` beside each image: 8 bits, 255 = sky. `depth_model.data.readers` gives sky
that has no label disparity 0. A mask that is there is kept, so the same command goes on where it was interrupted.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, BaseImageProcessor, PreTrainedModel

from depth_model.config import run_module
from depth_model.data.readers import SKY_SUFFIX
from depth_model.errors import InputError
from depth_model.images import list_images, open_image
from depth_model.model_folder import download, quiet
from depth_model.modeling import check_finite


@dataclass(frozen=True)
class Config:
    """Writes a mask of the sky beside every image of a folder."""

    images: Path
    """Folder of photos; those in folders below it are taken too. It should hold no depth pictures."""
    model: str = "nvidia/segformer-b5-finetuned-ade-640-640"
    """Semantic segmentation model that knows the class "sky": a transformers folder, or a Hub id."""
    batch: int = 8
    """Images that go through the model at once."""
    device: str = "auto"
    """cpu, cuda, mps or such; auto for the best there is."""


def find_images(folder: Path) -> list[Path]:
    """The images of a folder and of those below it, sorted, without sky masks.

    Raises:
        InputError: no such folder, or no images in it.
    """
    folders = [folder, *sorted(Path(path) / name for path, names, _ in os.walk(folder) for name in names)]
    found = [path for one in folders for path in list_images(one) if not path.name.endswith(SKY_SUFFIX)]
    if not found:
        raise InputError(f"{folder}: holds no images")
    return found


def load_segmenter(source: str, device: str) -> tuple[PreTrainedModel, BaseImageProcessor, int]:
    """Opens a segmentation model, its preprocessing, and the number of its class "sky".

    Raises:
        InputError: no such model or device, weights other than safetensors, or no class called sky.
    """
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = download(source)
        except InputError:
            raise InputError(
                f"--model {source}: neither a folder nor in the local cache, and not to be had from the Hugging Face "
                "Hub now; check the name, or give a folder with the downloaded model"
            ) from None
    try:
        with quiet():
            model, report = AutoModelForSemanticSegmentation.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            processor = AutoImageProcessor.from_pretrained(
                folder, backend="pil", local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        # safetensors and transformers raise many types for damaged or foreign folders.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--model {source}: not a segmentation model that can be opened ({reason})") from None
    if report["missing_keys"]:
        raise InputError(f"--model {source}: lacks weights, such as {sorted(report['missing_keys'])[:3]}")
    check_finite(model, f"--model {source}")
    sky = [number for number, name in model.config.id2label.items() if name.lower() == "sky"]
    if not sky:
        raise InputError(f"--model {source}: has no class called sky; take a model trained on ADE20K or Cityscapes")
    try:
        return model.to(_device(device)).eval(), processor, int(sky[0])
    except (RuntimeError, AssertionError):
        raise InputError(f"--device {device} is not available here; give cpu or auto") from None


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def sky_mask(logits: Tensor, sky: int, height: int, width: int) -> np.ndarray:
    """Where the class `sky` wins, uint8 [height, width], 255 = sky.

    Args:
        logits: float [classes, h, w] of an image of `height` x `width`. Only the lead of sky over the best other class
            is resized, since all classes at an image's full size can take gigabytes.
    """
    others = torch.cat([logits[:sky], logits[sky + 1 :]])
    lead = logits[sky] - others.amax(0)
    lead = F.interpolate(lead[None, None].float(), size=(height, width), mode="bilinear", align_corners=False)
    return (lead[0, 0] > 0).mul(255).byte().cpu().numpy()


@torch.inference_mode()
def main(config: Config) -> None:
    """Runs the stage.

    Raises:
        InputError: a folder, model or setting that cannot be used.
    """
    if config.batch < 1:
        raise InputError(f"--batch must be at least 1, got {config.batch}")
    waiting = [path for path in find_images(config.images) if not path.with_suffix(SKY_SUFFIX).exists()]
    model, processor, sky = load_segmenter(config.model, config.device)
    unreadable = []
    for start in tqdm(range(0, len(waiting), config.batch), desc="sky", unit="batch", mininterval=10):
        images = {}
        for path in waiting[start : start + config.batch]:
            try:
                images[path] = open_image(path)
            except InputError as error:
                unreadable.append(str(error))
        if not images:
            continue
        pixels = processor(images=list(images.values()), return_tensors="pt")["pixel_values"]
        for (path, image), logits in zip(images.items(), model(pixels.to(model.device)).logits, strict=True):
            _write(path.with_suffix(SKY_SUFFIX), sky_mask(logits, sky, image.height, image.width))
    for problem in unreadable:
        print(f"skipped {problem}", flush=True)
    print(f"{len(waiting) - len(unreadable)} masks written, {len(unreadable)} images skipped", flush=True)


def _write(path: Path, mask: np.ndarray) -> None:
    """Writes a mask whole or not at all."""
    partial = path.with_suffix(".partial")
    Image.fromarray(mask).save(partial, format="PNG")
    partial.replace(path)


if __name__ == "__main__":
    run_module(Config, main, "depth_model.label_sky")
