"""DINOv2 encoders: where the student's weights come from, and what its features stay close to."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import DepthAnythingForDepthEstimation, Dinov2Model

from depth_model.errors import InputError
from depth_model.model_folder import download, quiet
from depth_model.modeling import check_finite


def load_encoder(source: str, flag: str = "--encoder") -> Dinov2Model:
    """Opens a DINOv2 encoder in float32, in evaluation mode and without gradients.

    Args:
        source: a transformers folder with safetensors weights, or a Hub id such as facebook/dinov2-small.
        flag: what messages call it.

    Raises:
        InputError: nothing there, no network, or not a DINOv2.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists() or source.count("/") != 1 or source.startswith((".", "/")):
            raise InputError(f"{flag} {source}: no such folder; give one, or a Hub id such as facebook/dinov2-small")
        folder = download(source)
    try:
        with quiet():
            model, report = Dinov2Model.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except Exception as error:
        # safetensors and transformers raise many types for damaged or foreign weights.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{flag} {source}: not a DINOv2 encoder that can be loaded ({reason})") from None
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{flag} {source}: {len(missing)} weights of a DINOv2 encoder are missing, such as {missing[:3]}"
        )
    check_finite(model, f"{flag} {source}")
    return model.requires_grad_(False).eval()


def initialise_from_encoder(
    model: DepthAnythingForDepthEstimation, encoder: Dinov2Model, flag: str = "--encoder"
) -> None:
    """Copies the encoder's weights into the model's backbone, in place (V1 section 3.2: the student begins at DINOv2).

    Raises:
        InputError: the encoder has another size.
    """
    try:
        model.backbone.load_state_dict(encoder.state_dict())
    except RuntimeError as error:
        found, wanted = encoder.config, model.config.backbone_config
        raise InputError(
            f"{flag}: an encoder {found.hidden_size} wide with {found.num_hidden_layers} layers for images of "
            f"{found.image_size} px does not fit a model {wanted.hidden_size} wide with {wanted.num_hidden_layers} "
            f"layers for {wanted.image_size} px; choose another --preset"
        ) from error


@torch.no_grad()
def frozen_features(encoder: Dinov2Model, pixel_values: Tensor) -> Tensor:
    """The last block's patch features [B, N, C] after the final layer norm, for images [B, 3, h, w]."""
    return encoder(pixel_values=pixel_values).last_hidden_state[:, 1:]


class Student(nn.Module):
    """A depth model that also gives its encoder's last patch features, projected where the frozen ones are wider.

    Of the same size there is no projection: a random one would rule the alignment at first (V1 section 3.3).
    """

    def __init__(self, model: DepthAnythingForDepthEstimation, width: int):
        """`width` is the channels of the features to be compared with."""
        super().__init__()
        own = model.config.backbone_config.hidden_size
        self.model = model
        self.projection = nn.Identity() if own == width else nn.Linear(own, width)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Disparity [B, h, w] and features [B, N, width] of images [B, 3, h, w], sides multiples of 14."""
        model, size = self.model, self.model.config.patch_size
        maps = model.backbone.forward_with_filtered_kwargs(pixel_values).feature_maps
        grid = pixel_values.shape[-2] // size, pixel_values.shape[-1] // size
        disparity = model.head(model.neck(maps, *grid), *grid)
        return disparity, self.projection(maps[-1][:, 1:])
