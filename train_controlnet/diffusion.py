"""The diffusion objective that the base and the ControlNet trainer share."""

import torch
from diffusers import SchedulerMixin
from torch import Tensor


def noised(
    latents: Tensor, scheduler: SchedulerMixin, seed: int, step: int, shift: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, the timesteps [B] and the regression target for a batch of latents [B, C, h, w].

    Noise and timesteps are a function of (seed, step) alone; timesteps are stratified over the batch, which lowers the
    variance of the loss. A `shift` s > 1 draws noisy ones more often, u -> s u / (1 + (s - 1) u) of the uniform share u
    (2403.03206, eq. 23). The target is the noise or v = sqrt(a) * noise - sqrt(1 - a) * x (2202.00512, appendix D).
    """
    draws = torch.Generator().manual_seed(seed * 1_000_003 + step)
    noise = torch.randn(latents.shape, generator=draws).to(latents.device)
    count, batch = scheduler.config.num_train_timesteps, len(latents)
    strata = (torch.arange(batch) + torch.rand(batch, generator=draws)) / batch
    strata = shift * strata / (1 + (shift - 1) * strata)
    timesteps = (strata * count).long().clamp(max=count - 1).to(latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    v_prediction = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if v_prediction else noise
    return noisy, timesteps, target


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
