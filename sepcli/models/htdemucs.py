"""Hybrid Transformer Demucs: the two U-Nets of Hybrid Demucs, joined in the middle by attention across both.

Rouard, Massa, Défossez, "Hybrid Transformers for Music Source Separation", 2022, arXiv:2211.08553. Where the paper and
its public code (facebookresearch/demucs, package demucs 4.1.0) differ, this is the code, whose weights it loads.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.errors import UsageError
from sepcli.models.separator import Estimate, Separator, Traits, require
from sepcli.nn.hybrid import (
    KERNEL,
    STRIDE,
    Axis,
    DecoderLayer,
    EncoderLayer,
    Level,
    ScaledEmbedding,
    aligned_istft,
    aligned_stft,
    as_channels,
    as_complex,
    listed,
    normalised,
)
from sepcli.nn.residual import DConv, LayerScale, rescale_convolutions

PERIOD = 10_000.0  # of the slowest sine that tells positions apart


class Attention(nn.Module):
    """Attention of queries (B, M, H) to keys (B, N, H). Weights lie as torch.nn.MultiheadAttention's, which would
    hold all M × N weights at once when it looks at itself.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        width = queries.shape[-1]
        query = F.linear(queries, self.in_proj_weight[:width], self.in_proj_bias[:width])
        key, value = F.linear(keys, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        query, key, value = (
            torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value)
        )  # (B, heads, M or N, H / heads)
        out: Tensor = self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return out


class TransformerLayer(nn.Module):
    """Attention and a perceptron, each normed before and scaled after, then one norm over all tokens (section 2.2).

    In `layers` of even number tokens look at their own branch, in odd ones at the other (`cross`).
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, *, cross: bool) -> None:
        super().__init__()
        self.cross = cross
        if cross:
            self.cross_attn = Attention(width, heads)
        else:
            self.self_attn = Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width) if cross else None
        self.norm_out = nn.GroupNorm(1, width)
        self.gamma_1, self.gamma_2 = LayerScale(width, 1e-4), LayerScale(width, 1e-4)
        self.dropout = dropout

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """(B, M, H), and the other branch's (B, N, H) -> (B, M, H)"""
        if self.norm3 is not None:
            attended, norm = self.cross_attn(self.norm1(x), self.norm2(other)), self.norm3
        else:
            normed = self.norm1(x)
            attended, norm = self.self_attn(normed, normed), self.norm2
        x = x + self.gamma_1.scale * F.dropout(attended, self.dropout, self.training)
        hidden = F.dropout(F.gelu(self.linear1(norm(x))), self.dropout, self.training)
        x = x + self.gamma_2.scale * F.dropout(self.linear2(hidden), self.dropout, self.training)
        out: Tensor = self.norm_out(x.transpose(1, 2))
        return out.transpose(1, 2)


class CrossTransformer(nn.Module):
    """Layers for each branch, self-attention and cross-attention by turns (figure 1b).

    A layer hears what the other branch's layer before it said.
    """

    def __init__(self, width: int, *, layers: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm_in, self.norm_in_t = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layers, self.layers_t = (
            listed(TransformerLayer(width, heads, hidden, dropout, cross=index % 2 == 1) for index in range(layers))
            for _ in range(2)
        )

    def forward(self, x: Tensor, xt: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, F, N) and (B, H, T) -> the same shapes"""
        bins = x.shape[2]
        x = self.norm_in(x.movedim(1, 3).transpose(1, 2))  # (B, N, F, H)
        xt = self.norm_in_t(xt.transpose(1, 2))  # (B, T, H)
        x = (x + plane_positions(x)).flatten(1, 2)
        xt = xt + line_positions(xt)
        for layer, layer_t in zip(self.layers, self.layers_t, strict=True):
            x, xt = layer(x, xt), layer_t(xt, x)
        return torch.unflatten(x, 1, (-1, bins)).permute(0, 3, 2, 1), xt.transpose(1, 2)


class HTDemucs(Separator):
    """Hybrid Transformer Demucs. Layers and weights have the names of demucs.htdemucs.HTDemucs.

    trained: seconds that the network was trained on, the longest that it may be given; less is filled up with zeros.
    width, depth: channels of the first layer, each next one having twice as many, and how many layers.
    nfft: window of the spectrogram; the hop is a quarter.
    bottom_channels: width of the transformer (0: the innermost layer's). t_layers of it in each branch, with t_heads,
        t_hidden_scale times wider inside, t_dropout in training.
    freq_emb, emb_scale, emb_smooth; dconv_mode, dconv_depth, dconv_comp, dconv_init; rescale: as in Hybrid Demucs.
    """

    tiny: ClassVar[Mapping[str, Any]] = {
        "trained": 1.5,
        "width": 8,
        "depth": 3,
        "nfft": 1024,
        "dconv_comp": 4,
        "bottom_channels": 16,
        "t_layers": 2,
        "t_heads": 2,
    }

    def __init__(
        self,
        *,
        trained: float = 7.8,
        width: int = 48,
        depth: int = 4,
        nfft: int = 4096,
        bottom_channels: int = 0,
        t_layers: int = 5,
        t_heads: int = 8,
        t_hidden_scale: float = 4.0,
        t_dropout: float = 0.0,
        freq_emb: float = 0.2,
        emb_scale: float = 10.0,
        emb_smooth: bool = True,
        dconv_mode: int = 3,
        dconv_depth: int = 2,
        dconv_comp: float = 8,
        dconv_init: float = 1e-3,
        rescale: float = 0.1,
        **traits: Unpack[Traits],
    ) -> None:
        super().__init__(**traits)
        for name, value in {"width": width, "depth": depth, "t_layers": t_layers, "t_heads": t_heads}.items():
            require(name, value, at_least=1)
        if dconv_mode not in (0, 1, 2, 3):
            raise UsageError(f"dconv_mode = {dconv_mode}: must be 0, 1, 2 or 3")
        if nfft & (nfft - 1) or nfft // 2 <= KERNEL * STRIDE ** (depth - 1):
            least = 4 * KERNEL * STRIDE ** (depth - 1)
            raise UsageError(f"nfft = {nfft}: must be a power of two, {least} or more with {depth} layers")
        if self.segment > trained:
            what = f"segment = {self.segment:g}: must be at most {trained:g} s, on which the network was trained"
            raise UsageError(what, f"give --segment {trained:g} or less")
        inner = bottom_channels or width * 2 ** (depth - 1)
        if inner % 4 or inner % t_heads:
            raise UsageError(f"{inner} channels of the transformer: must be a multiple of 4 and of t_heads = {t_heads}")

        self.trained = trained
        self.register_buffer("window", torch.hann_window(nfft), persistent=False)
        self.window: Tensor
        self.freq_emb_weight = freq_emb
        self.freq_emb = None
        if freq_emb:
            self.freq_emb = ScaledEmbedding(nfft // 2 // STRIDE, width, scale=emb_scale, smooth=emb_smooth)

        def level(index: int, branch: int) -> Level:
            """Of one layer; `branch` is its bit in dconv_mode."""
            channels = width * 2**index
            residual = None
            if dconv_mode & branch:
                residual = DConv(channels, depth=dconv_depth, compress=dconv_comp, initial=dconv_init)
            return Level(channels, 0, True, residual)

        def branch(channels: int, axis: Axis) -> tuple[Sequence[EncoderLayer], Sequence[DecoderLayer]]:
            """Encoder from `channels`, decoder to as many for each source, innermost layer first, as published."""
            inputs = [channels, *(width * 2**index for index in range(depth))]
            outputs = [channels * len(self.sources), *inputs[1:]]
            encoder = [EncoderLayer(inputs[index], level(index, 1), axis) for index in range(depth)]
            decoder = [DecoderLayer(level(i, 2), outputs[i], axis, last=i == 0) for i in reversed(range(depth))]
            return listed(encoder), listed(decoder)

        self.encoder, self.decoder = branch(2 * self.channels, Axis(spectral=True))
        self.tencoder, self.tdecoder = branch(self.channels, Axis(spectral=False))
        if rescale:
            rescale_convolutions(self, rescale)

        outer = width * 2 ** (depth - 1)
        self.channel_upsampler, self.channel_downsampler = resized(outer, bottom_channels)
        self.channel_upsampler_t, self.channel_downsampler_t = resized(outer, bottom_channels)
        self.crosstransformer = CrossTransformer(
            inner, layers=t_layers, heads=t_heads, hidden=int(t_hidden_scale * inner), dropout=t_dropout
        )

    def margins(self, length: int) -> tuple[int, int]:
        """A short last piece is seen with the sound before it, in a window as long as the others."""
        missing = max(0, self.piece - length)
        return missing // 2, missing - missing // 2

    def forward(self, mixture: Tensor) -> Estimate:
        """(B, C, T) -> waveforms (B, S, C, T). In training any length is taken as it is; else raises UsageError for
        more than `trained` seconds.
        """
        length = mixture.shape[-1]
        if not self.training:
            mixture = self.filled(mixture)
        x, mean, deviation = normalised(as_channels(aligned_stft(mixture, self.window)))  # (B, 2C, F, N)
        xt, mean_t, deviation_t = normalised(mixture)

        x, xt = self.transform(x, xt)

        x = torch.unflatten(x * deviation + mean, 1, (len(self.sources), -1))  # (B, S, 2C, F, N)
        xt = torch.unflatten(xt * deviation_t + mean_t, 1, (len(self.sources), -1))
        waveforms = aligned_istft(as_complex(x), self.window, mixture.shape[-1]) + xt
        return Estimate(waveforms[..., :length])

    def fast(self) -> nn.Module:
        from sepcli.models.htdemucs_fast import FastHTDemucs

        return FastHTDemucs(self)

    def filled(self, mixture: Tensor) -> Tensor:
        """A mixture (B, C, T) with zeros behind it, as long as in training. Raises UsageError where it is longer."""
        length, longest = mixture.shape[-1], int(self.trained * self.sample_rate)
        if length > longest:
            raise UsageError(f"{length} samples at once: must be at most {longest}, on which HTDemucs was trained")
        return F.pad(mixture, (0, longest - length))

    def transform(self, x: Tensor, xt: Tensor) -> tuple[Tensor, Tensor]:
        """The two U-Nets: spectral (B, ., F, N) and waveform (B, ., T), of the mixture, then of all sources."""
        skips: list[tuple[Tensor, int]] = []  # what the decoder adds, and the size that it restores
        skips_t: list[tuple[Tensor, int]] = []
        for index, (encode, tencode) in enumerate(zip(self.encoder, self.tencoder, strict=True)):
            size, size_t = x.shape[2], xt.shape[2]
            xt = tencode(tencode.reduce(xt))
            x = encode(encode.reduce(x))
            if index == 0 and self.freq_emb is not None:
                x = x + self.freq_emb_weight * self.freq_emb().T[:, :, None]
            skips.append((x, size))
            skips_t.append((xt, size_t))

        x, xt = self.between(x, xt)
        for decode, tdecode in zip(self.decoder, self.tdecoder, strict=True):
            (skip, size), (skip_t, size_t) = skips.pop(), skips_t.pop()
            x = decode(decode.mix(x + skip), size)
            xt = tdecode(tdecode.mix(xt + skip_t), size_t)
        return x, xt

    def between(self, x: Tensor, xt: Tensor) -> tuple[Tensor, Tensor]:
        """The transformer: (B, H, F, N) and (B, H, T) -> the same shapes."""
        bins = x.shape[2]
        x = torch.unflatten(self.channel_upsampler(x.flatten(2)), 2, (bins, -1))
        x, xt = self.crosstransformer(x, self.channel_upsampler_t(xt))
        x = torch.unflatten(self.channel_downsampler(x.flatten(2)), 2, (bins, -1))
        return x, self.channel_downsampler_t(xt)


def resized(outer: int, inner: int) -> tuple[nn.Module, nn.Module]:
    """Convolutions from the U-Net's width to the transformer's and back; none with `inner` 0."""
    if not inner:
        return nn.Identity(), nn.Identity()
    return nn.Conv1d(outer, inner, 1), nn.Conv1d(inner, outer, 1)


def line_positions(x: Tensor) -> Tensor:
    """Of tokens (B, T, H): cosines, then sines, of their place in time, (T, H)."""
    length, half = x.shape[1], x.shape[2] // 2
    steps = torch.arange(half, device=x.device) / (half - 1)
    phase = torch.arange(length, device=x.device)[:, None] / PERIOD**steps
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def plane_positions(x: Tensor) -> Tensor:
    """Of tokens (B, N, F, H): sines and cosines by turns, of the frame in the first half of the channels and of the
    bin in the second, (N, F, H).
    """
    frames, bins, half = x.shape[1], x.shape[2], x.shape[3] // 2
    rates = torch.exp(torch.arange(0, half, 2, device=x.device) * (-math.log(PERIOD) / half))

    def turns(count: int) -> Tensor:
        """(count, H / 2)"""
        phase = torch.arange(count, device=x.device)[:, None] * rates
        return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1)

    return torch.cat([turns(frames)[:, None].expand(-1, bins, -1), turns(bins).expand(frames, -1, -1)], dim=-1)
