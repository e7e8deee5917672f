"""Norms that models share.

ChannelNorm and GlobalNorm are the layer norms of temporal convolutional networks, on features (B, C, N), with one gain
and one bias a channel: Conv-TasNet (Luo and Mesgarani, 2019), section II.C. Parameters have the published shape
(1, C, 1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.errors import UsageError

EPS = 1e-8
"""Added to the biased variance, inside the root."""


class ChannelNorm(nn.Module):
    """cLN: each frame by the mean and variance over its channels. It sees no other frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, C, N)"""
        normed = F.layer_norm(x.transpose(1, 2), x.shape[1:2], self.gamma.flatten(), self.beta.flatten(), EPS)
        return normed.transpose(1, 2)


class GlobalNorm(nn.Module):
    """gLN: each item by one mean and one variance over channels and time. Every frame sees the whole input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, C, N)"""
        return F.group_norm(x, 1, self.gamma.flatten(), self.beta.flatten(), EPS)

    def line(self, mean: Tensor, variance: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """See sepcli.nn.tiled_tcn."""
        whole = mean.mean(dim=1, keepdim=True)
        deviation = ((variance + (mean - whole).square()).mean(dim=1, keepdim=True) + EPS).sqrt()
        return whole, self.gamma / deviation, self.beta


def group_norm(groups: int, channels: int) -> nn.Module:
    """Group norm, or none with 0 groups. Raises UsageError."""
    if not groups:
        return nn.Identity()
    if channels % groups:
        raise UsageError(f"norm_groups = {groups}: must divide the {channels} channels of a layer that has group norm")
    return nn.GroupNorm(groups, channels)
