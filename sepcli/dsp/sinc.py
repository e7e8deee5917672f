"""Resampling by a windowed sinc, between rates of a small ratio, as inside the networks that resample.

Smith, "Digital Audio Resampling Home Page", with the window, width and cutoff of package julius, whose output this is.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CROSSINGS = 24
"""Zero crossings of the sinc on either side."""
CUTOFF = 0.945
"""Of the lower rate's band."""


def sinc_kernel(old: int, new: int) -> Tensor:
    """Kernels (new, 1, taps) from rate `old` to rate `new`, of no common divisor: one for each phase of the output.

    Phase i weighs samples from w before to w + old after its first, w = (taps - old) / 2: a sinc of unit sum that a
    squared cosine brings to zero at its last crossing.
    """
    rate = CUTOFF * min(old, new)
    width = math.ceil(CROSSINGS * old / rate)
    position = torch.arange(-width, width + old) / old - torch.arange(new)[:, None] / new
    angle = (position * rate).clamp(-CROSSINGS, CROSSINGS) * math.pi
    kernel = torch.where(angle == 0, 1.0, angle.sin() / angle) * (angle / CROSSINGS / 2).cos() ** 2
    return (kernel / kernel.sum(dim=1, keepdim=True)).unsqueeze(1)


def resample(signal: Tensor, kernel: Tensor, old: int) -> Tensor:
    """(..., T) at rate `old` -> (..., floor(new * T / old)), with the kernel of sinc_kernel(old, new).

    Beyond its ends the signal stays what it is there.
    """
    new, _, taps = kernel.shape
    length = signal.shape[-1]
    width = (taps - old) // 2
    padded = F.pad(signal.reshape(-1, 1, length), (width, width + old), mode="replicate")
    phases = F.conv1d(padded, kernel, stride=old)  # (., new, n)
    return phases.transpose(1, 2).reshape(*signal.shape[:-1], -1)[..., : new * length // old]
