"""BS-RoFormer and Mel-Band RoFormer: transformers along time and across bands by turns, which mask a spectrogram.

Lu et al., "Music Source Separation with Band-Split RoPE Transformer", 2023, arXiv:2309.02612; Wang et al., "Mel-Band
RoFormer for Music Source Separation", 2023, arXiv:2310.01809. Where the papers and the public code of the published
weights (ZFTurbo/Music-Source-Separation-Training, after lucidrains/BS-RoFormer) differ, this is that code. The bands of
bins are data, roformer.json: the Mel bands are where librosa's 60 triangles are above zero, and the first and the last
bin, which rounding decides elsewhere.
"""

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.dsp.stft import istft, stft
from sepcli.errors import UsageError
from sepcli.models.separator import Estimate, Separator, Traits, require

N_FFT = 2048
"""Samples of a window, of all published networks."""

Bands = Sequence[tuple[int, int]]


@functools.cache
def tables() -> Mapping[str, Bands]:
    """The shipped layouts by name: first bin and number of bins of each band."""
    text = Path(__file__).with_name("roformer.json").read_text(encoding="utf-8")
    return {name: [(start, count) for start, count in rows] for name, rows in json.loads(text).items()}


class RMSNorm(nn.Module):
    """Vectors (..., H) brought to length sqrt(H), then one gain a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        gain: Tensor = self.gamma * self.gamma.shape[0] ** 0.5
        return F.normalize(x, dim=-1) * gain


class Rotary(nn.Module):
    """Positions as turns: neighbouring channels are the two parts of a number that turns at a speed of its own.

    The speeds are not trained but stored, and files of 16 bit hold them rounded: the networks are used with those.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.freqs = nn.Parameter(10_000.0 ** -(torch.arange(0.0, width, 2) / width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, heads, N, H) -> the same shape"""
        angle = torch.arange(x.shape[-2], device=x.device)[:, None] * self.freqs  # (N, H / 2)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision has no complex numbers
        numbers = torch.view_as_complex(torch.unflatten(wide, -1, (-1, 2)))
        turned = torch.view_as_real(numbers * torch.complex(angle.cos(), angle.sin()))
        return turned.flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Attention to the same sequence (B, N, D), each head behind a gate that its own place opens."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float, rotary: Rotary) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.rotary_embed = rotary
        self.norm = RMSNorm(width)
        self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.to_gates = nn.Linear(width, heads)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, width, bias=False), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        query, key, value = torch.unflatten(self.to_qkv(x), -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.rotary_embed(query), self.rotary_embed(key)  # (B, heads, N, H)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout).transpose(1, 2)
        out: Tensor = self.to_out((attended * self.to_gates(x).sigmoid().unsqueeze(-1)).flatten(2))
        return out


class FeedForward(nn.Module):
    """A perceptron four times wider inside: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            RMSNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Transformer(nn.Module):
    """One layer of attention and perceptron, each added to what it was given: (B, N, D) -> (B, N, D)."""

    def __init__(self, attention: Attention, perceptron: FeedForward, norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleList([attention, perceptron])])  # the published names count a depth of 1
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        attention, perceptron = cast(nn.ModuleList, self.layers[0])
        x = x + attention(x)
        x = x + perceptron(x)
        out: Tensor = self.norm(x)
        return out


class BandSplit(nn.Module):
    """A norm and a linear layer for each band: what lies in its bins, as one vector of the network's width."""

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.to_features = nn.ModuleList(nn.Sequential(RMSNorm(size), nn.Linear(size, width)) for size in sizes)

    def forward(self, bands: Sequence[Tensor]) -> Tensor:
        """K times (B, N, size) -> (B, K, N, D)"""
        return torch.stack([layer(band) for layer, band in zip(self.to_features, bands, strict=True)], dim=1)


class MaskEstimator(nn.Module):
    """A perceptron with GLU for each band: the real and imaginary parts of one source's mask, in the order of bins."""

    def __init__(self, sizes: Sequence[int], width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.to_freqs = nn.ModuleList(
            nn.Sequential(perceptron([width, *[hidden] * (depth - 1), 2 * size]), nn.GLU(dim=-1)) for size in sizes
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, N, D) -> (B, N, sum of sizes)"""
        return torch.cat([layer(band) for layer, band in zip(self.to_freqs, x.unbind(1), strict=True)], dim=-1)


class RoFormer(Separator):
    """BS-RoFormer or Mel-Band RoFormer. Layers and weights have the names of the public classes.

    bands: "mel" (60, overlapping; a norm after every transformer: Mel-Band RoFormer), or "bs" (62, side by side; with
        one norm after all: BS-RoFormer), or as BS-RoFormer with so many bins in each band.
    dim, depth: width, and pairs of transformers along time and across bands. heads of head_width each.
    mask_depth: linear layers of a mask's perceptron, expansion times wider inside.
    hop: of the spectrogram. zero_dc: nothing is let through at 0 Hz.
    dropout: in training, in attention and perceptrons.
    """

    fade, edge = "tenth", "reflect"
    overlaps: ClassVar[Mapping[str, float]] = {"fast": 0.1, "normal": 0.5, "best": 0.75}
    quality: ClassVar[Mapping[str, str]] = {"cpu": "fast"}
    tiny: ClassVar[Mapping[str, Any]] = {"dim": 16, "depth": 1, "heads": 2, "head_width": 8, "expansion": 1}

    def __init__(
        self,
        *,
        bands: Literal["mel", "bs"] | Sequence[int] = "mel",
        dim: int = 384,
        depth: int = 6,
        heads: int = 8,
        head_width: int = 64,
        mask_depth: int = 3,
        expansion: int = 4,
        hop: int = 441,
        zero_dc: bool = False,
        dropout: float = 0.0,
        **traits: Unpack[Traits],
    ) -> None:
        super().__init__(**traits)
        sizes = {"dim": dim, "depth": depth, "heads": heads, "mask_depth": mask_depth, "expansion": expansion}
        for name, value in {**sizes, "hop": hop}.items():
            require(name, value, at_least=1)
        if head_width < 2 or head_width % 2:
            raise UsageError(f"head_width = {head_width}: must be even, since positions turn pairs of channels")
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout = {dropout}: must be at least 0 and below 1")
        if hop > N_FFT // 2:
            raise UsageError(f"hop = {hop}: must be at most {N_FFT // 2}, half a window")
        self.hop = hop
        self.bands = laid_out(bands)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.register_buffer("share", shares(self.bands, zero_dc), persistent=False)
        places = torch.cat([torch.arange(start, start + count) for start, count in self.bands])
        self.register_buffer("places", places, persistent=False)
        self.window: Tensor
        self.share: Tensor
        self.places: Tensor

        final = bands != "mel"

        def transformer(rotary: Rotary) -> Transformer:
            attention = Attention(dim, heads, head_width, dropout, rotary)
            return Transformer(attention, FeedForward(dim, dropout), nn.Identity() if final else RMSNorm(dim))

        along, across = Rotary(head_width), Rotary(head_width)  # shared by all layers
        self.layers = nn.ModuleList(nn.ModuleList([transformer(along), transformer(across)]) for _ in range(depth))
        self.final_norm = RMSNorm(dim) if final else nn.Identity()
        features = [2 * self.channels * count for _, count in self.bands]
        self.band_split = BandSplit(features, dim)
        self.mask_estimators = nn.ModuleList(
            MaskEstimator(features, dim, expansion * dim, mask_depth) for _ in self.sources
        )

    def margins(self, length: int) -> tuple[int, int]:
        """A short last piece is seen at full length, as the public runner gives it."""
        return 0, max(0, self.piece - length)

    def forward(self, mixture: Tensor) -> Estimate:
        """(B, C, T) -> waveforms (B, S, C, T)"""
        spectrogram = stft(mixture, self.window, self.hop)  # complex (B, C, F, N)
        parts = torch.view_as_real(spectrogram).permute(0, 3, 2, 1, 4).flatten(3)  # (B, N, F, 2C)
        x = self.band_split([parts[:, :, start : start + count].flatten(2) for start, count in self.bands])
        for along, across in cast("Sequence[tuple[Transformer, Transformer]]", self.layers):
            x = torch.unflatten(along(x.flatten(0, 1)), 0, x.shape[:2])  # (B, K, N, D)
            x = x.transpose(1, 2)
            x = torch.unflatten(across(x.flatten(0, 1)), 0, x.shape[:2]).transpose(1, 2)
        x = self.final_norm(x)
        length = mixture.shape[-1]
        waveforms = [
            istft(spectrogram * self.mask(estimator(x)), self.window, self.hop, length)
            for estimator in self.mask_estimators
        ]
        return Estimate(torch.stack(waveforms, dim=1))

    def mask(self, bands: Tensor) -> Tensor:
        """One source's masks (B, N, sum of sizes) as one, complex (B, C, F, N): where bands meet, their mean."""
        rows = torch.unflatten(bands.float(), 2, (-1, 2 * self.channels))  # (B, N, bins of all bands, 2C)
        summed = rows.new_zeros(*rows.shape[:2], len(self.share), rows.shape[-1]).index_add(2, self.places, rows)
        parts = torch.unflatten(summed * self.share[:, None], 3, (self.channels, 2))  # (B, N, F, C, 2)
        return torch.view_as_complex(parts).permute(0, 3, 2, 1)


def laid_out(bands: str | Sequence[int]) -> Bands:
    """First bin and number of bins of each band. Raises UsageError where they are not those of a window."""
    if isinstance(bands, str):
        return tables()[bands]
    if min(bands, default=0) < 1 or sum(bands) != N_FFT // 2 + 1:
        raise UsageError(f"bands = {str(list(bands))[:40]}: must have {N_FFT // 2 + 1} bins in all, none of them empty")
    return list(zip(itertools.accumulate(bands, initial=0), bands, strict=False))


def shares(bands: Bands, zero_dc: bool) -> Tensor:
    """What a band counts in each bin (F): its part of the bands that meet there; nothing at 0 Hz if so wanted."""
    counts = [sum(start <= index < start + count for start, count in bands) for index in range(sum(bands[-1]))]
    return torch.tensor([0.0 if zero_dc and index == 0 else 1 / count for index, count in enumerate(counts)])


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers from width to width with tanh between."""
    layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers[:-1])
