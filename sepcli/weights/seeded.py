"""Weights filled by name from a seed: small, reproducible goldens that do not depend on the order of construction."""

import hashlib

import torch
from torch import Tensor, nn


def seeded(name: str, shape: torch.Size | tuple[int, ...], seed: int = 0) -> Tensor:
    """Standard normal values, float32, drawn from a generator of this tensor's own name and the seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def fill(network: nn.Module, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """Fill every floating parameter and running statistic of a network, in place, by name from a seed.

    Matrices and kernels (two or more axes) get normal values of deviation gain / sqrt(fan in); single numbers (PReLU
    slopes) lie around 0.25; scales (one axis, `weight` or `scale`) around 1 and 0.3; biases and running means around
    0; running variances in 0.5 to 1.5. So that no branch is near zero and no norm is the identity.
    """
    kept = network.state_dict().keys()
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if not tensor.is_floating_point() or name not in kept:
            continue
        values = seeded(name, tensor.shape, seed)
        last = name.rsplit(".", 1)[-1]
        if last == "running_var":
            values = 0.5 + torch.sigmoid(values)
        elif last == "scale":
            values = 0.3 + 0.1 * values.tanh()
        elif tensor.dim() == 1 and tensor.numel() == 1:  # the slope of a PReLU
            values = 0.25 + 0.1 * values.tanh()
        elif tensor.dim() >= 2:
            values = values * (gain / max(1, tensor[0].numel()) ** 0.5)
        elif last == "weight":
            values = 1 + 0.2 * values
        else:
            values = 0.2 * values
        tensor.copy_(values)
    return network
