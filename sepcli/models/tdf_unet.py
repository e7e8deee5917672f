"""A small U-Net on patches of a spectrogram, with layers across all frequencies: the bundled model `mini`.

The blocks, convolutions over time and frequency around a fully connected bottleneck over frequency, are those of Choi,
Kim, Chung, Jung and Lee, "Investigating U-Nets with various intermediate blocks for spectrogram-based singing voice
separation", ISMIR 2020 (arXiv:1912.02591), section 3. What differs is made for little data and little arithmetic:
one network for all sources, whose masks sum to one; several bins a row from the first layer on; group norm; only the
bins below some 11 kHz are looked at, the masks above follow those below.
"""

import math
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from sepcli.dsp.stft import istft, stft
from sepcli.errors import UsageError
from sepcli.models.separator import Estimate, Separator, Traits, require

SPREAD = 128
"""The masks above the bins that are looked at are the mean over so many of the highest ones."""


class Convolution(nn.Sequential):
    """Group norm, ReLU and convolution 3x3, dilated in time: (B, C, F, N) -> (B, `width`, F, N)."""

    def __init__(self, channels: int, width: int, groups: int, dilation: int = 1) -> None:
        super().__init__(
            nn.GroupNorm(groups, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, width, 3, padding=(1, dilation), dilation=(1, dilation)),
        )


class Frequencies(nn.Module):
    """A bottleneck across all rows, the same for each channel and frame: (B, C, F, N) -> (B, C, F, N)."""

    def __init__(self, channels: int, rows: int, kept: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.down = nn.Parameter(torch.empty(kept, rows).uniform_(-1, 1) * rows**-0.5)
        self.up = nn.Parameter(torch.empty(rows, kept).uniform_(-1, 1) * kept**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.matmul(self.down, functional.relu(self.norm1(x)))
        return torch.matmul(self.up, functional.relu(self.norm2(x)))


class Block(nn.Module):
    """Convolution, bottleneck across frequencies, convolution, and a way around all three (figure 5 of the paper)."""

    def __init__(self, channels: int, width: int, rows: int, *, squeeze: int, groups: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = Convolution(channels, width, groups, dilation)
        self.frequencies = Frequencies(width, rows, max(1, rows // squeeze), groups)
        self.second = Convolution(width, width, groups)
        self.around = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y + self.frequencies(y)
        out: Tensor = self.second(y) + self.around(x)
        return out


class TdfUNet(Separator):
    """One mask a source, channel, bin and frame from magnitudes of left, right, middle and side.

    `bins`: how many, from the lowest up, are looked at; `patch`: bins a row of the first scale. `widths`: channels of
    the scales; `time`: by how much each scale below the first is shorter in time than the one above. `blocks`: a
    scale's, down and up each. `deep`: blocks in the middle, with dilation 1, 2, 4, … . `squeeze`: by how much the
    layer across frequencies narrows. `groups`: of all group norms.
    """

    tiny: ClassVar = {"n_fft": 256, "hop": 64, "bins": 64, "widths": [4, 8], "time": [2], "groups": 2}

    def __init__(
        self,
        *,
        n_fft: int = 4096,
        hop: int = 1024,
        bins: int = 1024,
        patch: int = 4,
        widths: tuple[int, ...] = (32, 64, 96, 128),
        time: tuple[int, ...] = (2, 2, 2),
        blocks: int = 1,
        deep: int = 2,
        squeeze: int = 8,
        groups: int = 4,
        **traits: Unpack[Traits],
    ) -> None:
        super().__init__(**traits)
        scales = len(widths)
        for name, value in (("patch", patch), ("blocks", blocks), ("squeeze", squeeze), ("deep", deep)):
            require(name, value, at_least=1)
        if n_fft % 2 or not 1 <= hop <= n_fft // 2:
            raise UsageError(f"n_fft = {n_fft}, hop = {hop}: n_fft must be even, hop from 1 to half of it")
        if not 1 <= bins <= n_fft // 2 + 1 or bins % (patch * 2 ** (scales - 1)):
            what = f"a multiple of {patch * 2 ** (scales - 1)} of at most {n_fft // 2 + 1}"
            raise UsageError(f"bins = {bins}: must be {what} (patches of {patch}, {scales} scales)")
        if len(time) != scales - 1 or min(time, default=1) < 1:
            raise UsageError(
                f"time = {list(time)}: must be {scales - 1} numbers from 1, one for each scale but the first"
            )
        if any(width % groups for width in widths):
            raise UsageError(f"groups = {groups}: must divide all widths = {list(widths)}")
        self.hop, self.bins, self.patch = hop, bins, patch
        self.frames = math.prod(time)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.window: Tensor
        features = 2 * self.channels if self.channels == 2 else self.channels
        rows = [bins // patch // 2**scale for scale in range(scales)]

        def block(channels: int, scale: int, dilation: int = 1) -> Block:
            width = widths[scale]
            return Block(channels, width, rows[scale], squeeze=squeeze, groups=groups, dilation=dilation)

        self.first = nn.Conv2d(features * patch, widths[0], 3, padding=1)
        self.place = nn.Parameter(torch.zeros(widths[0], rows[0], 1))
        self.down = nn.ModuleList(
            nn.Sequential(*(block(widths[scale], scale) for _ in range(blocks))) for scale in range(scales - 1)
        )
        self.shrink = nn.ModuleList(
            nn.Conv2d(above, below, (2, step), (2, step))
            for above, below, step in zip(widths, widths[1:], time, strict=False)
        )
        self.middle = nn.Sequential(*(block(widths[-1], scales - 1, 2**i) for i in range(deep)))
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(below, above, (2, step), (2, step))
            for above, below, step in zip(widths, widths[1:], time, strict=False)
        )
        self.up = nn.ModuleList(
            nn.Sequential(block(2 * widths[scale], scale), *(block(widths[scale], scale) for _ in range(blocks - 1)))
            for scale in range(scales - 1)
        )
        self.last_norm = nn.GroupNorm(groups, widths[0])
        self.last = nn.Conv2d(widths[0] + features * patch, len(self.sources) * self.channels * patch, 1)

    @property
    def grid(self) -> int:
        return self.hop * self.frames

    def forward(self, mixture: Tensor) -> Estimate:
        spectrum = torch.view_as_real(stft(mixture, self.window, self.hop).transpose(-1, -2))  # (B, C, N, F, 2)
        low, high = spectrum[:, None, ..., : self.bins, :], spectrum[:, None, ..., self.bins :, :]
        masks = self.masks(spectrum[..., : self.bins, :]).unsqueeze(-1)
        above = masks[..., -min(SPREAD, self.bins) :, :].mean(dim=-2, keepdim=True)
        estimates = masks * low  # (B, S, C, N, bins, 2)
        whole = torch.view_as_complex(torch.cat([estimates, above * high], dim=-2)).transpose(-1, -2)
        waveforms = istft(whole, self.window, self.hop, mixture.shape[-1])
        return Estimate(waveforms, torch.view_as_complex(estimates).transpose(-1, -2))

    def reference(self, sources: Tensor) -> Estimate:
        """True sources with the bins of their spectrograms that are looked at, (B, S, C, bins, N)."""
        return Estimate(sources, stft(sources, self.window, self.hop)[..., : self.bins, :])

    def masks(self, spectrum: Tensor) -> Tensor:
        """The mixture's bins (B, C, N, bins, 2) -> masks (B, S, C, N, bins), the sum over S one everywhere."""
        frames = spectrum.shape[2]
        x = self.features(spectrum)  # (B, C', N, bins)
        x = functional.pad(x, (0, 0, 0, -frames % self.frames))
        x = torch.unflatten(x, 3, (-1, self.patch)).permute(0, 1, 4, 3, 2).flatten(1, 2)  # (B, C' * patch, rows, N)
        given = x
        x = self.first(x) + self.place
        skips = []
        for down, shrink in zip(self.down, self.shrink, strict=True):
            x = down(x)
            skips.append(x)
            x = shrink(x)
        x = self.middle(x)
        for grow, up in zip(reversed(self.grow), reversed(self.up), strict=True):
            x = up(torch.cat([grow(x), skips.pop()], dim=1))
        x = self.last(torch.cat([functional.relu(self.last_norm(x)), given], dim=1))
        x = torch.unflatten(x[..., :frames], 1, (len(self.sources), self.channels, self.patch))
        masks: Tensor = x.permute(0, 1, 2, 5, 4, 3).float().flatten(4).softmax(dim=1)
        return masks

    def features(self, spectrum: Tensor) -> Tensor:
        """Compressed magnitudes, of one loudness in each item: (B, C, N, bins, 2) -> (B, C', N, bins).

        Of stereo left, right, their mean and half their difference.
        """
        with torch.no_grad():  # nothing to learn before them, and the root of silence has no slope
            if self.channels == 2:
                left, right = spectrum[:, :1], spectrum[:, 1:]
                spectrum = torch.cat([spectrum, (left + right) / 2, (left - right) / 2], dim=1)
            power = spectrum.square().sum(dim=-1)
            loudness = power[:, : self.channels].mean(dim=(1, 2, 3), keepdim=True)
            return (power / (loudness + 1e-16)).sqrt().sqrt().sqrt()
