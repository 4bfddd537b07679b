"""Muon: momentum whose matrices are orthogonalised, for networks that start from random weights.

torch.optim.Muon takes no convolutions and computes in bfloat16, which CPUs without instructions for it emulate 40 times
slower than float32.
"""

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values end between 0.7 and 1.2 by a quintic Newton-Schulz
    iteration (https://kellerjordan.github.io/posts/muon).

    The iteration's polynomial is built from the small Gram matrix alone and applied once, for less than half the cost.

    Args:
        matrix: float32 [M, N], not all zero.
        steps: iterations; five suffice for singular values from 1/500 of the largest.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-12)
    gram, total = wide @ wide.T, None
    a, b, c = _COEFFICIENTS
    identity = torch.eye(len(gram), device=gram.device)
    for step in range(steps):
        factor = a * identity + b * gram + c * gram @ gram
        total = factor if total is None else factor @ total
        if step < steps - 1:
            gram = factor @ gram @ factor
    wide = total @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """Muon for groups with `orthogonal`, AdamW for the others; weight decay is decoupled in both.

    A matrix moves by lr * 0.2 * sqrt(max(M, N)) times the orthogonalised momentum, so that its entries move about as
    far as under AdamW at the same rate (2502.16982, section 2.2). Kernels [out, in, h, w] count as [out, in * h * w].
    """

    def __init__(self, groups: list[dict], momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.99)):
        super().__init__(groups, {"orthogonal": False, "momentum": momentum, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter in parameters:
                state = self.state[parameter]
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                rule = self._orthogonal if group["orthogonal"] else self._adam
                parameter.add_(rule(parameter, state, group), alpha=-group["lr"])

    def _orthogonal(self, parameter: Tensor, state: dict, group: dict) -> Tensor:
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        ahead = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
        return (0.2 * max(ahead.shape) ** 0.5 * orthogonalise(ahead)).view(parameter.shape)

    def _adam(self, parameter: Tensor, state: dict, group: dict) -> Tensor:
        if not state:
            state |= {"step": torch.tensor(0.0), "mean": torch.zeros_like(parameter)}
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(parameter.grad, 1 - first)
        state["square"].lerp_(parameter.grad.square(), 1 - second)
        mean = state["mean"] / (1 - first ** state["step"].item())
        return mean / (state["square"] / (1 - second ** state["step"].item())).sqrt().add_(1e-8)


def muon_groups(groups: list[dict], model: nn.Module) -> list[dict]:
    """The groups of `parameter_groups`, the weights of linear and convolution layers apart to be orthogonalised."""
    layers = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, layers)}
    split = [
        group | {"orthogonal": orthogonal, "params": [p for p in group["params"] if (id(p) in matrices) == orthogonal]}
        for group in groups
        for orthogonal in (True, False)
    ]
    return [group for group in split if group["params"]]
