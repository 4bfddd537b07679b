"""Tiny random pipelines of the true classes, as folders, for tests."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessorPil,
)

WORDS = ("a", "red", "clay", "room", "blue", "ice", "on", "hills", "with", "of")


def tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows single letters and `WORDS`."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        left = word[0]
        for i in range(1, len(word)):
            right = word[i] + ("</w>" if i == len(word) - 1 else "")
            merges.append((left, right))
            left += right
            vocabulary.append(left)
    unique = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(vocab=unique, merges=list(dict.fromkeys(merges)), model_max_length=16)


def controlnet(seed: int = 0, downsamplings: int = 3) -> ControlNetModel:
    """A ControlNet whose zero convolutions are not zero, so that it has an effect."""
    torch.manual_seed(seed)
    net = ControlNetModel(
        in_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        conditioning_embedding_out_channels=(4, 8, 8, 8)[: downsamplings + 1],
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def pipeline(kind: str = "tiny", sample_size: int = 8) -> StableDiffusionControlNetPipeline:
    """A stock pipeline.

    Args:
        kind: "tiny" (`AutoencoderTiny`, 4 pixels per latent) or "kl" (`AutoencoderKL`, 8 pixels per latent).
        sample_size: Side of the native latents; the native side in pixels is 4 or 8 times that.
    """
    torch.manual_seed(0)
    words = tokenizer()
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    if kind == "tiny":
        blocks = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
        vae = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1))
    else:
        vae = AutoencoderKL(
            block_out_channels=(4, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
        )
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    pipe = StableDiffusionControlNetPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=words,
        unet=unet.eval(),
        controlnet=controlnet(downsamplings=2 if kind == "tiny" else 3),
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def xl_pipeline() -> StableDiffusionXLControlNetPipeline:
    """A stock XL pipeline with 8 pixels per latent and native pictures of 64 x 64."""
    parts = pipeline("kl").components
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    text = parts["text_encoder"].config
    text.projection_dim = 16
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 8))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pipe = StableDiffusionXLControlNetPipeline(
        vae=parts["vae"],
        text_encoder=parts["text_encoder"],
        text_encoder_2=CLIPTextModelWithProjection(text).eval(),
        tokenizer=parts["tokenizer"],
        tokenizer_2=tokenizer(),
        unet=unet.eval(),
        controlnet=net.eval(),
        scheduler=parts["scheduler"],
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def estimator() -> tuple[DepthAnythingForDepthEstimation, DPTImageProcessorPil]:
    """A depth model and its processor, the two components of a depth pipeline."""
    torch.manual_seed(0)
    encoder = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=encoder,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    model = DepthAnythingForDepthEstimation(config).eval()
    with torch.no_grad():
        for parameter in [*model.neck.parameters(), *model.head.parameters()]:
            parameter.normal_(std=0.2)
        # A random head is often dead behind its last ReLU.
        model.head.conv3.weight.abs_()
        model.head.conv3.bias.fill_(0.5)
    processor = DPTImageProcessorPil(
        size={"height": 56, "width": 56}, ensure_multiple_of=14, keep_aspect_ratio=True, do_resize=True
    )
    return model, processor


def save_pipeline(folder: Path, kind: str = "tiny", sample_size: int = 8) -> Path:
    """Write `pipeline`, or for "xl" `xl_pipeline`, as a stock folder and return it."""
    (xl_pipeline() if kind == "xl" else pipeline(kind, sample_size)).save_pretrained(folder)
    return folder


def save_estimator(folder: Path) -> Path:
    """Write `estimator` as a transformers folder and return it."""
    for part in estimator():
        part.save_pretrained(folder)
    return folder
