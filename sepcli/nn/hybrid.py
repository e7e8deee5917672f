"""Layers of Hybrid Demucs (Défossez 2021): U-Nets over the spectrogram's frequencies and over the waveform, in step.

Names are those of the public code (facebookresearch/demucs, package demucs 4.1.0).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.dsp.stft import istft, reflect, stft
from sepcli.nn.norm import group_norm
from sepcli.nn.residual import DConv

KERNEL, STRIDE, PADDING = 8, 4, 2


class Axis(NamedTuple):
    """What a layer's strided convolution reduces: the bins of (B, H, F, N), or the samples of (B, H, T)."""

    spectral: bool
    kernel: int = KERNEL
    stride: int = STRIDE
    padding: int = PADDING


class Level(NamedTuple):
    """What an encoder's layer and its decoder's have in common: what lies between the strided convolutions."""

    width: int
    norm_groups: int
    rewrite: bool
    residual: DConv | None


class ScaledEmbedding(nn.Module):
    """A vector for each frequency bin, stored smaller than it is used: so it learns faster.

    "Frequency-wise convolutions". `smooth` begins as a random walk over the bins, each step at unit deviation.
    """

    def __init__(self, count: int, width: int, *, scale: float, smooth: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count, width)
        self.scale = scale
        weight = self.embedding.weight.detach()
        if smooth and not weight.is_meta:  # a sum along nothing would have torch import its compiler
            weight.copy_(weight.cumsum(0) / torch.arange(1.0, count + 1, device=weight.device).sqrt()[:, None])
        weight.div_(scale)

    def forward(self) -> Tensor:
        """(count, width)."""
        return self.embedding.weight * self.scale


class EncoderLayer(nn.Module):
    """Strided convolution, GELU, residual branches, and a 1×1 convolution with GLU (figure 1).

    In two parts, `reduce` and `forward`: where the branches meet, the time branch has the first part only, and its
    output is added between the spectral branch's two.
    """

    def __init__(self, inputs: int, level: Level, axis: Axis) -> None:
        super().__init__()
        width = level.width
        self.axis = axis
        self.conv: nn.Module = (
            nn.Conv2d(inputs, width, (axis.kernel, 1), (axis.stride, 1), (axis.padding, 0))
            if axis.spectral
            else nn.Conv1d(inputs, width, axis.kernel, axis.stride, axis.padding)
        )
        self.norm1 = group_norm(level.norm_groups, width)
        self.dconv = level.residual
        self.rewrite = stepwise(width, axis, (0, 0)) if level.rewrite else None
        self.norm2 = group_norm(level.norm_groups, 2 * width) if level.rewrite else None

    def reduce(self, x: Tensor) -> Tensor:
        """Spectral: (B, H, F, N) -> (B, H', F / stride, N). Else (B, H, T) -> (B, H', ceil(T / stride))."""
        if not self.axis.spectral:
            x = F.pad(x, (0, -x.shape[-1] % self.axis.stride))
        out: Tensor = self.conv(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return gated(along_time(F.gelu(self.norm1(x)), self.dconv), self.rewrite, self.norm2)


class DecoderLayer(nn.Module):
    """A convolution with GLU, then a transposed convolution: the way back of an EncoderLayer (figure 1).

    In two parts, `mix` and `forward`: the time branch leaves the spectral one between them.
    `reach`: how many bins and frames the first convolution sees to either side. `last`: no activation.
    """

    def __init__(
        self, level: Level, outputs: int, axis: Axis, *, reach: tuple[int, int] = (1, 1), last: bool = False
    ) -> None:
        super().__init__()
        width = level.width
        self.axis = axis
        self.last = last
        self.conv_tr = (
            nn.ConvTranspose2d(width, outputs, (axis.kernel, 1), (axis.stride, 1))
            if axis.spectral
            else nn.ConvTranspose1d(width, outputs, axis.kernel, axis.stride)
        )
        self.norm2 = group_norm(level.norm_groups, outputs)
        self.rewrite = stepwise(width, axis, reach) if level.rewrite else None
        self.norm1 = group_norm(level.norm_groups, 2 * width) if level.rewrite else None
        self.dconv = level.residual

    def mix(self, x: Tensor) -> Tensor:
        """Same shape. The skip connection has been added before."""
        return along_time(gated(x, self.rewrite, self.norm1), self.dconv)

    def forward(self, x: Tensor, size: int) -> Tensor:
        """(B, H, F, N) or (B, H, T) -> `size` bins or samples, as many as the encoder's layer was given."""
        x = self.norm2(self.conv_tr(x))[:, :, self.axis.padding : self.axis.padding + size]
        return x if self.last else F.gelu(x)


def aligned_stft(mixture: Tensor, window: Tensor, *, old: bool = False) -> Tensor:
    """(B, C, T) -> complex (B, C, F, N) without the highest bin, N = ceil(T / hop), the hop a quarter of the window.

    Frames lie as a convolution's of this window and hop ("Padding for easy alignment"). Beyond the ends the sound is
    mirrored, or with `old` silent, as for the first models.
    """
    hop = len(window) // 4
    margin = hop * 3 // 2
    ends = margin, margin + -mixture.shape[-1] % hop
    padded = F.pad(mixture, ends) if old else reflect(mixture, *ends)
    return stft(padded, window, hop, centre=False, normalised=True)[:, :, :-1]


def aligned_istft(spectrogram: Tensor, window: Tensor, length: int, *, old: bool = False) -> Tensor:
    """Complex (B, S, C, F, N) -> (B, S, C, length).

    Frames of zeros stand for those beyond the ends: there it is not an exact inverse, and with `old` it comes out a
    margin late. The published networks have learnt both.
    """
    hop = len(window) // 4
    margin = 0 if old else hop * 3 // 2
    whole = spectrogram.shape[-1] * hop + 2 * margin
    padded = F.pad(spectrogram, (2, 2, 0, 1))
    return istft(padded, window, hop, whole, normalised=True)[..., margin : margin + length]


def as_channels(spectrogram: Tensor) -> Tensor:
    """Complex (B, C, F, N) -> (B, 2C, F, N), each channel's real part before its imaginary one."""
    return torch.view_as_real(spectrogram).movedim(-1, 2).flatten(1, 2)


def as_complex(x: Tensor) -> Tensor:
    """(B, S, 2C, F, N) -> complex (B, S, C, F, N), the inverse of `as_channels`."""
    return torch.view_as_complex(torch.unflatten(x, 2, (-1, 2)).movedim(3, -1).contiguous())


def normalised(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each item of a batch at zero mean and unit deviation; with the mean and the deviation, to undo it."""
    dims = tuple(range(1, x.dim()))
    mean = x.mean(dim=dims, keepdim=True)
    deviation = x.std(dim=dims, keepdim=True, correction=min(1, x[0].numel() - 1))
    return (x - mean) / (1e-5 + deviation), mean, deviation


def gated(x: Tensor, convolution: nn.Module | None, norm: nn.Module | None) -> Tensor:
    """Convolution to twice the channels, norm, and GLU; x itself without a convolution."""
    if convolution is None or norm is None:
        return x
    return F.glu(norm(convolution(x)), dim=1)


def along_time(x: Tensor, residual: nn.Module | None) -> Tensor:
    """Residual branches over time, each frequency bin by itself."""
    if residual is None:
        return x
    if x.dim() == 3:
        out: Tensor = residual(x)
        return out
    rows = x.movedim(2, 1).flatten(0, 1)  # (B, H, F, N) -> (B * F, H, N)
    return torch.unflatten(residual(rows), 0, (-1, x.shape[2])).movedim(1, 2)


def stepwise(width: int, axis: Axis, reach: tuple[int, int]) -> nn.Module:
    """A convolution to twice the channels that sees `reach` bins and frames, or over samples the latter."""
    if axis.spectral:
        return nn.Conv2d(width, 2 * width, (2 * reach[0] + 1, 2 * reach[1] + 1), padding=reach)
    return nn.Conv1d(width, 2 * width, 2 * reach[1] + 1, padding=reach[1])


Layer = TypeVar("Layer")


def listed(layers: Iterable[Layer]) -> Sequence[Layer]:
    """Layers as torch keeps them and with the type that they have."""
    return cast(Sequence[Layer], nn.ModuleList(cast(Iterable[nn.Module], layers)))
