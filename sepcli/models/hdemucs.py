"""Hybrid Demucs: one U-Net over the spectrogram's frequencies, one over the waveform, which meet in the middle.

Défossez, "Hybrid Spectrogram and Waveform Source Separation", 2021, arXiv:2111.03600. Where the paper and its public
code (facebookresearch/demucs, package demucs 4.1.0) differ, this is the code, whose weights it loads.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.dsp.stft import istft, stft
from sepcli.dsp.wiener import wiener
from sepcli.errors import UsageError
from sepcli.models.separator import Estimate, Separator, Traits, require
from sepcli.nn.hybrid import (
    KERNEL,
    PADDING,
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
from sepcli.nn.residual import DConv, rescale_convolutions

OVERLAP = KERNEL - STRIDE
INNER = Axis(spectral=False, kernel=4, stride=2, padding=1)  # beyond the meeting of the branches, over frames


class BandedEncoder(nn.Module):
    """Copies of a spectral EncoderLayer, each with its own weights for its own band ("specific weights for different
    frequency bands"). With equal weights it is the plain layer.

    The layers' convolutions have no padding; `edges` are the bands' edges in reduced rows.
    """

    def __init__(self, layers: Sequence[EncoderLayer], edges: Sequence[int]) -> None:
        super().__init__()
        self.layers = listed(layers)
        self.bands = list(pairwise(edges))

    def reduce(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, PADDING, PADDING))
        bands = [x[:, :, STRIDE * start : STRIDE * end + OVERLAP] for start, end in self.bands]
        return torch.cat([layer.reduce(band) for layer, band in zip(self.layers, bands, strict=True)], dim=2)

    def forward(self, x: Tensor) -> Tensor:
        bands = [x[:, :, start:end] for start, end in self.bands]
        return torch.cat([layer(band) for layer, band in zip(self.layers, bands, strict=True)], dim=2)


class BandedDecoder(nn.Module):
    """Copies of a spectral DecoderLayer, each with its own weights for its own band.

    The layers neither crop nor activate; `edges` are the bands' edges in rows that come in.
    """

    def __init__(self, layers: Sequence[DecoderLayer], edges: Sequence[int], *, last: bool) -> None:
        super().__init__()
        self.layers = listed(layers)
        self.bands = list(pairwise(edges))
        self.last = last

    def mix(self, x: Tensor) -> Tensor:
        bands = [x[:, :, start:end] for start, end in self.bands]
        return torch.cat([layer.mix(band) for layer, band in zip(self.layers, bands, strict=True)], dim=2)

    def forward(self, x: Tensor, size: int) -> Tensor:
        rows: list[Tensor] = []
        for layer, (start, end) in zip(self.layers, self.bands, strict=True):
            y = layer(x[:, :, start:end], STRIDE * (end - start) + OVERLAP)
            if rows:  # neighbours add where they overlap, and only the lower one's bias counts
                assert layer.conv_tr.bias is not None
                below, y_seam, y = rows.pop(), y[:, :, :OVERLAP], y[:, :, OVERLAP:]
                rows += [below[:, :, :-OVERLAP], below[:, :, -OVERLAP:] + y_seam - layer.conv_tr.bias[:, None, None]]
            rows.append(y)
        x = torch.cat(rows, dim=2)[:, :, PADDING : PADDING + size]
        return x if self.last else F.gelu(x)


class HDemucs(Separator):
    """Hybrid Demucs. Layers and weights have the names of demucs.hdemucs.HDemucs.

    width, growth, depth: channels of the first layer, their factor from layer to layer, how many layers.
    nfft: window of the spectrogram, a power of two; the hop is a quarter. Layers reduce the bins until one is left,
        and then, with the time branch, the frames.
    cac: complex spectrograms as channels; else magnitudes, given the mixture's phase.
    wiener_iterations: of magnitudes; 0 leaves the mixture's phase, below 0 as well, by another formula.
    hybrid: with the time branch. hybrid_old: padded as the first models were, whose spectral branch lags 1.5 hops.
    rewrite: with the convolutions that a GLU follows.
    multi_freqs, multi_freqs_depth: the outermost layers have weights of their own for each band of frequencies, parted
        at these fractions.
    freq_emb, emb_scale, emb_smooth: weight of the frequency embedding (0: none), how it is stored, how it begins.
    norm_starts, norm_groups: group norm from this layer inwards.
    dconv_mode: residual branches in 0 no layer, 1 encoder, 2 decoder, 3 both. dconv_depth of them in a row, dconv_comp
        times fewer channels inside, a BLSTM from layer dconv_lstm and local attention from layer dconv_attn inwards,
        LayerScale from dconv_init.
    rescale: deviation towards which the first weights are brought (0: left alone).
    """

    tiny: ClassVar[Mapping[str, Any]] = {"width": 8, "depth": 5, "nfft": 1024}

    def __init__(
        self,
        *,
        width: int = 48,
        growth: float = 2,
        depth: int = 6,
        nfft: int = 4096,
        cac: bool = True,
        wiener_iterations: int = 0,
        hybrid: bool = True,
        hybrid_old: bool = False,
        rewrite: bool = True,
        multi_freqs: Sequence[float] | None = None,
        multi_freqs_depth: int = 2,
        freq_emb: float = 0.2,
        emb_scale: float = 10.0,
        emb_smooth: bool = True,
        norm_starts: int = 4,
        norm_groups: int = 4,
        dconv_mode: int = 1,
        dconv_depth: int = 2,
        dconv_comp: float = 4,
        dconv_attn: int = 4,
        dconv_lstm: int = 4,
        dconv_init: float = 1e-3,
        rescale: float = 0.1,
        **traits: Unpack[Traits],
    ) -> None:
        super().__init__(**traits)
        for name, value in {"width": width, "growth": growth, "depth": depth, "norm_groups": norm_groups}.items():
            require(name, value, at_least=1)
        if nfft < 32 or nfft & (nfft - 1):
            raise UsageError(f"nfft = {nfft}: must be a power of two, 32 or more")
        if dconv_mode not in (0, 1, 2, 3):
            raise UsageError(f"dconv_mode = {dconv_mode}: must be 0, 1, 2 or 3")
        if hybrid_old and not hybrid:
            raise UsageError("hybrid_old = true: only with hybrid = true")
        if wiener_iterations and cac:
            raise UsageError(f"wiener_iterations = {wiener_iterations}: must be 0 with cac = true")
        spectral = spectral_axes(nfft)
        if multi_freqs and multi_freqs_depth > (most := min(norm_starts, len(spectral) - 1)):
            raise UsageError(
                f"multi_freqs_depth = {multi_freqs_depth}: must be at most {most}, group norm and the last bins apart"
            )
        if hybrid and depth < len(spectral):
            raise UsageError(f"depth = {depth}: must be at least {len(spectral)} with nfft = {nfft} and hybrid = true")

        self.cac, self.wiener_iterations = cac, wiener_iterations
        self.hybrid, self.hybrid_old = hybrid, hybrid_old
        self.spectral_depth = len(spectral)
        self.hop = nfft // 4
        self.register_buffer("window", torch.hann_window(nfft), persistent=False)
        self.window: Tensor

        widths = [width]
        widths += [width := int(growth * width) for _ in range(1, depth)]

        branches = partial(DConv, depth=dconv_depth, compress=dconv_comp, initial=dconv_init)

        def level(index: int, branch: int) -> Level:
            """Of one layer; `branch` is its bit in dconv_mode, 0 where it is only a strided convolution."""
            lstm, attention = index >= dconv_lstm, index >= dconv_attn
            residual = branches(widths[index], lstm=lstm, attention=attention) if dconv_mode & branch else None
            return Level(widths[index], norm_groups if index >= norm_starts else 0, rewrite and branch > 0, residual)

        inputs = self.channels * (2 if cac else 1)
        outputs = inputs * len(self.sources)
        encoder: list[EncoderLayer | BandedEncoder] = []
        decoder: list[DecoderLayer | BandedDecoder] = []
        for index, axis in enumerate([*spectral, *[INNER] * depth][:depth]):
            if multi_freqs and index < multi_freqs_depth:
                copies, unpadded = range(len(multi_freqs) + 1), axis._replace(padding=0)
                reduced, given = band_edges(nfft // 2 // STRIDE**index, multi_freqs)
                going = [EncoderLayer(inputs, level(index, 1), unpadded) for _ in copies]
                coming = [DecoderLayer(level(index, 2), outputs, unpadded, reach=(0, 1), last=True) for _ in copies]
                encoder.append(BandedEncoder(going, reduced))
                decoder.append(BandedDecoder(coming, given, last=index == 0))
            else:
                encoder.append(EncoderLayer(inputs, level(index, 1), axis))
                decoder.append(DecoderLayer(level(index, 2), outputs, axis, last=index == 0))
            inputs = outputs = widths[index]

        inputs, outputs = self.channels, self.channels * len(self.sources)
        tencoder: list[EncoderLayer] = []
        tdecoder: list[DecoderLayer] = []
        for index, axis in enumerate(waveform_axes(spectral) if hybrid else []):
            if index < len(spectral) - 1:
                tencoder.append(EncoderLayer(inputs, level(index, 1), axis))
                tdecoder.append(DecoderLayer(level(index, 2), outputs, axis, last=index == 0))
            else:
                tencoder.append(EncoderLayer(inputs, level(index, 0)._replace(norm_groups=0), axis))
                tdecoder.append(DecoderLayer(level(index, 0), outputs, axis))
            inputs = outputs = widths[index]

        self.encoder, self.tencoder = listed(encoder), listed(tencoder)
        self.decoder, self.tdecoder = listed(decoder[::-1]), listed(tdecoder[::-1])  # innermost first, as published
        self.freq_emb_weight = freq_emb
        self.freq_emb = None
        if freq_emb:
            self.freq_emb = ScaledEmbedding(nfft // 2 // STRIDE, widths[0], scale=emb_scale, smooth=emb_smooth)
        if rescale:
            rescale_convolutions(self, rescale)

    def forward(self, mixture: Tensor) -> Estimate:
        """(B, C, T) -> waveforms (B, S, C, T)."""
        spectrogram = self.analyse(mixture)  # complex (B, C, F, N)
        x, mean, deviation = normalised(as_channels(spectrogram) if self.cac else spectrogram.abs())
        xt, mean_t, deviation_t = normalised(mixture)

        x, xt = self.transform(x, xt)

        x = torch.unflatten(x * deviation + mean, 1, (len(self.sources), -1))  # (B, S, 2C or C, F, N)
        waveforms = self.synthesise(self.as_complex(x, spectrogram), mixture.shape[-1])
        if self.hybrid:
            waveforms = waveforms + torch.unflatten(xt * deviation_t + mean_t, 1, (len(self.sources), -1))
        return Estimate(waveforms)

    def fast(self) -> nn.Module:
        from sepcli.models.hdemucs_fast import FastHDemucs, covers

        return FastHDemucs(self) if covers(self) else self

    def transform(self, x: Tensor, xt: Tensor) -> tuple[Tensor, Tensor]:
        """The two U-Nets (figure 1): spectral (B, ., F, N) and waveform (B, ., T), of the mixture, then of all sources.

        Without the time branch `xt` comes back as it is.
        """
        skips: list[tuple[Tensor, int]] = []  # what the decoder adds, and the size that it restores
        skips_t: list[tuple[Tensor, int]] = []
        meeting = len(self.tencoder) - 1
        for index, encode in enumerate(self.encoder):
            if index == self.spectral_depth:
                x = x.flatten(1, 2)  # (B, H, 1, N) -> (B, H, N)
            size = x.shape[2]
            x = encode.reduce(x)
            if index <= meeting:
                size_t = xt.shape[2]
                xt = self.tencoder[index].reduce(xt)
                if index == meeting:
                    x = x + xt[:, :, None]
                else:
                    xt = self.tencoder[index](xt)
                skips_t.append((xt, size_t))
            x = encode(x)
            if index == 0 and self.freq_emb is not None:
                x = x + self.freq_emb_weight * self.freq_emb().T[:, :, None]
            skips.append((x, size))

        x = torch.zeros_like(x)  # the innermost layer has nothing but its skip connection
        for index, decode in zip(reversed(range(len(self.decoder))), self.decoder, strict=True):
            skip, size = skips.pop()
            shared = decode.mix(x.reshape(skip.shape) + skip)
            x = decode(shared, size)
            if index <= meeting:
                skip_t, size_t = skips_t.pop()
                tdecode = self.tdecoder[meeting - index]
                xt = tdecode(shared[:, :, 0] if index == meeting else tdecode.mix(xt + skip_t), size_t)
        return x, xt

    def analyse(self, mixture: Tensor) -> Tensor:
        """(B, C, T) -> complex (B, C, F, N) without the highest bin: without the time branch, frames are centred."""
        if not self.hybrid:
            return stft(mixture, self.window, self.hop, normalised=True)[:, :, :-1]
        return aligned_stft(mixture, self.window, old=self.hybrid_old)

    def synthesise(self, spectrogram: Tensor, length: int) -> Tensor:
        """Complex (B, S, C, F, N) -> (B, S, C, length): the way back of `analyse`."""
        if not self.hybrid:
            return istft(F.pad(spectrogram, (0, 0, 0, 1)), self.window, self.hop, length, normalised=True)
        return aligned_istft(spectrogram, self.window, length, old=self.hybrid_old)

    def as_complex(self, x: Tensor, mixture: Tensor) -> Tensor:
        """The spectral branch's output (B, S, 2C or C, F, N) as complex (B, S, C, F, N) ("Spectrogram representation").

        Magnitudes are not rectified: a negative one turns the mixture's phase round.
        """
        if self.cac:
            return as_complex(x)
        if self.wiener_iterations < 0:
            mixture = mixture.unsqueeze(1)
            return mixture / (1e-8 + mixture.abs()) * x
        return wiener(x, mixture, iterations=self.wiener_iterations, window=300)


def spectral_axes(nfft: int) -> list[Axis]:
    """Layers that reduce nfft / 2 bins to one: by four, and the last one by the four or eight that are left."""
    axes = []
    bins = nfft // 2
    while bins > KERNEL:
        axes.append(Axis(spectral=True))
        bins //= STRIDE
    return [*axes, Axis(spectral=True, kernel=bins, stride=bins, padding=0)]


def waveform_axes(spectral: Sequence[Axis]) -> list[Axis]:
    """Layers that reduce samples to as many frames as the spectrogram has."""
    left = spectral[-1].kernel
    return [Axis(spectral=False)] * (len(spectral) - 1) + [Axis(False, left, left // 2, left // 4)]


def band_edges(bins: int, fractions: Sequence[float]) -> tuple[list[int], list[int]]:
    """Edges of the bands in the rows that an encoder's layer makes of `bins`, and in those its decoder's is given.

    The first are whole strides near the fractions, the second the fractions rounded. Raises UsageError.
    """
    rows = bins // STRIDE
    reduced, given = [0], [0]
    for fraction in fractions:
        start = STRIDE * reduced[-1] - PADDING
        reduced.append(reduced[-1] + round((round(bins * fraction) - start - KERNEL) / STRIDE + 1))
        given.append(round(rows * fraction))
    for edges in (reduced, given):
        edges.append(rows)
        if any(start >= end for start, end in pairwise(edges)):
            raise UsageError(f"multi_freqs = {list(fractions)}: must rise between 0 and 1, with bins in every band")
    return reduced, given
