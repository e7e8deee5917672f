"""Compressed residual branches, and the scale at which the weights around them start."""

import torch
from torch import Tensor, nn

from sepcli.errors import UsageError
from sepcli.nn.attention import LocalState
from sepcli.nn.lstm import BLSTM


class LayerScale(nn.Module):
    """One learnt factor a channel (Touvron et al. 2021): (B, C, T) -> (B, C, T)."""

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale[:, None] * x


class DConv(nn.Module):
    """Residual branches one after the other, of growing dilation: (B, C, T) -> (B, C, T).

    Each squeezes the channels by `compress`, looks along time with three taps, and for the innermost layers through a
    BLSTM and local attention, and widens again with a GLU (Hybrid Demucs, figure 2). What the paper calls layer norm
    is group norm over channels and time. Raises UsageError below one branch or two channels inside.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: int = 2,
        compress: float = 4,
        lstm: bool = False,
        attention: bool = False,
        initial: float = 1e-3,
    ) -> None:
        super().__init__()
        hidden = int(channels / compress)
        if depth < 1:
            raise UsageError(f"{depth} residual branches: must be at least 1")
        if hidden < 2:  # one channel of one step has no deviation to be normalised by
            raise UsageError(f"residual branches of {channels} / {compress:g} channels: must be at least 2")
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(channels, hidden, 3, dilation=2**index, padding=2**index),
                nn.GroupNorm(1, hidden),
                nn.GELU(),
                *([BLSTM(hidden, span=200, skip=True)] if lstm else []),
                *([LocalState(hidden)] if attention else []),
                nn.Conv1d(hidden, 2 * channels, 1),
                nn.GroupNorm(1, 2 * channels),
                nn.GLU(dim=1),
                LayerScale(channels, initial),
            )
            for index in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@torch.no_grad()
def rescale_convolutions(network: nn.Module, reference: float) -> None:
    """Bring the first weights of every convolution towards one deviation, as Demucs does since its first version.

    Weights and biases are divided by sqrt(deviation of the weights / reference); those without memory are left alone.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d):
            if layer.weight.is_meta:
                continue
            scale = (layer.weight.std() / reference).sqrt()
            layer.weight.div_(scale)
            if layer.bias is not None:
                layer.bias.div_(scale)
