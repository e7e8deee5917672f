"""CDE-HTCN: a cross-domain encoder, then stages of temporal blocks, each stage with masks and a decoder of its own.

Hu, Chen, Yang, He and Huang, "Hierarchic Temporal Convolutional Network With Cross-Domain Encoder for Music Source
Separation", IEEE Signal Processing Letters, 2022; public code YadongChen-1016/Music-Source-Separation-master, which
does not run as published and has no weights. Where it is at fault (a spectrum of the left channel only, its kernels
then overwritten by noise; norm gains drawn near zero; a silent tail) the paper holds, and a setting gives the code's.

Letters: N `filters`, L `kernel`, B `bottleneck`, H `hidden`, P `block_kernel`, X `depth`, R `stages`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.errors import UsageError
from sepcli.models.separator import Estimate, Separator, Traits, require
from sepcli.nn.norm import ChannelNorm, GlobalNorm
from sepcli.nn.tcn import (
    Decoder,
    Encoder,
    Init,
    Tail,
    check_sizes,
    finite_context,
    fit_length,
    initialise,
    pad_to_frames,
    temporal_blocks,
)
from sepcli.nn.tiled_tcn import tiled

SpectrumInput = Literal["mid", "left", "stereo", "random"]


class SwitchNorm(nn.Module):
    """Switchable normalisation (section II.B): statistics of channel, item and batch, in shares that are learned.

    Over time the variance is unbiased, so it wants two frames. In eval mode the batch's share is its running mean and
    variance, which start at 0 and move by a tenth: items of a batch do not touch each other there.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))
        self.mean_weight = nn.Parameter(torch.ones(3))  # logits: instance, layer, batch
        self.var_weight = nn.Parameter(torch.ones(3))
        self.register_buffer("running_mean", torch.zeros(1, channels, 1))
        self.register_buffer("running_var", torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, C, N)"""
        x = x.to(self.weight.dtype)  # statistics are never of half precision
        variance, mean = torch.var_mean(x, dim=-1, keepdim=True)  # (B, C, 1)
        mean, deviation = self.switched(mean, variance)
        return (x - mean) / deviation * self.weight + self.bias

    def switched(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Channels' own means and variances over time (B, C, 1) -> the means and deviations that they get."""
        square = variance + mean**2
        layer_mean = mean.mean(dim=1, keepdim=True)  # (B, 1, 1)
        layer_variance = square.mean(dim=1, keepdim=True) - layer_mean**2
        if self.training:
            batch_mean = mean.mean(dim=0, keepdim=True)  # (1, C, 1)
            batch_variance = square.mean(dim=0, keepdim=True) - batch_mean**2
            self.running_mean.lerp_(batch_mean.detach(), 0.1)
            self.running_var.lerp_(batch_variance.detach(), 0.1)
        else:
            batch_mean, batch_variance = self.running_mean, self.running_var
        of_mean, of_variance = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean = of_mean[0] * mean + of_mean[1] * layer_mean + of_mean[2] * batch_mean
        variance = of_variance[0] * variance + of_variance[1] * layer_variance + of_variance[2] * batch_variance
        return mean, (variance + 1e-5).sqrt()

    def line(self, mean: Tensor, variance: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """See sepcli.nn.tiled_tcn."""
        mean, deviation = self.switched(mean, variance * frames / (frames - 1))
        return mean, self.weight / deviation, self.bias


NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "switchable": SwitchNorm, "global": GlobalNorm, "channel": ChannelNorm,
}  # fmt: skip


class Spectrum(nn.Module):
    """Short-time spectrum on the encoder's own frames: root of a Hann window, transform of `filters` points.

    Real parts of bins 1 to filters / 2, then imaginary parts; nothing is centred or scaled. `source` says of what: the
    channels' mean, the left one, each channel ("stereo"), or "random", kernels of noise as public code ends up with.
    """

    kernels: Tensor

    def __init__(self, channels: int, filters: int, kernel: int, source: SpectrumInput) -> None:
        super().__init__()
        self.stride = kernel // 2
        bins, samples = torch.arange(1, filters // 2 + 1), torch.arange(kernel)
        angle = (bins[:, None] * samples % filters) * (2 * math.pi / filters)  # exact turns dropped before rounding
        window = torch.sin(math.pi / (kernel - 1) * samples)  # the root of a symmetric Hann window
        waves = torch.cat([angle.cos(), -angle.sin()]) * window  # (filters, kernel)
        shares = {  # of each channel, for each spectrum
            "mid": torch.full((1, channels), 1 / channels),
            "left": torch.eye(channels)[:1],
            "stereo": torch.eye(channels),
            "random": torch.zeros(1, channels),
        }[source]
        kernels = shares[:, None, :, None] * waves[:, None]  # (spectra, filters, C, kernel)
        kernels = kernels.flatten(0, 1)
        if source == "random":
            nn.init.normal_(kernels, std=(2 / (kernel * (channels + filters // 2 + 1))) ** 0.5)
        self.register_buffer("kernels", kernels, persistent=source == "random")  # a constant, unless it was drawn

    def forward(self, mixture: Tensor) -> Tensor:
        """(B, C, T) -> (B, filters, N); with source = "stereo" (B, C * filters, N)"""
        return F.conv1d(mixture, self.kernels, stride=self.stride)


class CrossDomainEncoder(nn.Module):
    """Learned filters and a spectrum, weighed against each other in each channel and frame (section II.A, figure 2)."""

    def __init__(self, channels: int, filters: int, kernel: int, source: SpectrumInput) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(channels, filters, kernel, stride=kernel // 2, bias=False)
        self.spectrum = Spectrum(channels, filters, kernel, source)
        rows = self.spectrum.kernels.shape[0]
        self.linear1 = nn.Conv1d(rows, filters, 1, bias=False)
        self.linear2 = nn.Conv1d(filters, filters, 1, bias=False)
        self.linear3 = nn.Conv1d(2 * filters, filters, 1, bias=False)

    def forward(self, mixture: Tensor) -> Tensor:
        """(B, C, T) -> (B, filters, N)"""
        seen = self.linear1(self.spectrum(mixture))
        heard = self.linear2(self.conv1d(mixture))
        gate = torch.sigmoid(
            self.linear3(torch.cat([seen, heard], dim=1))
        )  # of what is heard; the rest of what is seen
        return F.relu(gate * heard + (1 - gate) * seen + heard + seen)


class FeatureCalibration(nn.Module):
    """FCU: each channel scaled by what all channels' means over time say (section II.B, equation 4)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        narrow = channels // reduction
        self.gate = nn.Sequential(nn.Linear(channels, narrow), nn.ReLU6(), nn.Linear(narrow, channels), nn.Hardswish())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, C, N)"""
        gate: Tensor = self.gate(x.mean(dim=-1))  # (B, C)
        return x * gate.unsqueeze(-1)


class HierarchicStage(nn.Module):
    """One HTCN: blocks of growing dilation, all their outputs gathered once (section II.B, figure 3)."""

    def __init__(self, blocks: nn.Sequential, bottleneck: int, norm: Callable[[int], nn.Module], unit: nn.Module):
        super().__init__()
        self.blocks = blocks
        gathered = bottleneck * (len(blocks) + 1)
        self.fuse = nn.Sequential(nn.Conv1d(gathered, bottleneck, 1, bias=False), nn.PReLU(), norm(bottleneck))
        self.calibrate = unit

    def forward(self, before: Tensor, start: Tensor) -> Tensor:
        """(B, bottleneck, N) twice -> (B, bottleneck, N): gathers `before` and what the blocks make of `start`."""
        gathered = [before]
        for block in self.blocks:
            start = block(start)
            gathered.append(start)
        output: Tensor = self.calibrate(self.fuse(torch.cat(gathered, dim=1)))
        return output


class CDEHTCN(Separator):
    """Encoder, `stages` of `depth` blocks, masks and decoder of each stage (figure 1; the public code's class CDEHTCN).

    In training `Estimate.stages` has the earlier stages' waveforms; in eval mode only the last one's masks and decoder
    run. The rows of the ablation (table I) are settings: `encoder` "cde" or "conv" (Conv-TasNet's), `separator` "htcn"
    or "tcn" (Conv-TasNet's chain), `fcu`, `multi_stage`. `norm` None is switchable in htcn, global in tcn; with
    "channel" and no FCU the context is finite. `spectrum`: of what the spectrum is (see Spectrum). `init` and `tail` =
    "public" do as public code does (see sepcli.nn.tcn). Raises UsageError for settings that cannot be.
    """

    tiny: ClassVar[Mapping[str, Any]] = {
        "filters": 16, "kernel": 8, "bottleneck": 8, "hidden": 12, "depth": 2, "stages": 2,
    }  # fmt: skip

    def __init__(
        self,
        *,
        filters: int = 256,
        kernel: int = 88,
        bottleneck: int = 256,
        hidden: int = 512,
        block_kernel: int = 3,
        depth: int = 8,
        stages: int = 4,
        reduction: int = 4,
        encoder: Literal["cde", "conv"] = "cde",
        separator: Literal["htcn", "tcn"] = "htcn",
        fcu: bool = True,
        multi_stage: bool = True,
        norm: Literal["switchable", "global", "channel"] | None = None,
        spectrum: SpectrumInput = "mid",
        init: Init = "standard",
        tail: Tail = "pad",
        **traits: Unpack[Traits],
    ) -> None:
        super().__init__(**traits)
        check_sizes(
            kernel=kernel, block_kernel=block_kernel, filters=filters, bottleneck=bottleneck, hidden=hidden,
            depth=depth, stages=stages, reduction=reduction,
        )  # fmt: skip
        if encoder == "cde" and (filters % 2 or filters < kernel):
            raise UsageError(f"filters = {filters}: the spectrum wants an even number, at least kernel = {kernel}")
        if fcu and separator == "tcn":
            raise UsageError("fcu = true: belongs to separator = 'htcn', got separator = 'tcn'")
        if fcu:
            require("bottleneck", bottleneck, at_least=reduction)
        kind = norm or ("switchable" if separator == "htcn" else "global")
        make_norm = NORMS[kind]
        self.stride, self.tail = kernel // 2, tail
        self.multi_stage, self.hierarchic = multi_stage, separator == "htcn"
        finite = kind == "channel" and not fcu
        self.sees = finite_context(kernel, block_kernel, depth, stages) if finite else None

        self.encoder: nn.Module
        if encoder == "cde":
            self.encoder = CrossDomainEncoder(self.channels, filters, kernel, spectrum)
        else:
            self.encoder = Encoder(self.channels, filters, kernel)
        self.norm = ChannelNorm(filters)
        self.bottleneck = nn.Conv1d(filters, bottleneck, 1, bias=False)
        self.stages = nn.ModuleList()
        for _ in range(stages):
            blocks = temporal_blocks(bottleneck, hidden, block_kernel, depth, make_norm)
            unit = FeatureCalibration(bottleneck, reduction) if fcu else nn.Identity()
            self.stages.append(HierarchicStage(blocks, bottleneck, make_norm, unit) if separator == "htcn" else blocks)
        heads = stages if multi_stage else 1
        masks = len(self.sources) * filters
        self.masks = nn.ModuleList(nn.Conv1d(bottleneck, masks, 1, bias=False) for _ in range(heads))
        self.decoders = nn.ModuleList(Decoder(self.channels, filters, kernel) for _ in range(heads))
        initialise(self, init)

    @property
    def grid(self) -> int:
        return self.stride

    @property
    def context(self) -> int | None:
        return self.sees

    def fast(self) -> nn.Module:
        return tiled(self)

    def forward(self, mixture: Tensor) -> Estimate:
        """(B, C, T) -> waveforms (B, S, C, T), and in training those of earlier stages"""
        # an unbiased variance wants two frames
        latent = self.encoder(pad_to_frames(mixture, self.stride, 3 * self.stride, self.tail))  # (B, filters, N)
        first = features = self.bottleneck(self.norm(latent))  # (B, bottleneck, N)
        waveforms = []
        for r, stage in enumerate(self.stages):
            start = features + first if self.hierarchic and r else features
            features = stage(features, start) if self.hierarchic else stage(start)
            last = r == len(self.stages) - 1
            if last or (self.training and self.multi_stage):
                head = -1 if last else r
                masks = F.relu(self.masks[head](features))
                masks = torch.unflatten(masks, 1, (len(self.sources), -1))  # (B, S, filters, N)
                waveforms.append(fit_length(self.decoders[head](latent.unsqueeze(1) * masks), mixture.shape[-1]))
        *earlier, final = waveforms
        return Estimate(final, stages=tuple(earlier))
