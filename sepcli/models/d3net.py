"""D3Net, and X-D3Net, which bridges its networks.

Takahashi and Mitsufuji, "D3Net: Densely connected multidilated DenseNet for music source separation", 2020
(arXiv:2010.01733). Sawata, Takahashi, Uhlich, Takahashi and Mitsufuji, "The Whole Is Greater than the Sum of Its Parts:
Improving Music Source Separation by Bridging Networks", 2024 (arXiv:2305.07855), section 4.3.4. Sizes, patches and
filter are those of the authors' release (sony/ai-research-code, d3net), which decides where the papers are silent.

Each source has a network that estimates magnitudes; a multichannel Wiener filter makes sources of them. Inside a
network features are (B, H, N, F), frames before bins, as the published kernels lie.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from sepcli.dsp.statistics import bin_statistics
from sepcli.dsp.stft import istft, stft
from sepcli.dsp.wiener import initial_estimates, wiener, wiener_one_pass
from sepcli.errors import UsageError
from sepcli.models.separator import Estimate, Separator, Traits, require
from sepcli.nn.bridge import average

Block = tuple[int, int]
"""Channels k that a D3 block puts out, and layers L of each of its D2 blocks."""


@dataclass(frozen=True)
class Sizes:
    """What differs between the networks of the release. Bins below `split` are the low band, the rest the high.

    Blocks go down the scales, through the bottleneck and up again. `patch`: frames that are separated at a time.
    """

    split: int
    low: tuple[Block, ...]
    high: tuple[Block, ...]
    full: tuple[Block, ...]
    patch: int
    features: int = 32
    high_features: int = 8


SIZES = {
    "vocals": Sizes(
        split=256,
        low=((16, 5), (18, 5), (20, 5), (22, 5), (20, 4), (18, 4), (16, 4)),
        high=((2, 1),) * 5,
        full=((13, 4), (14, 5), (15, 6), (16, 7), (17, 8), (16, 6), (14, 5), (12, 4), (11, 4)),
        patch=256,
    ),
    "drums": Sizes(
        split=128,
        low=((16, 5), (18, 5), (20, 5), (22, 4), (20, 4), (18, 4), (16, 4)),
        high=((2, 1),) * 5,
        full=((13, 4), (14, 5), (15, 6), (16, 7), (16, 8), (16, 6), (14, 6), (12, 4), (11, 4)),
        patch=256,
    ),
    "bass": Sizes(
        split=192,
        low=((16, 5), (18, 5), (18, 5), (20, 5), (18, 4), (16, 4), (16, 4)),
        high=((2, 1),) * 7,
        full=((10, 4), (10, 5), (12, 6), (14, 7), (16, 8), (14, 6), (12, 6), (8, 4), (8, 4)),
        patch=384,
    ),
    "tiny": Sizes(
        split=16,
        low=((4, 2), (3, 3), (4, 2)),
        high=((2, 1),) * 3,
        full=((3, 2), (3, 3), (2, 2)),
        patch=64,
        features=4,
        high_features=3,
    ),
}
"""By the source that they were made for; the release's `other` has those of vocals. `tiny` is for tests."""


class Unit(nn.Module):
    """Batch norm, ReLU, convolution 3x3: (B, `channels`, N, F) -> (B, `width`, N, F)."""

    def __init__(self, channels: int, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, dilation=dilation, padding=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(functional.relu(self.norm1(x)))  # type: ignore[no-any-return]


def multidilated(first: nn.Module, layers: Iterable[nn.Module], growth: int, x: Tensor) -> Tensor:
    """Densely connected layers of `growth` channels (D3Net, section 2), without the concatenations.

    What each layer gives to all the later ones is computed at once, as soon as the layer is finished, and added: so it
    can have a dilation and a norm of its own for each layer that it comes from. Out comes the last layer.
    """
    rest: Tensor = first(x)
    for layer in layers:
        finished, rest = rest[:, :growth], rest[:, growth:]
        rest = layer(finished).add_(rest)
    return rest


class D2(nn.Module):
    """D2 block: (B, `channels`, N, F) -> (B, `growth`, N, F). What comes from layer i is dilated by 2^i."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.growth = growth
        self.initial_layer = Unit(channels, growth * layers)
        self.layers = nn.ModuleDict(
            {f"layer{i}": Unit(growth, growth * (layers - i), dilation=2**i) for i in range(1, layers)}
        )

    def forward(self, x: Tensor) -> Tensor:
        return multidilated(self.initial_layer, self.layers.values(), self.growth, x)


class D3(nn.Module):
    """D3 block, D2 blocks connected as a D2 block's layers are: (B, `channels`, N, F) -> (B, k, N, F)."""

    def __init__(self, channels: int, block: Block, blocks: int) -> None:
        super().__init__()
        self.growth, layers = block
        self.initial_block = D2(channels, self.growth * blocks, layers)
        self.layers = nn.ModuleDict(
            {f"layer{i}": D2(self.growth, self.growth * (blocks - i), layers) for i in range(1, blocks)}
        )

    def forward(self, x: Tensor) -> Tensor:
        return multidilated(self.initial_block, self.layers.values(), self.growth, x)


class MD3(nn.Module):
    """D3 blocks down and up the scales, with skips: (B, `channels`, N, F) -> (B, k of the last block, N, F).

    Frames and bins must be multiples of 2 to the power of the scales below the first.
    """

    def __init__(self, channels: int, sizes: Sequence[Block], blocks: int) -> None:
        super().__init__()
        self.scales = len(sizes) // 2
        self.ds_layers = nn.ModuleDict()
        self.us_layers = nn.ModuleDict()
        skips = []
        for i, block in enumerate(sizes[: self.scales]):
            self.ds_layers[f"dense_block{i}"] = D3(channels, block, blocks)
            channels = block[0]
            skips.append(channels)
        self.bottleneck_block = D3(channels, sizes[self.scales], blocks)
        channels = sizes[self.scales][0]
        for i, block in enumerate(sizes[self.scales + 1 :]):
            transposed = nn.ConvTranspose2d(channels, channels, 2, stride=2)
            self.us_layers[f"upsample{i}"] = nn.Sequential(
                OrderedDict(norm=nn.BatchNorm2d(channels), transconv=transposed)
            )
            self.us_layers[f"dense_block{self.scales + 1 + i}"] = D3(channels + skips.pop(), block, blocks)
            channels = block[0]

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for dense in self.ds_layers.values():
            x = dense(x)
            skips.append(x)
            x = functional.avg_pool2d(x, 2)
        x = self.bottleneck_block(x)
        for i in range(self.scales):
            x = self.us_layers[f"upsample{i}"](x)
            x = self.us_layers[f"dense_block{self.scales + 1 + i}"](torch.cat([x, skips.pop()], dim=1))
        return x


class Gate(nn.Module):
    """Batch norm, then a convolution 1x1 times the sigmoid of another."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv_gate = nn.Conv2d(channels, width, 1)
        self.conv_filt = nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x)
        return torch.sigmoid(self.conv_gate(x)) * self.conv_filt(x)  # type: ignore[no-any-return]


def band(channels: int, features: int, sizes: Sequence[Block], blocks: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(first=nn.Conv2d(channels, features, 3, padding=1), dense=MD3(features, sizes, blocks))
    )


class Network(nn.Module):
    """One source: an MD3 for each of two bands, one for both together, a D2 block over all of them, and a gate.

    `in_offset` and `in_scale` hold mean and deviation of the training mixtures' bins. Only `kept_bins` are estimated.
    """

    def __init__(self, sizes: Sizes, *, channels: int, bins: int, kept_bins: int) -> None:
        super().__init__()
        self.split, self.kept_bins = sizes.split, kept_bins
        self.in_offset = nn.Parameter(torch.zeros(bins))
        self.in_scale = nn.Parameter(torch.ones(bins))
        self.low = band(channels, sizes.features, sizes.low, blocks=2)
        self.high = band(channels, sizes.high_features, sizes.high, blocks=1)
        self.full = band(channels, sizes.features, sizes.full, blocks=2)
        width, narrow, full = sizes.low[-1][0], sizes.high[-1][0], sizes.full[-1][0]
        self.match = nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(narrow), conv=nn.Conv2d(narrow, width, 1)))
        self.final_dense = D2(width + full, growth=12, layers=3)
        self.out_gate = Gate(12, channels)
        self.decode_scale = nn.Parameter(torch.ones(kept_bins))
        self.decode_bias = nn.Parameter(torch.ones(kept_bins))
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def features(self, magnitudes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, F, N) -> features of the bands, side by side, and of the whole: (B, H, N, kept bins) each."""
        kept = slice(self.kept_bins)
        x = magnitudes[:, :, kept].transpose(2, 3)  # (B, C, N, F)
        x = (x - self.in_offset[kept]) / self.in_scale[kept]
        bands = [self.low(x[..., : self.split]), self.match(self.high(x[..., self.split :]))]
        return torch.cat(bands, dim=3), self.full(x)

    def decode(self, bands: Tensor, full: Tensor, mixture: Tensor) -> Tensor:
        """Features, and the mixture's magnitudes (B, C, F, N) -> the source's, which above the kept bins are equal."""
        x = self.out_gate(self.final_dense(torch.cat([bands, full], dim=1)))
        x = functional.relu(x * self.decode_scale + self.decode_bias).transpose(2, 3)  # (B, C, F, N)
        return torch.cat([x, mixture[:, :, self.kept_bins :]], dim=2)


class D3Net(Separator):
    """D3Net (arXiv:2010.01733) of each source, and X-D3Net with `bridging` (arXiv:2305.07855, section 4.3.4).

    `sizes`: the release's sizes of one source for all networks; with `own` each has those of its name, where no such
    source was released those of vocals. `bins`, from the lowest up, are estimated; the rest is the mixture's until the
    filter shares it out. `bridging` gives every network the mean of all networks' band-wise features, or of those and
    the full band's, which only networks of one size have alike.

    In eval mode half-overlapping patches of `patch` frames (0: as released for each source, which bridges rule out
    where they differ) are averaged; with `swap_channels` over both orders of the channels too. `halved_tail` is a fault
    of the release: up to half a patch of frames at the end, which only one patch reaches, at half their level. Then
    comes the multichannel Wiener filter over the whole piece: the release's own, of one pass, or
    expectation-maximisation, with `wiener_iterations`; without, magnitudes get the mixture's phase. In training mode
    networks see the piece at once and nothing is filtered.
    """

    tiny: ClassVar = {"sizes": "tiny", "n_fft": 128, "hop": 64, "bins": 48, "patch": 64}

    def __init__(
        self,
        *,
        sizes: Literal["own", "vocals", "drums", "bass", "tiny"] = "own",
        n_fft: int = 4096,
        hop: int = 1024,
        bins: int = 1600,
        bridging: Literal["none", "bands", "bands+full"] = "none",
        patch: int = 0,
        swap_channels: bool = True,
        halved_tail: bool = False,
        wiener_iterations: int = 1,
        wiener_filter: Literal["one_pass", "em"] = "one_pass",
        **traits: Unpack[Traits],
    ) -> None:
        super().__init__(**traits)
        chosen = [SIZES.get(source if sizes == "own" else sizes, SIZES["vocals"]) for source in self.sources]
        require("n_fft", n_fft, at_least=4)
        require("patch", patch, at_least=0)
        require("wiener_iterations", wiener_iterations, at_least=0)
        if n_fft % 2 or not 1 <= hop <= n_fft // 2:
            raise UsageError(f"n_fft = {n_fft}, hop = {hop}: n_fft must be even, hop from 1 to half of it")
        if wiener_iterations and (len(self.sources) == 1 or self.channels > 2):
            raise UsageError(
                f"wiener_iterations = {wiener_iterations}: must be 0 for sources = {list(self.sources)} and channels = "
                f"{self.channels}: the filter wants two sources at least, and one or two channels"
            )
        if wiener_iterations and wiener_filter == "one_pass" and (wiener_iterations > 1 or self.channels == 1):
            raise UsageError(
                f"wiener_iterations = {wiener_iterations}, channels = {self.channels}: wiener_filter = 'one_pass' is "
                f"one iteration for two channels; 'em' takes more, and one channel"
            )
        self.patches = [patch or one.patch for one in chosen]
        check_bins(chosen, self.patches, bins, n_fft // 2 + 1)
        if bridging != "none" and len(set(self.patches)) > 1:
            raise UsageError(f"patch = {patch}: with bridging = {bridging!r} all sources must have one length of patch")
        if bridging == "bands+full" and len({one.full[-1][0] for one in chosen}) > 1:
            raise UsageError(f"bridging = {bridging!r}: full bands differ between sources with sizes = {sizes!r}")
        self.hop = hop
        self.bridging = bridging
        self.swap_channels = swap_channels and self.channels > 1
        self.halved_tail = halved_tail
        self.wiener_iterations = wiener_iterations
        self.wiener_filter = wiener_filter
        # Of the instance, since the settings decide: a filter or a bridge couples the sources.
        self.independent = bridging == "none" and not wiener_iterations
        self.period = max(2 ** (len(one.full) // 2) for one in chosen)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.window: Tensor
        self.networks = nn.ModuleDict(
            {
                source: Network(one, channels=self.channels, bins=n_fft // 2 + 1, kept_bins=bins)
                for source, one in zip(self.sources, chosen, strict=True)
            }
        )

    @property
    def grid(self) -> int:
        """So that the patches of a piece lie where those of the song do."""
        return self.hop * math.lcm(*(patch // 2 for patch in self.patches))

    @property
    def piece(self) -> int:
        """From `segment`, down to whole patches of every source: two steps at least, since pieces overlap by steps."""
        return max(2, super().piece // self.grid) * self.grid

    def forward(self, mixture: Tensor) -> Estimate:
        spectrum = stft(mixture, self.window, self.hop)  # (B, C, F, N)
        magnitudes = self.magnitudes(spectrum.abs())
        if self.training or self.wiener_iterations == 0:
            estimates = initial_estimates(magnitudes, spectrum)
        elif self.wiener_filter == "one_pass":
            estimates = wiener_one_pass(magnitudes, spectrum)
        else:
            estimates = wiener(magnitudes, spectrum, iterations=self.wiener_iterations, window=0)
        return Estimate(istft(estimates, self.window, self.hop, mixture.shape[-1]), magnitudes)

    def reference(self, sources: Tensor) -> Estimate:
        """True sources with their magnitudes (B, S, C, F, N)."""
        return Estimate(sources, stft(sources, self.window, self.hop).abs())

    def magnitudes(self, mixture: Tensor) -> Tensor:
        """The mixture's magnitudes (B, C, F, N) -> the sources' (B, S, C, F, N)."""
        networks = [network for network in self.networks.values() if isinstance(network, Network)]
        if self.training:
            frames = mixture.shape[-1]
            padded = functional.pad(mixture, (0, -frames % self.period))
            return self.estimated(networks, padded)[..., :frames]
        if self.bridging != "none":
            return self.patched(networks, self.patches[0], mixture)
        each = [self.patched([net], patch, mixture) for net, patch in zip(networks, self.patches, strict=True)]
        return torch.cat(each, dim=1)

    def patched(self, networks: Sequence[Network], patch: int, mixture: Tensor) -> Tensor:
        """Estimates (B, S, C, F, N) of some sources as the mean of patches that overlap by half."""
        frames, shift = mixture.shape[-1], patch // 2
        count = 2 * (frames // patch + 1) if self.halved_tail else -(-frames // shift) + 1
        padded = functional.pad(mixture, (shift, count * shift - frames))
        halves, before = [], mixture.new_zeros(())
        for start in range(0, count * shift, shift):
            estimate = self.averaged(networks, padded[..., start : start + patch])
            halves.append(before + estimate[..., :shift])
            before = estimate[..., shift:]
        return torch.cat([*halves[1:], before], dim=-1)[..., :frames] / 2  # the first half lies before the mixture

    def averaged(self, networks: Sequence[Network], mixture: Tensor) -> Tensor:
        """Estimates of some sources as the mean over both orders of the channels, if wanted."""
        if not self.swap_channels:
            return self.estimated(networks, mixture)
        there, back = self.estimated(networks, torch.cat([mixture, mixture.flip(1)])).chunk(2)
        return (there + back.flip(2)) / 2

    def estimated(self, networks: Sequence[Network], mixture: Tensor) -> Tensor:
        """One pass of some sources' networks, bridged: (B, C, F, N) -> (B, S, C, F, N)."""
        bands, full = map(list, zip(*(network.features(mixture) for network in networks), strict=True))
        if self.bridging != "none":
            bands = average(bands)
        if self.bridging == "bands+full":
            full = average(full)
        features = zip(networks, bands, full, strict=True)
        return torch.stack([network.decode(parts, whole, mixture) for network, parts, whole in features], dim=1)

    def standardise(self, mixtures: Iterable[Tensor]) -> None:
        """Set each network's input mean and scale from whole mixtures (C, T), before training."""
        mean, deviation = bin_statistics(stft(mixture, self.window, self.hop).abs() for mixture in mixtures)
        with torch.no_grad():
            for network in self.networks.values():
                if isinstance(network, Network):
                    network.in_offset.copy_(mean)
                    network.in_scale.copy_(deviation)


def check_bins(chosen: Sequence[Sizes], patches: Sequence[int], bins: int, most: int) -> None:
    """Refuse numbers of bins and frames that do not divide into the scales. Raises UsageError."""
    for one, patch in zip(chosen, patches, strict=True):
        low, high, full = (2 ** (len(blocks) // 2) for blocks in (one.low, one.high, one.full))
        if not one.split < bins <= most or (bins - one.split) % high or bins % full or one.split % low:
            raise UsageError(
                f"bins = {bins}: must be above {one.split} and at most {most}, and in whole steps of {full}, above "
                f"{one.split} of {high}, for {len(one.full)} and {len(one.high)} blocks"
            )
        if patch % full:
            raise UsageError(f"patch = {patch}: must be a multiple of {full}, for {len(one.full)} blocks")
