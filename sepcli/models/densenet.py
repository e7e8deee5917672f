"""MDenseNet and MMDenseNet on channel-wise subbands.

Liu, Xie, Wu and Yang, "Channel-wise Subband Input for Better Voice and Accompaniment Separation on High Resolution
Music", Interspeech 2020 (arXiv:2008.05216), section 2.2 and table 1; after Takahashi and Mitsufuji, "Multi-scale
multi-band DenseNets for audio source separation", WASPAA 2017. Where the paper is silent its authors' code
(haoheliu/Subband-Music-Separation) decides, and names of parameters are those of its published file.

Each source has a network of its own, which masks the mixture's subband spectrogram; estimates need not sum to the
mixture. Spectrograms are (B, 2CK, F, N): frequency, then time.
"""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from sepcli.errors import UsageError
from sepcli.models.separator import Estimate, Separator, Traits
from sepcli.nn.subbands import Subbands, separate

Block = tuple[int, int]
"""Channels k that each layer of a dense block adds, and its number of layers L."""


class DenseLayer(nn.Module):
    """Batch norm, ReLU, convolution 3x3: (B, `channels`, F, N) -> (B, `growth`, F, N)."""

    def __init__(self, channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout = {dropout}: must be at least 0 and below 1")
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, growth, 3, padding=1, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(functional.relu(self.norm2(x), inplace=True))
        return functional.dropout(x, self.dropout, self.training)


class DenseBlock(nn.Module):
    """Layers that each see the block's input and all layers before; out comes the last layer's output alone."""

    def __init__(self, channels: int, block: Block, dropout: float) -> None:
        super().__init__()
        growth, layers = block
        self.layers = nn.ModuleDict(
            {f"denselayer{i + 1}": DenseLayer(channels + i * growth, growth, dropout) for i in range(layers)}
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers.values():
            features.append(layer(torch.cat(features, dim=1)))
        return features[-1]


class Trunk(nn.Module):
    """Dense blocks down and up the scales, with skips: (B, `channels`, F, N) -> (B, k of the last block, F, N).

    Table 1 of the paper, from `conv` to the last dense block. The first convolution has no padding and pooling drops
    an odd row or frame; what is missing on the way up is replicated from the lowest row and the earliest frame.
    """

    def __init__(
        self, channels: int, kernel: tuple[int, int], down: Sequence[Block], up: Sequence[Block], dropout: float
    ) -> None:
        super().__init__()
        widths = [k for k, _ in down]
        self.first_conv = nn.Conv2d(channels, 32, kernel)
        # The last of these is never used; it stands in the published file all the same.
        self.downsample_layers = nn.ModuleList(nn.Sequential(nn.Conv2d(k, k, 1), nn.MaxPool2d(2)) for k in widths)
        self.downsample_layers[-1].requires_grad_(False)
        self.upsample_layers = nn.ModuleList()
        blocks = [DenseBlock(width, block, dropout) for width, block in zip([32, *widths], down, strict=False)]
        width = widths[-1]
        for skip, block in zip(reversed(widths[:-1]), up, strict=True):
            self.upsample_layers.append(nn.ConvTranspose2d(width, width, 2, stride=2))
            blocks.append(DenseBlock(width + skip, block, dropout))
            width = block[0]
        self.dense_layers = nn.ModuleList(blocks)

    def forward(self, spectrum: Tensor) -> Tensor:
        scales = len(self.downsample_layers)
        x = self.first_conv(spectrum)
        skips = []
        for dense, down in zip(self.dense_layers[: scales - 1], self.downsample_layers[:-1], strict=True):
            x = dense(x)
            skips.append(x)
            x = down(x)
        x = self.dense_layers[scales - 1](x)
        for dense, up in zip(self.dense_layers[scales:], self.upsample_layers, strict=True):
            skip = skips.pop()
            x = dense(torch.cat([grow(up(x), skip), skip], dim=1))
        return grow(x, spectrum)


def grow(x: Tensor, like: Tensor) -> Tensor:
    """Extend (B, H, F, N) to the rows and frames of `like`, by its lowest row and its earliest frame."""
    rows, frames = like.shape[2] - x.shape[2], like.shape[3] - x.shape[3]
    return functional.pad(x, (frames, 0, rows, 0), mode="replicate") if rows or frames else x


class SingleTrunk(nn.Module):
    """MDenseNet of one source (table 1, right column): (B, `channels`, F, N) -> a mask's logits of the same shape."""

    def __init__(self, channels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.model = Trunk(channels, (3, 3), [(14, 4), *[(16, 4)] * 4], [(16, 4)] * 4, dropout)
        # The authors' code gives this block its own dropout, whatever the setting.
        self.out = nn.Sequential(DenseBlock(16, (32, 2), 0.1), nn.Conv2d(32, channels, 1))

    def forward(self, spectrum: Tensor) -> Tensor:
        logits: Tensor = self.out(self.model(spectrum))
        return logits


class MultiTrunk(nn.Module):
    """MMDenseNet of one source (table 1): trunks for the lower half, the upper half and all of each band's bins.

    (B, `channels`, F, N) -> a mask's logits of the same shape. `full_kernel` is rows and frames of the full trunk's
    first convolution.
    """

    def __init__(self, channels: int, full_kernel: tuple[int, int] = (3, 3), dropout: float = 0.1) -> None:
        super().__init__()
        self.low = Trunk(channels, (4, 3), [(14, 4), *[(16, 4)] * 3], [(16, 4)] * 3, dropout)
        self.high = Trunk(channels, (3, 3), [(10, 3)] * 4, [(10, 3), (10, 3), (16, 3)], dropout)
        self.full = Trunk(channels, full_kernel, [(6, 2)] * 4, [(6, 2)] * 3, dropout)
        self.out = nn.Sequential(DenseBlock(16 + 6, (32, 2), dropout), nn.Conv2d(32, channels, 1))

    def forward(self, spectrum: Tensor) -> Tensor:
        middle = spectrum.shape[2] // 2
        halves = torch.cat([self.low(spectrum[:, :, :middle]), self.high(spectrum[:, :, middle:])], dim=2)
        logits: Tensor = self.out(torch.cat([halves, self.full(spectrum)], dim=1))
        return logits


class MDenseNet(Separator):
    """MDenseNet of scale 5 for each source, on the mixture's subbands (sections 2.2 and 2.3).

    `bands`: 1, 2, 4 or 8. `dropout`: chance of each output of a dense layer to be dropped in training.
    """

    unused: ClassVar[tuple[str, ...]] = (r"downsample_layers\.4\.",)
    tiny: ClassVar = {"bands": 8}
    independent: bool = True

    def __init__(self, *, bands: int = 8, dropout: float = 0.1, **traits: Unpack[Traits]) -> None:
        super().__init__(**traits)
        self.subbands = Subbands(bands, self.sample_rate, period=16, least=18)
        width = 2 * bands * self.channels
        self.networks = nn.ModuleDict({source: SingleTrunk(width, dropout) for source in self.sources})

    @property
    def context(self) -> int:
        return 203 * self.subbands.frame + self.subbands.reach  # the furthest frame seen through all pooling phases

    @property
    def grid(self) -> int:
        return 16 * self.subbands.frame

    def forward(self, mixture: Tensor) -> Estimate:
        return Estimate(*separate(mixture, self.subbands, self.networks.values()))

    def reference(self, sources: Tensor) -> Estimate:
        return Estimate(sources, self.subbands.analyse(self.subbands.pad(sources)))


class MMDenseNet(Separator):
    """MMDenseNet of scale 4 for each source, on the mixture's subbands (sections 2.2 and 2.3).

    `bands` and `dropout` as in MDenseNet. `full_kernel`: rows and frames of the full trunk's first convolution, [3, 3]
    in the paper, [4, 3] in its authors' code.
    """

    unused: ClassVar[tuple[str, ...]] = (r"downsample_layers\.3\.",)
    tiny: ClassVar = {"bands": 8}
    independent: bool = True

    def __init__(
        self,
        *,
        bands: int = 1,
        full_kernel: tuple[int, int] = (3, 3),
        dropout: float = 0.1,
        **traits: Unpack[Traits],
    ) -> None:
        super().__init__(**traits)
        full_kernel = (full_kernel[0], full_kernel[1])  # a list where it comes from TOML
        if full_kernel not in ((3, 3), (4, 3)):
            raise UsageError(f"full_kernel = {list(full_kernel)}: must be [3, 3] or [4, 3]")
        self.subbands = Subbands(bands, self.sample_rate, period=8, least=10)
        width = 2 * bands * self.channels
        self.networks = nn.ModuleDict({source: MultiTrunk(width, full_kernel, dropout) for source in self.sources})

    @property
    def context(self) -> int:
        return 99 * self.subbands.frame + self.subbands.reach

    @property
    def grid(self) -> int:
        return 8 * self.subbands.frame

    def forward(self, mixture: Tensor) -> Estimate:
        return Estimate(*separate(mixture, self.subbands, self.networks.values()))

    def reference(self, sources: Tensor) -> Estimate:
        return Estimate(sources, self.subbands.analyse(self.subbands.pad(sources)))
