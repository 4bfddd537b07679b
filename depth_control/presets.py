"""Names to pipelines: the models we stand for, folders, and repositories on the Hugging Face Hub.

Everything is first brought to a local folder, without code and without pickles, and then loaded in one way. The safety
checker (1.2 GB) is not downloaded; a local folder that holds one keeps it.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when diffusers is imported; nothing here ever asks for remote code.
os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")

import torch
from diffusers import ControlNetModel, DiffusionPipeline, UniPCMultistepScheduler
from diffusers.utils import logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError

from depth_control.pipelines import DepthStableDiffusionControlNetPipeline, DepthStableDiffusionXLControlNetPipeline
from depth_model import DepthEstimator
from depth_model.errors import InputError

EMBEDDED = Path(__file__).parent / "embedded"
DEFAULTS_FILE = "generate.json"
GUIDANCE_SCALE = 7.5
XL_GUIDANCE_SCALE = 5.0
_XL = "StableDiffusionXL"
NETWORK_TIMEOUT = 10.0

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Models:
    """The models of one pipeline, by name, folder or Hub id."""

    base: str
    """Text-to-image model; a folder may hold a ControlNet and a depth estimator too."""
    controlnet: str | None
    """None: the one in the base folder."""
    depth_model: str | None
    """None: the one in the base folder."""


PRESETS = {
    "embedded": Models("embedded", None, "embedded"),
    "sd15": Models(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "lllyasviel/control_v11f1p_sd15_depth",
        "depth-anything/Depth-Anything-V2-Small-hf",
    ),
    "sdxl": Models(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "diffusers/controlnet-depth-sdxl-1.0",
        "depth-anything/Depth-Anything-V2-Small-hf",
    ),
}

# The ControlNet of the Depth Anything authors (V1, Stable Diffusion 1.5) is a folder of their demo, which is a Space.
CONTROLNETS = {"depth-anything": ("LiheYoung/Depth-Anything", "checkpoints_controlnet")}


def load_pipeline(
    name: str = "embedded",
    controlnet: str | None = None,
    depth_model: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> DiffusionPipeline:
    """Load a text-to-image pipeline that takes a photo or its depth.

    Args:
        name: "embedded" (in the package, no network), "sd15", "sdxl", a diffusers folder or a Hub id (safetensors, no
            remote code).
        controlnet: A ControlNet folder, a Hub id, or "depth-anything" (the authors' own for SD 1.5). Default: the
            preset's, or the one in the folder.
        depth_model: Anything `DepthEstimator.from_pretrained` takes. Default: the preset's, the one in the folder, or
            "embedded".
        device: Default, and "auto": CUDA, MPS or CPU, the first that is there.
        dtype: "float32", "float16", "bfloat16" or a torch dtype. Default: float16 on CUDA, else float32.

    Returns:
        A `DepthStableDiffusionControlNetPipeline`, or the XL one; call it with `depth_source=` or `depth=`.

    Raises:
        InputError: A name that is unknown or out of reach, a folder that is incomplete, or a model of another family.
    """
    device = pick_device(device)
    dtype = _dtype(dtype, device)
    models = choose(name, controlnet, depth_model)
    parts = {}
    folder = base_folder(models.base)
    if models.controlnet:
        source = controlnet_folder(models.controlnet)
        parts["controlnet"] = _load(ControlNetModel, source, models.controlnet, dtype=dtype)
    elif not (folder / "controlnet").is_dir():
        raise InputError(f"{name} has no controlnet/ folder: pass --controlnet (controlnet=) with a depth ControlNet")
    if models.depth_model:
        estimator = DepthEstimator.from_pretrained(models.depth_model, device=device, dtype=dtype)
        parts |= {"depth_estimator": estimator.model, "depth_processor": estimator.processor}
    pipe = load_parts(folder, models.base, True, dtype=dtype, **parts)
    check_fit(
        pipe.controlnet, pipe.unet, f"--controlnet {models.controlnet or 'of the base'}", f"--model {models.base}"
    )
    if name == "sd15":
        # The base's own PNDM needs 50 steps for what UniPC does in 20.
        pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.to(device)
    if device.type == "cpu":
        # An eighth faster for these convolutions.
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.controlnet.to(memory_format=torch.channels_last)
    return pipe


def load_parts(folder: Path, name: str | None = None, safety: bool = False, **parts: Any) -> DiffusionPipeline:
    """Load the depth pipeline of a base folder's family; `parts` replace the folder's own, None leaves one out.

    Args:
        folder: As `base_folder` gives it. name: What messages call it. safety: Keep the folder's safety checker.
        parts: Components, and `dtype`.

    Raises:
        InputError: It cannot be loaded.
    """
    kind = DepthStableDiffusionXLControlNetPipeline if _family(folder).startswith(_XL) else None
    if kind is None:
        kind = DepthStableDiffusionControlNetPipeline
        if not safety or not (folder / "safety_checker").is_dir():
            parts |= {"safety_checker": None, "requires_safety_checker": False}
    return _load(kind, folder, name or str(folder), **parts)


def is_xl(kind: type[DiffusionPipeline]) -> bool:
    """Whether a pipeline class is of the XL family."""
    return _XL in kind.__name__


def check_fit(controlnet: Any, unet: torch.nn.Module, which: str, base: str) -> None:
    """Refuse a ControlNet that was made for another family than the UNet, before it fails deep inside.

    Args:
        which: What messages call the ControlNet. base: What they call the model.

    Raises:
        InputError: Text width or latent channels differ.
    """
    for net in getattr(controlnet, "nets", [controlnet]):
        for key in ("cross_attention_dim", "in_channels"):
            own, wanted = net.config.get(key), unet.config.get(key)
            if own is not None and own != wanted:
                raise InputError(f"{which} does not fit {base}: its {key} is {own}, the UNet's is {wanted}")


def choose(name: str, controlnet: str | None = None, depth_model: str | None = None) -> Models:
    """Say which models `load_pipeline` would use with the same arguments, without loading them."""
    preset = PRESETS.get(name)
    if preset is None:
        preset = Models(name, None, None if (Path(name) / "depth_estimator").is_dir() else "embedded")
    return Models(preset.base, controlnet or preset.controlnet, depth_model or preset.depth_model)


def default_guidance(name: str) -> float:
    """Guidance scale that suits a model: `guidance_scale` in a folder's generate.json, else 7.5, or 5 for "sdxl".

    Raises:
        InputError: The file does not hold a number.
    """
    if name == "sdxl":
        return XL_GUIDANCE_SCALE
    file = (EMBEDDED if name == "embedded" else Path(name)) / DEFAULTS_FILE
    if not file.is_file():
        return GUIDANCE_SCALE
    try:
        return float(json.loads(file.read_text())["guidance_scale"])
    except (ValueError, TypeError, KeyError):
        raise InputError(f'{file} must hold {{"guidance_scale": NUMBER}}') from None


def base_folder(base: str) -> Path:
    """The folder of a base model, from the Hub's cache or downloaded when it is a Hub id.

    Args:
        base: "embedded", a name in `PRESETS`, a folder or a Hub id.

    Raises:
        InputError: Nothing there, out of reach, or not a Stable Diffusion 1.5, 2.x or XL pipeline.
    """
    base = PRESETS[base].base if base in PRESETS else base
    folder = EMBEDDED if base == "embedded" else Path(base)
    if not folder.is_dir() and folder != EMBEDDED:
        folder = _fetch(
            base,
            "--model",
            allow_patterns=["model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors"],
            ignore_patterns=["safety_checker/*", "vae_1_0/*", "*.fp16.*", "*.non_ema.*"],
        )
    index = folder / "model_index.json"
    if folder == EMBEDDED and not index.is_file():
        raise InputError("the embedded model is not installed: make it with train_controlnet/recipes/embedded.sh")
    if not index.is_file():
        raise InputError(f"{base} has no model_index.json: --model takes a diffusers pipeline folder or Hub id")
    family = _family(folder)
    if not family.startswith("StableDiffusion") or family.startswith("StableDiffusion3"):
        raise InputError(f"{base} is a {family}: only Stable Diffusion 1.5, 2.x and XL models are supported")
    return folder


def _family(folder: Path) -> str:
    """The pipeline class that a folder was saved as, without our prefix."""
    index = folder / "model_index.json"
    try:
        return json.loads(index.read_text())["_class_name"].removeprefix("Depth")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{index} is not a diffusers index") from None


def controlnet_folder(controlnet: str) -> Path:
    """The folder of a ControlNet: a name in `CONTROLNETS`, a folder or a Hub id.

    Raises:
        InputError: Out of reach.
    """
    if controlnet in CONTROLNETS:
        repository, folder = CONTROLNETS[controlnet]
        return _fetch(repository, "--controlnet", repo_type="space", allow_patterns=[f"{folder}/*"]) / folder
    if Path(controlnet).is_dir():
        return Path(controlnet)
    return _fetch(controlnet, "--controlnet", allow_patterns=["config.json", "diffusion_pytorch_model*.safetensors"])


def _fetch(repository: str, flag: str, **options: Any) -> Path:
    """Bring the wanted files of a repository into the Hub's cache; without a network, what is there already."""
    instead = "a local folder, or --model embedded, which needs no network"
    if "/" not in repository:
        named = ", ".join(PRESETS if flag == "--model" else CONTROLNETS)
        raise InputError(f"{flag} {repository}: no named model ({named}), folder or Hub id (ORG/NAME); pass {instead}")
    try:
        # Unlike the download of single files this does not retry for half a minute when there is no network.
        return Path(snapshot_download(repository, etag_timeout=NETWORK_TIMEOUT, **options))
    except HFValidationError:
        raise InputError(f"{flag} {repository}: no such folder, and not a Hub id (ORG/NAME); pass {instead}") from None
    except RepositoryNotFoundError:
        raise InputError(f"{flag} {repository}: no such folder or Hub repository; pass {instead}") from None
    except LocalEntryNotFoundError:
        raise InputError(
            f"{flag} {repository}: no such folder, and the Hub repository cannot be reached and is not in the cache; "
            f"pass {instead}"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise InputError(f"{flag} {repository}: the Hub refuses it ({status}); pass {instead}") from None


def _load(kind: type, folder: Path, name: str, **options: Any) -> Any:
    try:
        with _quiet():
            return kind.from_pretrained(str(folder), use_safetensors=True, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{name}: cannot be loaded as {kind.__name__}: {reason}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back remarks on harmless differences, such as a config field that a newer class no longer takes."""
    before = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device that is named, or for None and "auto" the best there is.

    Raises:
        InputError: It is not available here.
    """
    if device not in (None, "auto"):
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError, NotImplementedError, TypeError):
            raise InputError(f"--device {device} is not available here; use cpu or auto") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    dtype = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if dtype not in DTYPES.values():
        raise InputError(f"--dtype {dtype}: use {', '.join(DTYPES)}")
    return dtype
