"""Training of the small text-to-image base, together with a ControlNet that most batches use.

    depth-control train-base --cache runs/cache --vae runs/autoencoder/model --out runs/base

A small base that learns from captions alone takes very long to draw shapes, and what draws no shapes cannot be steered.
With the depth of each scene at hand it learns to draw them at once; a share of the batches has no condition, so the
base also works alone. `model/` is a stock StableDiffusionControlNetPipeline folder; `train-controlnet` then trains the
ControlNet on the frozen base.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from depth_model import checkpoint
from depth_model.config import dump, run_module
from depth_model.data.order import generator
from depth_model.errors import InputError
from depth_model.muon import Muon, muon_groups
from depth_model.run_log import RunLog
from depth_model.training import (
    Ema,
    batch_share,
    learning_rate_factor,
    make_accelerator,
    parameter_groups,
    resume_run,
    save_run,
    set_learning_rates,
)
from depth_model.watch import TERMINATED, Watch
from train_controlnet.cache import Cache
from train_controlnet.diffusion import min_snr_loss, noised
from train_controlnet.vocabulary import build_tokenizer, save_and_reload


@dataclass(frozen=True)
class Config:
    """Trains a small text-to-image base model jointly with a depth ControlNet."""

    cache: Path = Path("runs/cache")
    """Folder written by `depth-control prepare-controlnet`."""
    vae: Path = Path("runs/autoencoder/model")
    """Folder of the autoencoder that made the cache."""
    out: Path = Path("runs/base")
    """Run folder; the finished pipeline is in `model/`."""
    init: Path | None = None
    """Pipeline folder of an earlier run to start from, with the same sizes and its tokenizer; random when not given."""
    channels: tuple[int, ...] = (64, 96, 160)
    """Channels of the UNet's levels; all but the first have cross-attention."""
    layers: int = 1
    """Residual blocks in each level."""
    text_width: int = 128
    """Width of the text encoder (2 layers)."""
    condition_channels: tuple[int, ...] = (8, 16, 32, 64)
    """Channels of the ControlNet's condition embedding, one stride of 2 between each two."""
    control_share: float = 0.85
    """Share of the batches that see their condition."""
    coarsest: int = 8
    """Conditions are averaged over cells of 1, 2, 4 ... up to this many pixels, since estimates are smooth."""
    caption_dropout: float = 0.1
    """Share of the captions replaced by the empty one."""
    steps: int = 8000
    """Optimiser steps in all; may be changed when going on."""
    batch: int = 16
    """Images in a global batch, over all processes."""
    lr: float = 3e-3
    """Peak learning rate of Muon."""
    warmup: int = 200
    """Steps of linear warm-up."""
    cooldown: float = 0.4
    """Share of the steps, at the end, over which the learning rate falls to 0; may be changed when going on."""
    timestep_shift: float = 1.0
    """Above 1, noisy steps are drawn more often: layout arises there, texture in the others."""
    snr_gamma: float = 0.0
    """Min-SNR weighting; 0 turns it off. It takes its weight from the noisiest steps, where layout and colour arise."""
    control_gain: float = 1.0
    """Factor on what the released ControlNet adds to the base; may be changed when going on. Small networks follow the
    depth better with more than they were trained with, as they follow a prompt better with guidance."""
    ema: float = 0.999
    """Decay of the averaged weights that become the released model."""
    seed: int = 0
    """Seed of weights, order and noise."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of the log."""
    resume: str = "auto"
    """auto, must or never."""


FREE = ("out", "steps", "cooldown", "control_gain", "save_every", "log_every", "resume")


def build_parts(
    config: Config, latent_channels: int, vocabulary: int, tokenizer: CLIPTokenizer
) -> dict[str, nn.Module]:
    """UNet, text encoder and ControlNet with random weights, in stock classes."""
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=config.text_width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    levels = len(config.channels) - 1
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=config.channels,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * levels),
        up_block_types=(*["CrossAttnUpBlock2D"] * levels, "UpBlock2D"),
        layers_per_block=config.layers,
        cross_attention_dim=config.text_width,
        attention_head_dim=4,
        norm_num_groups=8,  # the stock 32 would leave two channels each, which normalises away what they say together
    )
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=config.condition_channels)
    open_control(controlnet)
    return {"unet": unet, "text_encoder": CLIPTextModel(text), "controlnet": controlnet}


class JointModel(nn.ModuleDict):
    """UNet, text encoder and ControlNet as one network, so that one gradient exchange covers all three."""

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor, condition: Tensor | None) -> Tensor:
        """The prediction [B, C, h, w] for tokens `ids` [B, T] and conditions [B, 3, H, W], or without control."""
        text = self["text_encoder"](ids)[0]
        down, middle = None, None
        if condition is not None:
            down, middle = self["controlnet"](noisy, timesteps, text, condition, return_dict=False)
        return self["unet"](
            noisy, timesteps, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample


@torch.no_grad()
def open_control(controlnet: ControlNetModel) -> None:
    """Draws weights under which the condition acts from the first step, in place.

    Zero convolutions keep a new ControlNet from disturbing a trained base (2302.05543, section 3.2), and torch's
    default shrinks the condition a thousandfold on its way through the embedding's layers. Here base and ControlNet
    begin together, and both only delay: after 12,000 images the condition still had no effect at all.
    """
    embedding = controlnet.controlnet_cond_embedding
    for layer in (embedding.conv_in, *embedding.blocks, embedding.conv_out):
        # SiLU nearly halves small signals; with this gain they reach the end at a size that the encoder sees.
        nn.init.normal_(layer.weight, std=1.7 * (layer.in_channels * 9) ** -0.5)
        nn.init.zeros_(layer.bias)
    for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        nn.init.xavier_normal_(layer.weight, gain=0.5)


def build_scheduler() -> DDIMScheduler:
    """v-prediction with a zero terminal SNR (2305.08891), so that sampling may start from pure noise."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # not used with trailing steps; stock pipelines rewrite any other value
    )


def coarsen(controls: Tensor, cells: int) -> Tensor:
    """Conditions [B, 3, H, W] averaged over `cells` x `cells` pixels and interpolated back."""
    if cells == 1:
        return controls
    small = F.interpolate(controls, scale_factor=1 / cells, mode="area")
    return F.interpolate(small, size=controls.shape[-2:], mode="bilinear", align_corners=False)


@torch.no_grad()
def amplify(controlnet: ControlNetModel, gain: float) -> None:
    """Multiplies what the ControlNet adds to the UNet, in place: the weights of its last convolutions."""
    for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        for parameter in layer.parameters():
            parameter *= gain


def save_pipeline(parts: dict[str, nn.Module], vae: AutoencoderTiny, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes a stock StableDiffusionControlNetPipeline folder in float16 safetensors."""
    pipeline = StableDiffusionControlNetPipeline(
        vae=vae,
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)


def _tokenizer(config: Config, cache: Cache, resumed: bool) -> CLIPTokenizer:
    """The run's own tokenizer, or that of `--init`: other token numbers would scramble what the words mean."""
    own = config.out / "tokenizer"
    if resumed:
        return CLIPTokenizer.from_pretrained(own)
    if config.init is not None and not (config.init / "tokenizer").is_dir():
        raise InputError(f"--init {config.init}: no tokenizer/ there; give the model folder of a train-base run")
    earlier = CLIPTokenizer.from_pretrained(config.init / "tokenizer") if config.init else None
    return save_and_reload(earlier or build_tokenizer(cache.captions), own)


def _load_parts(parts: dict[str, nn.Module], folder: Path) -> None:
    """Loads the weights of an earlier run's pipeline folder into `parts`, in place."""
    for name, part in parts.items():
        try:
            weights = type(part).from_pretrained(folder / name, use_safetensors=True).state_dict()
            part.load_state_dict(weights)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"--init {folder}: its {name} does not fit this run's settings ({error})") from error


def main(config: Config) -> None:
    """Runs the stage.

    Raises:
        InputError: a cache or folder that cannot be used.
        RunError: a full disk, a lost process, or gradients that stay NaN or infinite.
    """
    cache = Cache(config.cache, config.seed)
    found = checkpoint.find_checkpoint(config.out / "checkpoints", config.resume)
    # Batches without a condition leave the ControlNet without gradients.
    accelerator = make_accelerator(config.out, unused_parameters=True)
    share = batch_share(config.batch, accelerator)
    torch.manual_seed(config.seed)
    with accelerator.main_process_first():
        tokenizer = _tokenizer(config, cache, found is not None)
    parts = build_parts(config, cache.latent_channels, len(tokenizer), tokenizer)
    if config.init is not None and found is None:
        _load_parts(parts, config.init)
    network = JointModel(parts).to(accelerator.device, memory_format=torch.channels_last).train()
    scheduler = build_scheduler()
    optimizer = Muon(muon_groups(parameter_groups([(config.lr, network.parameters())], network, 0.01), network))
    ema = Ema(network, config.ema)
    step, state = resume_run(found, config, FREE, network, ema, optimizer)
    model, optimizer = accelerator.prepare(network, optimizer)
    running = state.get("running")
    if accelerator.is_main_process:
        log = RunLog(config.out, step)
        dump(config, config.out / "config.yaml")
    with Watch(config.out, accelerator) as watch:
        while step < config.steps and not watch.stop:
            # ---- one training step
            set_learning_rates(optimizer, learning_rate_factor(step, config.steps, config.warmup, config.cooldown))
            rng = generator(config.seed, 5, step)
            batch = watch.saw(cache.batch(step, config.batch))
            captions = ["" if rng.random() < config.caption_dropout else caption for caption in batch["captions"]]
            ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
            condition = None
            if rng.random() < config.control_share:
                condition = coarsen(batch["controls"][share], 2 ** int(rng.integers(config.coarsest.bit_length())))
                condition = condition.to(accelerator.device)
            noisy, timesteps, target = (
                tensor[share].to(accelerator.device)
                for tensor in noised(batch["latents"], scheduler, config.seed, step, config.timestep_shift)
            )
            with accelerator.autocast():
                prediction = model(noisy, timesteps, ids[share].to(accelerator.device), condition)
            loss = min_snr_loss(prediction, target, scheduler, timesteps, config.snr_gamma)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
            value = watch.exchange(loss)
            running = value if running is None else 0.98 * running + 0.02 * value
            if watch.finite(norm):
                optimizer.step()
                ema.update(network, step)
            optimizer.zero_grad(set_to_none=True)
            step += 1
            # ---- once in a while: log, save
            if not accelerator.is_main_process:
                continue
            if step % config.log_every == 0 or step == config.steps:
                log.progress(step, config.steps, config.batch, loss=running)
            if step % config.save_every == 0 or step == config.steps or watch.stop:
                save_run(config.out / "checkpoints", step, config, network, ema, optimizer, {"running": running})
                log.plot(config.out / "curves.png")
    if watch.stop and step < config.steps:
        print(f"stopped by SIGTERM after step {step}, which is saved; the same command goes on", flush=True)
        raise SystemExit(TERMINATED)
    if not accelerator.is_main_process:
        return
    release = nn.ModuleDict(build_parts(config, cache.latent_channels, len(tokenizer), tokenizer))
    release.load_state_dict(network.state_dict())
    ema.load_into(release)
    amplify(release["controlnet"], config.control_gain)
    vae = AutoencoderTiny.from_pretrained(config.vae, use_safetensors=True)
    save_pipeline(dict(release.half().eval()), vae.half(), tokenizer, config.out / "model")


if __name__ == "__main__":
    run_module(Config, main, "train_controlnet.base")
