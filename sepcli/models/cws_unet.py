"""U-Net on channel-wise subbands, of five or six scales.

Liu, Xie, Wu and Yang, "Channel-wise Subband Input for Better Voice and Accompaniment Separation on High Resolution
Music", Interspeech 2020 (arXiv:2008.05216), section 2.1 and figure 2; where the paper is silent its authors' code
(haoheliu/Subband-Music-Separation) decides. Each source has a network of its own, which masks the mixture's subband
spectrogram (B, 2CK, F, N): frequency, then time.
"""

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from sepcli.errors import UsageError
from sepcli.models.separator import Estimate, Separator, Traits, require
from sepcli.nn.subbands import Subbands, separate


def double_convolution(channels: int, width: int) -> nn.Sequential:
    """Twice convolution 3x3, batch norm and ReLU: (B, `channels`, F, N) -> (B, `width`, F, N)."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


class Up(nn.Module):
    """Double rows and frames by interpolation, join the skip, convolve; whole channels are dropped in training."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.convolution = double_convolution(channels, width)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.upsample(x)
        rows, frames = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = functional.pad(x, (frames // 2, frames - frames // 2, rows // 2, rows - rows // 2))
        x = self.dropout(self.convolution(torch.cat([skip, x], dim=1)))
        return x


class UNet(nn.Module):
    """The network of one source (figure 2): (B, `channels`, F, N) -> a mask's logits of the same shape."""

    def __init__(self, channels: int, scales: int = 5, width: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(scales - 1)]
        self.first = double_convolution(channels, width)
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), double_convolution(above, below))
            for above, below in zip(widths, [*widths[1:], widths[-1]], strict=True)
        )
        self.up = nn.ModuleList(
            Up(2 * skip, narrower, dropout)
            for skip, narrower in zip(reversed(widths), reversed([width, *widths[:-1]]), strict=True)
        )
        self.last = nn.Conv2d(width, channels, 1)

    def forward(self, spectrum: Tensor) -> Tensor:
        x = self.first(spectrum)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up in self.up:
            x = up(x, skips.pop())
        logits: Tensor = self.last(x)
        return logits


class CwsUnet(Separator):
    """U-Net of five or six scales for each source, on the mixture's subbands (sections 2.1 and 2.3).

    `bands`: 1, 2, 4 or 8. `scales`: 5 or 6. `width`: channels of the first scale, 64 in the paper; a multiple of it
    below. `dropout`: chance of a channel to be dropped in training after each step up.

    Interpolation with aligned corners spreads a piece's frames over its whole length, so that what comes out depends
    on how long the piece is: all pieces have one length, `segment`, the last filled with zeros.
    """

    tiny: ClassVar = {"bands": 8, "width": 4}
    independent: bool = True

    def __init__(
        self, *, bands: int = 4, scales: int = 5, width: int = 64, dropout: float = 0.1, **traits: Unpack[Traits]
    ) -> None:
        super().__init__(**traits)
        if scales not in (5, 6):
            raise UsageError(f"scales = {scales}: must be 5 or 6")
        require("width", width, at_least=1)
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout = {dropout}: must be at least 0 and below 1")
        self.subbands = Subbands(bands, self.sample_rate, least=2 ** (scales - 1))
        channels = 2 * bands * self.channels
        self.networks = nn.ModuleDict({source: UNet(channels, scales, width, dropout) for source in self.sources})

    @property
    def grid(self) -> int:
        return self.subbands.frame

    def margins(self, length: int) -> tuple[int, int]:
        return 0, max(0, self.piece - length)

    def forward(self, mixture: Tensor) -> Estimate:
        return Estimate(*separate(mixture, self.subbands, self.networks.values()))

    def reference(self, sources: Tensor) -> Estimate:
        return Estimate(sources, self.subbands.analyse(self.subbands.pad(sources)))
