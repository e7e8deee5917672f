"""Hybrid Demucs for float32 inference on a CPU: the network of hdemucs.py to rounding, at a third of its time.

The outer levels are those of nn/tiled.py, the transforms are made in blocks of frames, in the layout of their
neighbours. Further in than where the branches meet there is little data: ordinary operators do it well.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.dsp.stft import reflect
from sepcli.models.hdemucs import HDemucs
from sepcli.models.separator import Estimate
from sepcli.nn.attention import LocalState
from sepcli.nn.folded import parameters
from sepcli.nn.hybrid import PADDING, STRIDE, DecoderLayer, EncoderLayer, listed, normalised
from sepcli.nn.lstm import BLSTM
from sepcli.nn.tiled import (
    SpectralDecoder,
    SpectralEncoder,
    WaveformDecoder,
    WaveformEncoder,
    bordered,
    bordered_rows,
    branches_of,
    inside,
    tiles,
)

FRAMES = 64  # of a block of the transforms


def covers(model: HDemucs) -> bool:
    """Whether the fast form knows a network's settings: complex spectrograms, both branches, plain outer levels."""
    if not (model.cac and model.hybrid) or model.hybrid_old:
        return False
    if not all(isinstance(layer, EncoderLayer) and layer.rewrite is not None for layer in model.encoder):
        return False
    if any(not isinstance(layer, DecoderLayer) or layer.dconv is not None for layer in model.decoder):
        return False
    outer = len(model.tencoder) - 1
    return all(
        isinstance(layer.norm1, nn.Identity)
        and layer.dconv is not None
        and not any(isinstance(part, BLSTM | LocalState) for part in layer.dconv.modules())
        for layer in cast(Sequence[EncoderLayer], (*model.encoder[:outer], *model.tencoder[:outer]))
    )


class FastHDemucs(nn.Module):
    """The fast form of a network that it `covers`. Holds the weights as they are when it is made."""

    def __init__(self, model: HDemucs) -> None:
        super().__init__()
        self.model = model
        outer = len(model.tencoder) - 1
        embedding = None
        if model.freq_emb is not None:
            embedding = (model.freq_emb_weight * model.freq_emb().detach())[..., None]
        encoder, decoder = cast(Sequence[EncoderLayer], model.encoder), cast(Sequence[DecoderLayer], model.decoder)
        self.encoder = listed(
            SpectralEncoder(layer, None if index else embedding) for index, layer in enumerate(encoder[:outer])
        )
        self.tencoder = listed(WaveformEncoder(layer) for layer in model.tencoder[:outer])
        self.middle = Middle(encoder[outer:], model.tencoder[outer], decoder[:-outer], model.tdecoder[0])
        self.decoder = listed(SpectralDecoder(layer) for layer in decoder[-outer:])
        self.tdecoder = listed(WaveformDecoder(layer) for layer in model.tdecoder[-outer:])

    def forward(self, mixture: Tensor) -> Estimate:
        """(B, C, T) -> waveforms (B, S, C, T), one item after the other."""
        return Estimate(torch.stack([self.separated(item) for item in mixture]))

    def separated(self, mixture: Tensor) -> Tensor:
        """(C, T) -> (S, C, T). Levels are freed as they have been used."""
        spectra, mean, deviation = self.analysed(mixture)
        waveform, mean_t, deviation_t = normalised(mixture[None])
        bins, frames = spectra.shape[0] - 4, spectra.shape[2] - 2
        levels, levels_t, lengths = [self.encoder[0](spectra)], [bordered_rows(waveform[0].T)], [mixture.shape[-1]]
        del spectra, waveform
        for encode in self.encoder[1:]:
            levels.append(encode(levels[-1]))
        for encode_t in self.tencoder:
            levels_t.append(encode_t(levels_t[-1], lengths[-1]))
            lengths.append(-(-lengths[-1] // STRIDE))
        self.middle(inside(levels[-1]), levels_t[-1][PADDING:][: lengths[-1]])

        outputs = mixture.shape[0] * len(self.model.sources)
        levels_t[0] = mixture.new_empty(PADDING + lengths[0], outputs)
        for decode_t in self.tdecoder:
            decode_t(levels_t.pop(), lengths.pop(), levels_t[-1][PADDING:][: lengths[-1]])
        x = mixture.new_empty(bins, 2 * outputs, frames)
        for decode in self.decoder:
            decode(levels.pop(), inside(levels[-1]) if levels else x)
        waveforms = self.synthesised(x, mean, deviation, lengths[0])
        waveforms.addcmul_(levels_t[0][PADDING:].T, deviation_t[0]).add_(mean_t[0])
        return torch.unflatten(waveforms, 0, (len(self.model.sources), -1))

    def analysed(self, mixture: Tensor) -> tuple[Tensor, float, float]:
        """(C, T) -> spectra at zero mean and unit deviation, in a buffer (F + 4, 2 C, N + 2); mean and deviation."""
        size, hop = len(self.model.window), self.model.hop
        margin = hop * 3 // 2
        sounds = reflect(mixture, margin, margin + -mixture.shape[-1] % hop).unfold(-1, size, hop)  # (C, N, size)
        window = self.model.window / size**0.5
        spectra = bordered(size // 2, 2 * len(mixture), sounds.shape[1])
        x = inside(spectra)
        for sound, pair in zip(sounds, torch.split(x, 2, dim=1), strict=True):
            for block in tiles(len(sound), FRAMES):
                values = torch.view_as_real(torch.fft.rfft(sound[block] * window))[:, :-1]
                pair[..., block] = values.movedim(0, -1)  # (n, F, 2) -> (F, 2, n)
        mean = float(x.mean())
        x.sub_(mean)
        squares = sum(float(torch.linalg.vector_norm(row)) ** 2 for row in x)
        deviation = float((squares / max(1, x.numel() - 1)) ** 0.5)
        x.div_(1e-5 + deviation)
        return spectra, mean, deviation

    def synthesised(self, x: Tensor, mean: float, deviation: float, length: int) -> Tensor:
        """The spectral branch's output (F, S * 2 C, N) -> (S * C, length)."""
        size, hop, frames = len(self.model.window), self.model.hop, x.shape[-1]
        window = self.model.window * (size**0.5 / 1.5)  # 1.5: the sum of the squared windows wherever four overlap
        first = size // 2 + hop * 3 // 2
        waveforms = x.new_empty(x.shape[1] // 2, length)
        for waveform, pair in zip(waveforms, torch.split(x, 2, dim=1), strict=True):
            sound = x.new_zeros(frames + 7, hop)  # two frames of zeros at either end, and the tail of the last one
            for block in tiles(frames, FRAMES):
                values = x.new_zeros(block.stop - block.start, size // 2 + 1, 2)
                values[:, :-1] = pair[..., block].movedim(-1, 0)
                values[:, :-1].mul_(deviation).add_(mean)
                parts = torch.fft.irfft(torch.view_as_complex(values), n=size).mul_(window)
                for part in range(4):
                    sound[2 + part + block.start : 2 + part + block.stop] += parts[:, part * hop : (part + 1) * hop]
            waveform.copy_(sound.flatten()[first : first + length])
        return waveforms


class Middle(nn.Module):
    """The levels from the meeting of the branches inwards, and back: both branches' last outer levels, spectral
    (F, H, N) and waveform (T, H), get the decoders' outputs added.
    """

    def __init__(
        self,
        encoder: Sequence[EncoderLayer],
        tencoder: EncoderLayer,
        decoder: Sequence[DecoderLayer],
        tdecoder: DecoderLayer,
    ) -> None:
        super().__init__()
        self.encoder, self.tencoder, self.decoder, self.tdecoder = encoder, tencoder, decoder, tdecoder
        self.branches = [branches_of(layer) for layer in encoder]

    def forward(self, x: Tensor, xt: Tensor) -> None:
        skips: list[Tensor] = []
        sizes: list[int] = []
        h = self.encoder[0].reduce(x.transpose(0, 1)[None])[:, :, 0] + self.tencoder.reduce(xt.T[None])  # (1, H, N)
        for index, (encode, branches) in enumerate(zip(self.encoder, self.branches, strict=True)):
            if index:
                sizes.append(h.shape[-1])
                h = encode.reduce(h)
            h = F.gelu(encode.norm1(h))
            for branch in branches:
                branch(h)
            h = gated(F.conv1d(h, *narrow(encode.rewrite)), encode.norm2)
            skips.append(h)
        h = torch.zeros_like(h)  # the innermost layer has nothing but its skip connection
        for decode in self.decoder:
            shared = gated(F.conv1d(h + skips.pop(), *narrow(decode.rewrite), padding=1), decode.norm1)
            if skips:
                h = decode(shared, sizes.pop())
        x.add_(self.decoder[-1](shared[:, :, None], len(x))[0].transpose(0, 1))
        xt.add_(self.tdecoder(shared, len(xt))[0].T)


def gated(x: Tensor, norm: nn.Module | None) -> Tensor:
    assert norm is not None
    return F.glu(norm(x), dim=1)


def narrow(convolution: nn.Module | None) -> tuple[Tensor, Tensor]:
    """A convolution's weight and bias over frames, where there is one bin: the middle row alone sees it."""
    weight, bias = parameters(convolution)
    return weight[:, :, weight.shape[2] // 2] if weight.dim() == 4 else weight, bias
