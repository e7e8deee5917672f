"""Conv-TasNet for music, alone, in several bands, and one network a source with bridges between them.

Conv-TasNet: Luo and Mesgarani, "Conv-TasNet: Surpassing Ideal Time-Frequency Magnitude Masking for Speech Separation",
2019, in the stereo form of Défossez et al., arXiv:1911.13254 (no skip paths, no biases, ReLU masks).
Bands: Papantonakis, Garoufis and Maragos, "Multi-band Masking for Waveform-based Singing Voice Separation", 2022.
Stronger encoder and decoder: Samuel, Ganeshan and Naradowsky, "Meta-learning Extractors for Music Source Separation",
2020, in the stereo form of the multi-band code.
Bridges: Sawata et al., "The whole is greater than the sum of its parts", 2024. No code of X-Conv-TasNet is public.

The papers' letters: N `filters`, L `kernel`, B `bottleneck`, H `hidden`, P `block_kernel`, X `depth`, R `repeats`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.errors import UsageError
from sepcli.models.separator import Estimate, Separator, Traits
from sepcli.nn.bridge import average
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

Norm = Literal["global", "channel"]
NORMS: Mapping[str, Callable[[int], nn.Module]] = {"global": GlobalNorm, "channel": ChannelNorm}

SCALES = 6
"""Resolutions of the stronger front end: filters of L, 2 L, ... 32 L samples."""
WINDOW, HOP, MELS = 1024, 256, 256
"""Its spectrogram, in samples, and the rows learned from it."""


class MaskNetwork(nn.Module):
    """Latent of one band to a mask for each source (Conv-TasNet, section II.C; multi-band masking, section III)."""

    def __init__(
        self,
        sources: int,
        filters: int,
        bottleneck: int,
        hidden: int,
        block_kernel: int,
        depth: int,
        repeats: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.sources = sources
        self.network = nn.Sequential(ChannelNorm(filters), nn.Conv1d(filters, bottleneck, 1, bias=False))
        self.temporal_conv_net = nn.Sequential(
            *(temporal_blocks(bottleneck, hidden, block_kernel, depth, NORMS[norm]) for _ in range(repeats))
        )
        self.mask_conv1x1 = nn.Conv1d(bottleneck, sources * filters, 1, bias=False)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, filters, N) -> (B, S, filters, N), not negative"""
        return self.masks(self.temporal_conv_net(self.network(latent)))

    def masks(self, features: Tensor) -> Tensor:
        """(B, bottleneck, N) -> (B, S, filters, N)"""
        return torch.unflatten(F.relu(self.mask_conv1x1(features)), 1, (self.sources, -1))


class StrongEncoder(nn.Module):
    """Filters of six lengths and a spectrogram, mixed into one latent, which may be negative (Meta-TasNet).

    Frames come every stride; the spectrogram is stretched over them, so that the latent depends on the input's length.
    """

    def __init__(self, channels: int, filters: int, kernel: int) -> None:
        super().__init__()
        stride = kernel // 2
        lengths = [kernel * 2**i for i in range(SCALES)]
        self.filters = nn.ModuleList(
            nn.Conv1d(channels, filters // 4, k, stride=stride, padding=(k - stride) // 2, bias=False) for k in lengths
        )
        self.spectrogram = LearnedSpectrogram(channels)
        self.bottleneck = nn.Sequential(
            nn.Conv1d(SCALES * (filters // 4) + MELS, filters, 1, bias=False),
            nn.ReLU(),
            nn.Conv1d(filters, filters, 1, bias=False),
        )

    def forward(self, mixture: Tensor) -> Tensor:
        """(B, C, T), T whole strides, more than half a window -> (B, filters, T // stride)"""
        heard = torch.stack([branch(mixture) for branch in self.filters], dim=2)  # (B, filters / 4, 6, N)
        heard = F.relu(heard.flatten(1, 2))  # each filter's six resolutions are neighbours
        seen = F.interpolate(self.spectrogram(mixture), size=heard.shape[-1], mode="linear", align_corners=True)
        latent: Tensor = self.bottleneck(torch.cat([heard, seen], dim=1))
        return latent


class LearnedSpectrogram(nn.Module):
    """Logarithmic power spectra of all channels, mixed into fewer rows as mel filters would, but learned."""

    window: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.mel_transform = nn.Conv1d(channels * (WINDOW // 2 + 1), MELS, 1)

    def forward(self, mixture: Tensor) -> Tensor:
        """(B, C, T) -> (B, MELS, T // HOP + 1)"""
        spectra = torch.stft(mixture.flatten(0, 1), WINDOW, HOP, window=self.window, return_complex=True)
        power = torch.view_as_real(spectra).square().sum(-1)  # (B * C, F, N)
        power = torch.unflatten(power, 0, mixture.shape[:2])
        rows: Tensor = self.mel_transform(torch.log10(power + 1e-8).flatten(1, 2))
        return rows


class StrongDecoder(nn.Module):
    """Masked latent to waveform: widened, cut into six parts, each through filters of its own length, then summed."""

    def __init__(self, channels: int, filters: int, kernel: int) -> None:
        super().__init__()
        stride = kernel // 2
        self.widths = [filters // 2 ** (i + 1) for i in range(SCALES)]
        self.bottleneck = nn.Sequential(nn.ConvTranspose1d(filters, sum(self.widths), 1, bias=False), nn.ReLU())
        self.filters = nn.ModuleList(
            nn.ConvTranspose1d(width, channels, k, stride=stride, padding=(k - stride) // 2, bias=False)
            for width, k in ((width, kernel * 2**i) for i, width in enumerate(self.widths))
        )

    def forward(self, latent: Tensor) -> Tensor:
        """(B, S, filters, N) -> (B, S, C, N * stride)"""
        parts = self.bottleneck(latent.flatten(0, 1)).split(self.widths, dim=1)
        heard = [branch(part) for branch, part in zip(self.filters, parts, strict=True)]
        return torch.unflatten(torch.stack(heard).sum(dim=0), 0, latent.shape[:2])


class ConvTasNet(Separator):
    """Encoder, masks for each of `bands` parts of the latent, decoder (multi-band masking, section III, figure 1).

    `bands` must divide `filters`; `bottleneck` is filters // bands unless given. `full_band` adds one network that
    sees all bands; its masks and the bands' are mixed by a linear layer, and may then be negative. `front_end` is the
    encoder and decoder: "conv" or Meta-TasNet's "strong". `norm`: only "channel" gives a finite context.
    `init` and `tail` = "public" do as public code does (see sepcli.nn.tcn). Parameters carry the names of the
    multi-band code. Raises UsageError for sizes that cannot be.
    """

    tiny: ClassVar[Mapping[str, Any]] = {"filters": 64, "kernel": 8, "hidden": 8, "depth": 2, "repeats": 2}

    def __init__(
        self,
        *,
        filters: int = 256,
        kernel: int = 20,
        bottleneck: int | None = None,
        hidden: int = 512,
        block_kernel: int = 3,
        depth: int = 8,
        repeats: int = 3,
        bands: int = 1,
        full_band: bool = False,
        full_band_bottleneck: int | None = None,
        front_end: Literal["conv", "strong"] = "conv",
        norm: Norm = "global",
        init: Init = "standard",
        tail: Tail = "pad",
        **traits: Unpack[Traits],
    ) -> None:
        super().__init__(**traits)
        check_bands(filters, bands, full_band, full_band_bottleneck)
        bottleneck = filters // bands if bottleneck is None else bottleneck
        full_bottleneck = filters if full_band_bottleneck is None else full_band_bottleneck
        check_sizes(
            kernel=kernel, block_kernel=block_kernel, hidden=hidden, depth=depth, repeats=repeats,
            bottleneck=bottleneck, full_band_bottleneck=full_bottleneck,
        )  # fmt: skip
        if front_end == "strong" and (filters % 2**SCALES or kernel % 4):
            raise UsageError(
                f"filters = {filters}, kernel = {kernel}: the strong front end wants multiples of {2**SCALES} and of 4"
            )
        self.bands, self.full_band, self.tail = bands, full_band, tail
        self.stride = kernel // 2
        # the spectrogram reflects half a window at either end: at least a whole one, in whole strides
        self.least = kernel if front_end == "conv" else -(-WINDOW // self.stride) * self.stride
        finite = norm == "channel" and front_end == "conv"
        self.sees = finite_context(kernel, block_kernel, depth, repeats) if finite else None

        strong = front_end == "strong"
        self.encoder = (StrongEncoder if strong else Encoder)(self.channels, filters, kernel)
        sizes = [(filters // bands, bottleneck)] * bands + [(filters, full_bottleneck)] * full_band
        self.separators = nn.ModuleList(
            MaskNetwork(len(self.sources), width, narrow, hidden, block_kernel, depth, repeats, norm)
            for width, narrow in sizes
        )
        if full_band:
            self.linear_mask_combinator = nn.Linear(2 * filters, filters, bias=False)
        self.decoder = (StrongDecoder if strong else Decoder)(self.channels, filters, kernel)
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
        """(B, C, T) -> waveforms (B, S, C, T)"""
        latent = self.encoder(pad_to_frames(mixture, self.stride, self.least, self.tail))  # (B, filters, N)
        waveforms = self.decoder(latent.unsqueeze(1) * self.masks(latent))
        return Estimate(fit_length(waveforms, mixture.shape[-1]))

    def masks(self, latent: Tensor) -> Tensor:
        """(B, filters, N) -> (B, S, filters, N): each band's masks from that band alone, joined in order."""
        heard = [*latent.chunk(self.bands, dim=1)] + [latent] * self.full_band
        masks = [network(band) for network, band in zip(self.separators, heard, strict=True)]
        joined = torch.cat(masks, dim=2)
        if not self.full_band:
            return joined
        mixed: Tensor = self.linear_mask_combinator(joined.movedim(2, -1))
        return mixed.movedim(-1, 2)

    @staticmethod
    def sort_front_end(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A trained plain front end with its filters from low to high (multi-band masking, model M6).

        `tensors` has at least this class's encoder and decoder weights; others pass unchanged. Raises UsageError where
        there is no such front end.
        """
        rows, columns = "encoder.conv1d_U.weight", "decoder.basis_signals.weight"
        if rows not in tensors or columns not in tensors:
            raise UsageError("sort: only the plain front end of a Conv-TasNet has filters to sort", f"it wants {rows}")
        order = filter_order(tensors[rows])
        return {**tensors, rows: tensors[rows][order], columns: tensors[columns][:, order]}


class OneSource(nn.Module):
    """The parts of a Conv-TasNet for one source, which XConvTasNet runs in step with the other sources'."""

    def __init__(
        self,
        channels: int,
        kernel: int,
        filters: int,
        bottleneck: int,
        hidden: int,
        block_kernel: int,
        depth: int,
        repeats: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, filters, kernel)
        self.separator = MaskNetwork(1, filters, bottleneck, hidden, block_kernel, depth, repeats, norm)
        self.decoder = Decoder(channels, filters, kernel)


class XConvTasNet(Separator):
    """One whole Conv-TasNet a source, joined by averages (X-scheme, sections 3.2.1 and 4.3.4).

    The paper gives neither sizes nor positions; here bridges stand where the type of block changes, as in its X-UMX:
    "bottleneck" gives every network's blocks the mean of all bottlenecks, "tcn" gives every mask layer the mean of all
    blocks' outputs. Masks act on each network's own latent. Without bridges the networks know nothing of each other.
    """

    tiny: ClassVar[Mapping[str, Any]] = {
        "filters": 8, "kernel": 8, "bottleneck": 8, "hidden": 8, "depth": 2, "repeats": 2,
    }  # fmt: skip

    def __init__(
        self,
        *,
        filters: int = 256,
        kernel: int = 20,
        bottleneck: int = 256,
        hidden: int = 512,
        block_kernel: int = 3,
        depth: int = 10,
        repeats: int = 4,
        bridges: Sequence[Literal["bottleneck", "tcn"]] = ("bottleneck", "tcn"),
        norm: Norm = "global",
        init: Init = "standard",
        tail: Tail = "pad",
        **traits: Unpack[Traits],
    ) -> None:
        super().__init__(**traits)
        check_sizes(
            kernel=kernel, block_kernel=block_kernel, filters=filters, bottleneck=bottleneck,
            hidden=hidden, depth=depth, repeats=repeats,
        )  # fmt: skip
        if len(set(bridges)) != len(bridges) or set(bridges) - {"bottleneck", "tcn"}:
            raise UsageError(f"bridges = {list(bridges)}: may hold 'bottleneck' and 'tcn', each once")
        self.bridges, self.tail = frozenset(bridges), tail
        self.kernel, self.stride = kernel, kernel // 2
        self.sees = finite_context(kernel, block_kernel, depth, repeats) if norm == "channel" else None
        sizes = (filters, bottleneck, hidden, block_kernel, depth, repeats, norm)
        self.nets = nn.ModuleList(OneSource(self.channels, kernel, *sizes) for _ in self.sources)
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
        """(B, C, T) -> waveforms (B, S, C, T)"""
        heard = pad_to_frames(mixture, self.stride, self.kernel, self.tail)
        nets = [cast(OneSource, net) for net in self.nets]
        latents = [net.encoder(heard) for net in nets]
        paths = [net.separator.network(latent) for net, latent in zip(nets, latents, strict=True)]
        if "bottleneck" in self.bridges:
            paths = average(paths)
        paths = [net.separator.temporal_conv_net(path) for net, path in zip(nets, paths, strict=True)]
        if "tcn" in self.bridges:
            paths = average(paths)
        waveforms = [
            net.decoder(latent.unsqueeze(1) * net.separator.masks(path))  # (B, 1, C, T)
            for net, latent, path in zip(nets, latents, paths, strict=True)
        ]
        return Estimate(fit_length(torch.cat(waveforms, dim=1), mixture.shape[-1]))


def filter_order(weight: Tensor) -> Tensor:
    """The order of encoder filters (filters, C, kernel) from low to high base frequency: indices (filters,).

    The base frequency is the strongest of 257 bins of the power response, summed over channels (a 512-point transform);
    equal ones go by the response's centroid, then by index. The multi-band paper names the idea, not the measure.
    """
    power = torch.fft.rfft(weight, 512).abs().square().sum(dim=1)  # (filters, 257)
    base = power.argmax(dim=1)
    bins = torch.arange(power.shape[1], dtype=power.dtype, device=power.device)
    centroid = (power * bins).sum(dim=1) / power.sum(dim=1).clamp_min(torch.finfo(power.dtype).tiny)
    order = centroid.argsort(stable=True)
    by_base: Tensor = order[base[order].argsort(stable=True)]
    return by_base


def check_bands(filters: int, bands: int, full_band: bool, full_band_bottleneck: int | None) -> None:
    """Refuse a split that cannot be. Raises UsageError."""
    if filters < 1:
        raise UsageError(f"filters = {filters}: must be at least 1")
    if bands < 1 or filters % bands:
        raise UsageError(f"bands = {bands}: must divide the {filters} filters of the encoder")
    if full_band and bands == 1:
        raise UsageError("full_band = true: needs at least 2 bands, got bands = 1")
    if full_band_bottleneck is not None and not full_band:
        raise UsageError(f"full_band_bottleneck = {full_band_bottleneck}: is allowed only with full_band = true")
