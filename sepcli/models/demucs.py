"""Demucs: a U-Net over the waveform.

Défossez et al., "Music Source Separation in the Waveform Domain", 2019, arXiv:1911.13254: convolutions, GLUs, and a
BLSTM in the middle. Improved in Défossez, "Hybrid Spectrogram and Waveform Source Separation", 2021, arXiv:2111.03600:
residual branches with BLSTM and local attention in the encoder. Where the papers and their public code
(facebookresearch/demucs, its versions 1, 2 and 3) differ, this is the code, whose weights it loads.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.dsp.sinc import resample, sinc_kernel
from sepcli.errors import UsageError
from sepcli.models.separator import Estimate, Separator, Traits, require
from sepcli.nn.lstm import BLSTM
from sepcli.nn.norm import group_norm
from sepcli.nn.residual import DConv, rescale_convolutions

KERNEL, STRIDE = 8, 4
CONTEXT = 3  # taps of the decoder's first convolution


class Demucs(Separator):
    """Demucs. The defaults are the improved one's; layers have the names of demucs.demucs.Demucs.

    width, growth, depth: channels of the first layer, their factor from layer to layer, how many layers.
    rewrite: with the convolutions that a GLU follows.
    gelu: the strided convolutions' activation; else ReLU.
    lstm_layers: of a BLSTM between encoder and decoder (0: none).
    context_padding: the decoder's convolutions see zeros beyond their input; else they shorten it, so that the network
        wants more sound around what it separates.
    norm_starts, norm_groups: group norm from this layer inwards.
    dconv_mode: residual branches in 0 no layer, 1 encoder, 2 decoder, 3 both. dconv_depth of them in a row, dconv_comp
        times fewer channels inside, a BLSTM from layer dconv_lstm and local attention from layer dconv_attn inwards,
        LayerScale from dconv_init.
    normalise: what comes in is brought to zero mean and unit deviation of its channels' mean, and back at the end.
    oversample: the network works at twice the sample rate.
    rescale: deviation towards which the first weights are brought (0: left alone).
    """

    tiny: ClassVar[Mapping[str, Any]] = {"width": 8, "depth": 5}

    def __init__(
        self,
        *,
        width: int = 64,
        growth: float = 2,
        depth: int = 6,
        rewrite: bool = True,
        gelu: bool = True,
        lstm_layers: int = 0,
        context_padding: bool = True,
        norm_starts: int = 4,
        norm_groups: int = 4,
        dconv_mode: int = 1,
        dconv_depth: int = 2,
        dconv_comp: float = 4,
        dconv_attn: int = 4,
        dconv_lstm: int = 4,
        dconv_init: float = 1e-4,
        normalise: bool = True,
        oversample: bool = True,
        rescale: float = 0.1,
        **traits: Unpack[Traits],
    ) -> None:
        super().__init__(**traits)
        for name, value in {"width": width, "growth": growth, "depth": depth, "norm_groups": norm_groups}.items():
            require(name, value, at_least=1)
        require("lstm_layers", lstm_layers, at_least=0)
        if dconv_mode not in (0, 1, 2, 3):
            raise UsageError(f"dconv_mode = {dconv_mode}: must be 0, 1, 2 or 3")

        self.depth, self.normalise, self.oversample = depth, normalise, oversample
        self.shortening = CONTEXT - 1 if rewrite and not context_padding else 0
        self.register_buffer("doubling", sinc_kernel(1, 2), persistent=False)
        self.register_buffer("halving", sinc_kernel(2, 1), persistent=False)
        self.doubling: Tensor
        self.halving: Tensor

        activation = nn.GELU if gelu else nn.ReLU
        branches = partial(DConv, depth=dconv_depth, compress=dconv_comp, initial=dconv_init)
        reach = CONTEXT // 2 if context_padding else 0
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        inputs, outputs = self.channels, self.channels * len(self.sources)
        for index in range(depth):
            norm = partial(group_norm, norm_groups if index >= norm_starts else 0)
            residual = partial(branches, width, lstm=index >= dconv_lstm, attention=index >= dconv_attn)
            going: list[nn.Module] = [nn.Conv1d(inputs, width, KERNEL, STRIDE), norm(width), activation()]
            coming: list[nn.Module] = []
            if dconv_mode & 1:
                going += [residual()]
            if rewrite:
                going += [nn.Conv1d(width, 2 * width, 1), norm(2 * width), nn.GLU(dim=1)]
                coming += [nn.Conv1d(width, 2 * width, CONTEXT, padding=reach), norm(2 * width), nn.GLU(dim=1)]
            if dconv_mode & 2:
                coming += [residual()]
            coming += [nn.ConvTranspose1d(width, outputs, KERNEL, STRIDE)]
            if index > 0:
                coming += [norm(outputs), activation()]
            self.encoder.append(nn.Sequential(*going))
            self.decoder.insert(0, nn.Sequential(*coming))  # innermost first, as published
            inputs = outputs = width
            width = int(growth * width)
        self.lstm = BLSTM(inputs, layers=lstm_layers) if lstm_layers else nn.Identity()
        if rescale:
            rescale_convolutions(self, rescale)

    def valid_length(self, length: int) -> int:
        """How many samples the network must be given, for an output of at least `length`."""
        return self.strided(length, self.shortening)

    def margins(self, length: int) -> tuple[int, int]:
        return halves(self.valid_length(length) - length)

    def strided(self, length: int, shortening: int) -> int:
        """The least number of samples of which no layer's stride leaves a rest, where each layer of the decoder wants
        `shortening` steps more than it gives on.
        """
        rate = 2 if self.oversample else 1
        steps = rate * length
        for _ in range(self.depth):
            steps = max(1, -((KERNEL - steps) // STRIDE) + 1) + shortening
        for _ in range(self.depth):
            steps = (steps - 1) * STRIDE + KERNEL
        return steps // rate

    def forward(self, mixture: Tensor) -> Estimate:
        """(B, C, T) -> waveforms (B, S, C, T).

        What is no valid length is padded to one with zeros. Without `context_padding` the ends of a valid length,
        which the output does not reach, come back as zeros: the pipeline gives them as margins.
        """
        length = mixture.shape[-1]
        x = mixture
        if self.normalise:
            mono = mixture.mean(dim=1, keepdim=True)
            mean = mono.mean(dim=2, keepdim=True)  # (B, 1, 1)
            deviation = mono.std(dim=2, keepdim=True, correction=min(1, length - 1))
            x = (x - mean) / (1e-5 + deviation)

        if self.strided(length, 0) != length or length < self.valid_length(1):
            x = centred(x, self.valid_length(length))
        if self.oversample:
            x = resample(x, self.doubling, 1)
        skips: list[Tensor] = []
        for encode in self.encoder:
            x = encode(x)
            skips.append(x)
        x = self.lstm(x)
        for decode in self.decoder:
            x = decode(x + centred(skips.pop(), x.shape[-1]))
        if self.oversample:
            x = resample(x, self.halving, 2)

        if self.normalise:
            x = x * deviation + mean
        return Estimate(torch.unflatten(centred(x, length), 1, (len(self.sources), -1)))


def halves(count: int) -> tuple[int, int]:
    """A number in two parts, the second one further from zero if it is odd."""
    return int(count / 2), count - int(count / 2)


def centred(x: Tensor, length: int) -> Tensor:
    """(..., T) -> (..., length), padded with zeros or cut off at both ends alike, or one more on the right."""
    return F.pad(x, halves(length - x.shape[-1]))
