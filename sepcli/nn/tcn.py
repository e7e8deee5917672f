"""Parts of Conv-TasNet (Luo and Mesgarani, 2019) that several models share: front end, temporal blocks, lengths.

Its letters: N filters, L their length, B bottleneck, H hidden channels, P kernel of the blocks, X blocks a repeat, R
repeats. No convolution has a bias. Parameter names are those of the public multi-band code (PanagiotisP/svs-multiband).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.errors import UsageError

Init = Literal["standard", "public"]
Tail = Literal["pad", "public"]


class Encoder(nn.Module):
    """Waveform to non-negative latent: filters of `kernel` samples every half kernel, ReLU (section II.B)."""

    def __init__(self, channels: int, filters: int, kernel: int) -> None:
        super().__init__()
        self.conv1d_U = nn.Conv1d(channels, filters, kernel, stride=kernel // 2, bias=False)

    def forward(self, mixture: Tensor) -> Tensor:
        """(B, C, T) -> (B, filters, N), N = (T - kernel) // (kernel // 2) + 1"""
        return F.relu(self.conv1d_U(mixture))


class Decoder(nn.Module):
    """Latent to waveform: each frame a sum of basis signals, overlap-added every half kernel (section II.B).

    The weight has the published layout (C * kernel, filters), channel by channel.
    """

    def __init__(self, channels: int, filters: int, kernel: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, kernel // 2
        self.basis_signals = nn.Linear(filters, channels * kernel, bias=False)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, S, filters, N) -> (B, S, C, (N - 1) * stride + kernel)"""
        basis = torch.unflatten(self.basis_signals.weight, 0, (self.channels, -1))  # (C, kernel, filters)
        waveforms = F.conv_transpose1d(latent.flatten(0, 1), basis.movedim(-1, 0), stride=self.stride)  # (B * S, C, T)
        return torch.unflatten(waveforms, 0, latent.shape[:2])


class TemporalBlock(nn.Module):
    """Widen, look around at one dilation, narrow, add (section II.C, figure 1C without the skip path)."""

    def __init__(self, bottleneck: int, hidden: int, kernel: int, dilation: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(bottleneck, hidden, 1, bias=False),
            nn.PReLU(),
            norm(hidden),
            DepthwiseSeparable(hidden, bottleneck, kernel, dilation, norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, bottleneck, N) -> (B, bottleneck, N)"""
        change: Tensor = self.net(x)
        return x + change


class DepthwiseSeparable(nn.Module):
    """A dilated convolution of each channel alone, zeros beyond the ends, then a mix of the channels."""

    def __init__(self, hidden: int, bottleneck: int, kernel: int, dilation: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        around = dilation * (kernel - 1) // 2
        self.net = nn.Sequential(
            nn.Conv1d(hidden, hidden, kernel, padding=around, dilation=dilation, groups=hidden, bias=False),
            nn.PReLU(),
            norm(hidden),
        )
        self.res_conv = nn.Conv1d(hidden, bottleneck, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, hidden, N) -> (B, bottleneck, N)"""
        narrowed: Tensor = self.res_conv(self.net(x))
        return narrowed


def temporal_blocks(
    bottleneck: int, hidden: int, kernel: int, depth: int, norm: Callable[[int], nn.Module]
) -> nn.Sequential:
    """One repeat: `depth` blocks of dilation 1, 2, 4, ..."""
    return nn.Sequential(*(TemporalBlock(bottleneck, hidden, kernel, 2**i, norm) for i in range(depth)))


def finite_context(kernel: int, block_kernel: int, depth: int, repeats: int) -> int:
    """Samples that an output sample sees on either side where norms see one frame only, in whole strides."""
    stride = kernel // 2
    frames: int = repeats * (2**depth - 1) * (block_kernel - 1) // 2
    return -(-(frames * stride + kernel - 1) // stride) * stride


def check_sizes(*, kernel: int, block_kernel: int, **others: int) -> None:
    """Refuse sizes that no such network has, by name. Raises UsageError."""
    for name, value in {"kernel": kernel, "block_kernel": block_kernel, **others}.items():
        if value < 1:
            raise UsageError(f"{name} = {value}: must be at least 1")
    if kernel % 2:
        raise UsageError(f"kernel = {kernel}: must be even, as filters overlap by half")
    if block_kernel % 2 == 0:
        raise UsageError(f"block_kernel = {block_kernel}: must be odd, so that a frame sees as far left as right")


def pad_to_frames(mixture: Tensor, stride: int, least: int, tail: Tail) -> Tensor:
    """Zeros on the right of (B, C, T), to whole strides and at least `least` samples.

    So every sample is heard by a full set of frames. With tail = "public" only what is shorter than `least` is padded,
    as public code does: what no whole frame covers, up to stride - 1 samples at the end, comes out as zeros.
    """
    length = mixture.shape[-1]
    wanted = length if tail == "public" else -(-length // stride) * stride
    return F.pad(mixture, (0, max(least, wanted) - length))


def fit_length(waveforms: Tensor, length: int) -> Tensor:
    """Cut (..., T) to `length` samples, or fill up with zeros."""
    return F.pad(waveforms, (0, length - waveforms.shape[-1]))


def initialise(network: nn.Module, init: Init) -> None:
    """Xavier-normal weights of convolutions and linear layers; norms stay gain 1 and bias 0, PReLU 0.25.

    With init = "public" every parameter of two or more axes is drawn so, norm gains and biases (1, C, 1) included,
    which therefore start near zero: what public code does.
    """
    drawn = (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.dim() > 1 and (init == "public" or isinstance(module, drawn)):
                nn.init.xavier_normal_(parameter)
