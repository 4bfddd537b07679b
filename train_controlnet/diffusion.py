"""The diffusion objective that the base and the ControlNet trainer share."""

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from torch import Tensor, nn

from depth_model.errors import InputError


def training_scheduler(config: dict, name: str) -> DDPMScheduler:
    """The noise schedule of a base, whatever sampler its folder names.

    Raises:
        InputError: it predicts neither noise nor velocity; `name` is what messages call the base.
    """
    scheduler = DDPMScheduler.from_config(config)
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction") or "shift" in config:
        raise InputError(f"{name}: its scheduler predicts {kind}; this trainer knows epsilon and v_prediction")
    return scheduler


def noised(
    latents: Tensor,
    scheduler: SchedulerMixin,
    seed: int,
    step: int,
    shift: float = 1.0,
    batch: int | None = None,
    share: slice = slice(None),
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, the timesteps [B] and the regression target for a batch of latents [B, C, h, w].

    Of a global batch of `batch` images, `latents` may be the ones of `share`; they get the same draws as in the whole.

    Noise and timesteps are a function of (seed, step) alone; timesteps are stratified over the batch, which lowers the
    variance of the loss. A `shift` s > 1 draws noisy ones more often, u -> s u / (1 + (s - 1) u) of the uniform share u
    (2403.03206, eq. 23). The target is the noise or v = sqrt(a) * noise - sqrt(1 - a) * x (2202.00512, appendix D).
    """
    draws = torch.Generator().manual_seed(seed * 1_000_003 + step)
    batch = len(latents) if batch is None else batch
    noise = torch.randn((batch, *latents.shape[1:]), generator=draws)[share].to(latents.device)
    count = scheduler.config.num_train_timesteps
    strata = (torch.arange(batch) + torch.rand(batch, generator=draws)) / batch
    strata = shift * strata / (1 + (shift - 1) * strata)
    timesteps = (strata * count).long().clamp(max=count - 1)[share].to(latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    v_prediction = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if v_prediction else noise
    return noisy, timesteps, target


def predict(unet: nn.Module, controlnet: nn.Module, batch: dict, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """What the base under control predicts for x_t (2302.05543, eq. 2 to 4), [B, C, h, w].

    Args:
        batch: text [B, T, D] and controls [B, 3, H, W] in the range that the pipeline feeds; for SDXL also pooled
            [B, P] and time_ids [B, 6].
    """
    text, added = batch["text"].to(noisy.dtype), None
    if "pooled" in batch:
        added = {"text_embeds": batch["pooled"].to(noisy.dtype), "time_ids": batch["time_ids"]}
    condition = batch["controls"].to(noisy.dtype)
    down, middle = controlnet(noisy, timesteps, text, condition, added_cond_kwargs=added, return_dict=False)
    return unet(
        noisy,
        timesteps,
        text,
        added_cond_kwargs=added,
        down_block_additional_residuals=[residual.to(noisy.dtype) for residual in down],
        mid_block_additional_residual=middle.to(noisy.dtype),
        return_dict=False,
    )[0]


def denoised(prediction: Tensor, noisy: Tensor, timestep: int, scheduler: SchedulerMixin) -> Tensor:
    """The latents that one step from x_t leads to, from a prediction of noise or velocity. All [B, C, h, w]."""
    alpha = scheduler.alphas_cumprod[timestep].to(noisy.device)
    if scheduler.config.prediction_type == "v_prediction":
        return alpha.sqrt() * noisy - (1 - alpha).sqrt() * prediction
    return (noisy - (1 - alpha).sqrt() * prediction) / alpha.sqrt()


def min_snr_loss(
    prediction: Tensor, target: Tensor, scheduler: SchedulerMixin, timesteps: Tensor, gamma: float
) -> Tensor:
    """Mean squared error times min(SNR, gamma) / SNR, or / (SNR + 1) for v-prediction (2303.09556, section 3.4).

    `gamma` 0 weighs all timesteps alike. All tensors [B, C, h, w]; timesteps [B].
    """
    error = (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))
    if gamma <= 0:
        return error.mean()
    alpha = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alpha / (1 - alpha).clamp(min=1e-8)
    v_prediction = scheduler.config.prediction_type == "v_prediction"
    weight = snr.clamp(max=gamma) / (snr + 1 if v_prediction else snr.clamp(min=1e-8))
    # Zero-terminal-SNR steps would get no weight at all, and sampling starts there.
    return (error * weight.clamp(min=0.05)).mean()
