"""Model folders: opened with every check before and after, found in the local Hub cache or fetched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, DPTImageProcessorPil
from transformers.utils import logging

from depth_model.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from depth_model.errors import InputError
from depth_model.modeling import PATCH, UNUSED_WEIGHTS, check_finite

_HUB_FILES = ("config.json", "preprocessor_config.json", "model*.safetensors", "model*.safetensors.index.json")
_HUB_TIMEOUT = 10  # seconds to wait for an answer


def default_processor(config: DepthAnythingConfig, lower_bound: int | None = None) -> DPTImageProcessorPil:
    """Return the preprocessing of a network: ImageNet statistics, shortest side `lower_bound`, its own if None."""
    lower_bound = lower_bound or config.backbone_config.image_size
    return DPTImageProcessorPil(
        size={"height": lower_bound, "width": lower_bound},
        ensure_multiple_of=PATCH,
        keep_aspect_ratio=True,
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
        # The released weights were trained without; a network of far fewer pixels than a photo needs it.
        antialias=lower_bound < 518,
    )


def load_folder(folder: Path, name: str) -> tuple[DepthAnythingForDepthEstimation, DPTImageProcessorPil | None]:
    """Open a transformers folder, in float32; the processor is None when the folder has none.

    Args:
        folder: where `config.json` and `model.safetensors` (whole or in shards) are.
        name: what messages call it.

    Raises:
        InputError: not a Depth Anything model, no weights, or damaged ones.
    """
    config = _load_config(folder, name)
    if not any((folder / file).is_file() for file in ("model.safetensors", "model.safetensors.index.json")):
        raise InputError(
            f"{name}: has no weights (model.safetensors); pickled weights (.bin, .pth) in folders are not read"
        )
    try:
        with quiet():
            model, report = DepthAnythingForDepthEstimation.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:
        # safetensors and transformers raise many types for damaged or foreign weights.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name}: the weights cannot be loaded ({reason})") from None
    wrong = [key for key in report["missing_keys"] if not key.startswith(UNUSED_WEIGHTS)] + [*report["unexpected_keys"]]
    if wrong:
        raise InputError(f"{name}: {len(wrong)} weights are missing or unknown, such as {sorted(wrong)[:3]}")
    check_finite(model, name)
    if not (folder / "preprocessor_config.json").is_file():
        return model, None
    try:
        processor = DPTImageProcessorPil.from_pretrained(folder, local_files_only=True)
        lower_bound = processor.size["height"]
    except Exception as error:
        raise InputError(f"{name}: preprocessor_config.json cannot be read ({error})") from None
    if not isinstance(lower_bound, int) or not PATCH <= lower_bound <= 4096:
        raise InputError(f"{name}: preprocessor_config.json: size.height must be 14 to 4096 pixels, not {lower_bound}")
    return model, processor


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and load reports of transformers, since what went wrong is told in one line here."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load_config(folder: Path, name: str) -> DepthAnythingConfig:
    if not (folder / "config.json").is_file():
        raise InputError(f"{name}: not a model folder (it has no config.json)")
    try:
        fields, _ = DepthAnythingConfig.get_config_dict(folder, local_files_only=True)
        backbone = (fields.get("backbone_config") or {}).get("model_type")
        if fields.get("model_type") != "depth_anything" or backbone != "dinov2":
            raise InputError(f"{name}: a {fields.get('model_type')} model, not a depth_anything model over dinov2")
        # Early releases say null, which the network cannot multiply by.
        return DepthAnythingConfig.from_dict(fields | {"max_depth": fields.get("max_depth") or 1})
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name}: config.json cannot be read ({error})") from None


def download(repository: str) -> Path:
    """Return the folder of a Hub model, from the local cache when it is there.

    Raises:
        InputError: no such public model, or neither cached nor reachable.
    """
    try:
        folder = Path(snapshot_download(repository, allow_patterns=_HUB_FILES, local_files_only=True))
        # An interrupted download leaves a folder without weights in the cache.
        if any(folder.glob("model*.safetensors")):
            return folder
    except (OSError, ValueError):
        pass
    try:
        # Only this call has a timeout: a Hub that does not answer it would hang the download for ever.
        HfApi().model_info(repository, timeout=_HUB_TIMEOUT)
        return Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
    except (GatedRepoError, RepositoryNotFoundError):
        raise InputError(
            f"{repository}: neither a local folder nor a public model on the Hugging Face Hub; "
            "check the name, or log in if it needs permission"
        ) from None
    except Exception:
        # The errors of the transport library, which changes between releases of the Hub client.
        raise InputError(
            f"{repository}: not in the local cache, and the Hugging Face Hub cannot be reached; "
            "give 'embedded', or a folder with the downloaded model"
        ) from None
