"""SCNet: Sparse Compression Network for Music Source Separation (Tong et al., arXiv:2401.13276).

The spectrogram is split into three bands that are compressed the more the higher they are, a dual-path network works on
what is left, alternately over frames and over their Fourier transform, and the sources' spectrograms are made directly,
without masks. Parameters are named as in the published files. B batch, W width of a layer, F bins, N frames.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from sepcli.dsp.stft import istft, stft
from sepcli.errors import UsageError
from sepcli.models.separator import Estimate, Separator, Traits, require

Bands = tuple[int, int, int]


class Residual(nn.Module):
    """Convolution module of a band (section 2.2): each bin's frames (B * F, W, N) through gated residual layers."""

    def __init__(self, width: int, depth: int, compress: int) -> None:
        super().__init__()
        hidden = width // compress
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, width),
                nn.Conv1d(width, 2 * hidden, 3, padding=1),
                nn.GLU(1),
                nn.Conv1d(hidden, hidden, 3, padding=1, groups=hidden),
                nn.GroupNorm(1, hidden),
                nn.SiLU(),
                nn.Conv1d(hidden, width, 1),
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class Down(nn.Module):
    """Sparse down-sampling (section 2.2): bins (B, W, F, N) in three bands, each by its own stride."""

    def __init__(self, below: int, width: int, shares: Sequence[float], strides: Bands, kernels: Bands) -> None:
        super().__init__()
        self.shares = shares
        self.convs = nn.ModuleList(
            nn.Conv2d(below, width, (kernel, 1), (stride, 1)) for kernel, stride in zip(kernels, strides, strict=True)
        )

    def lengths(self, bins: int) -> list[int]:
        """How many of the bins each band has."""
        low, middle = (math.ceil(bins * share) for share in (self.shares[0], self.shares[0] + self.shares[1]))
        return [low, middle - low, bins - middle]

    def forward(self, x: Tensor) -> list[Tensor]:
        bands = []
        for convolution, band in zip(self.convs, torch.split(x, self.lengths(x.shape[2]), dim=2), strict=True):
            assert isinstance(convolution, nn.Conv2d)
            kernel, stride = convolution.kernel_size[0], convolution.stride[0]
            missing = kernel - 1 if stride == 1 else -band.shape[2] % stride
            band = functional.pad(band, (0, 0, missing // 2, missing - missing // 2))
            bands.append(convolution(band))
        return bands


class Encoder(nn.Module):
    """Sparse down-sampling block: (B, W, F, N) -> what goes on, the skip, and each band's bins in it."""

    def __init__(
        self,
        below: int,
        width: int,
        shares: Sequence[float],
        strides: Bands,
        kernels: Bands,
        depths: Sequence[int],
        compress: int,
    ) -> None:
        super().__init__()
        self.SDlayer = Down(below, width, shares, strides, kernels)
        self.conv_modules = nn.ModuleList(Residual(width, depth, compress) for depth in depths)
        self.globalconv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        bands = []
        for module, band in zip(self.conv_modules, self.SDlayer(x), strict=True):
            rows = band.movedim(1, 2)  # (B, F, W, N)
            rows = module(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
            bands.append(functional.gelu(rows.movedim(1, 2)))
        skip = torch.cat(bands, dim=2)
        return self.globalconv(skip), skip, [band.shape[2] for band in bands]


class Fusion(nn.Module):
    """What comes from below and the skip, summed, doubled and gated (section 2.4).

    The convolution is given the same channels twice: once, with the sum of both halves' kernels, is half the work.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * width, 2 * width, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        kernels = torch.add(*self.conv.weight.chunk(2, dim=1))
        return functional.glu(functional.conv2d(x + skip, kernels, self.conv.bias, padding=1), dim=1)


class Up(nn.Module):
    """Sparse up-sampling: each band back to the bins that it had."""

    def __init__(self, width: int, above: int, strides: Bands, kernels: Bands) -> None:
        super().__init__()
        self.convtrs = nn.ModuleList(
            nn.ConvTranspose2d(width, above, (kernel, 1), (stride, 1))
            for kernel, stride in zip(kernels, strides, strict=True)
        )

    def forward(self, x: Tensor, lengths: list[int], wanted: list[int]) -> Tensor:
        bands = []
        for convolution, band, bins in zip(self.convtrs, torch.split(x, lengths, dim=2), wanted, strict=True):
            band = convolution(band)
            first = abs(band.shape[2] - bins) // 2
            bands.append(band[:, :, first : first + bins])
        return torch.cat(bands, dim=2)


class Decoder(nn.ModuleList):
    """Sparse up-sampling block: fusion, then the bands' own bins."""

    def forward(self, x: Tensor, skip: Tensor, lengths: list[int], wanted: list[int]) -> Tensor:
        fusion, up = self
        spread: Tensor = up(fusion(x, skip), lengths, wanted)
        return spread


class DualPath(nn.Module):
    """An LSTM along the bins of each frame, then one along the frames of each bin (section 2.3): (B, W, F, N)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm_layers = nn.ModuleList(nn.LSTM(width, width, bidirectional=True) for _ in range(2))
        self.linear_layers = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.norm_layers = nn.ModuleList(nn.GroupNorm(1, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for path, along in enumerate((2, 3)):
            axes = (along, 0, 5 - along)  # steps first, as LSTMs want them: (F, B, N, W), (N, B, F, W)
            rows = self.norm_layers[path](x).movedim(axes, (0, 1, 2))
            y = self.linear_layers[path](self.lstm_layers[path](rows.flatten(1, 2))[0])
            x = x + y.unflatten(1, rows.shape[1:3]).movedim((0, 1, 2), axes)
        return x


class DualPaths(nn.Module):
    """Dual-path layers, those of odd number on the frames' Fourier transform, with twice the width."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.dp_modules = nn.ModuleList(DualPath(width * (1 + layer % 2)) for layer in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, F, N) -> the same; N is even."""
        for number, layer in enumerate(self.dp_modules):
            x = layer(x).float()  # half precision has no Fourier transform
            if number % 2:
                x = torch.fft.irfft(torch.complex(*x.chunk(2, dim=1)), dim=3, norm="ortho")
            else:
                spectrum = torch.fft.rfft(x, dim=3, norm="ortho")
                x = torch.cat([spectrum.real, spectrum.imag], dim=1)
        return x


class SCNet(Separator):
    """The network of the public trainer (ZFTurbo/Music-Source-Separation-Training), with which its files were scored.

    `widths`: of the three encoders. `shares` of the bins that the low and the middle band have. `strides`, `kernels`:
    of each band's compression; `depths` of its convolution modules, whose inner width is `compress` times smaller.
    `layers`: of the dual path, an even number. `standardise`: the spectrogram of the piece is brought to mean 0 and
    deviation 1, as the first author's own class does since 2024-09-24 and the published files do not want.

    The Fourier transform over a piece's frames makes what comes out depend on how long the piece is: all pieces have
    one length, `segment`, which the authors mirror, fade and overlap.
    """

    tiny: ClassVar = {"widths": [4, 8, 8], "layers": 2}
    fade = "tenth"
    edge = "reflect"
    overlaps: ClassVar = {"fast": 0.1, "normal": 0.5, "best": 0.75}
    quality: ClassVar = {"cuda": "best"}  # the reasons stand beside the entries in weights.toml
    rectangle: Tensor

    def __init__(
        self,
        *,
        widths: tuple[int, int, int] = (32, 64, 128),
        shares: tuple[float, float] = (0.175, 0.392),
        strides: tuple[int, int, int] = (1, 4, 16),
        kernels: tuple[int, int, int] = (3, 4, 16),
        depths: tuple[int, int, int] = (3, 2, 1),
        compress: int = 4,
        layers: int = 6,
        n_fft: int = 4096,
        hop: int = 1024,
        standardise: bool = False,
        **traits: Unpack[Traits],
    ) -> None:
        super().__init__(**traits)
        require("compress", compress, at_least=1)
        for name, values in (("widths", widths), ("strides", strides), ("depths", depths)):
            require(name, min(values), at_least=compress if name == "widths" else 1)
        if any(kernel < stride for kernel, stride in zip(kernels, strides, strict=True)):
            raise UsageError(f"kernels = {list(kernels)}: none may be smaller than its stride in {list(strides)}")
        if min(shares) <= 0 or sum(shares) >= 1:
            raise UsageError(f"shares = {list(shares)}: must be above 0 and leave something to the third band")
        if layers < 2 or layers % 2:
            raise UsageError(f"layers = {layers}: must be an even number above 0")
        if hop < 1 or n_fft < 2 * hop:
            raise UsageError(f"n_fft = {n_fft}: must be at least twice the hop, {hop}")
        self.hop = hop
        self.standardise = standardise
        self.register_buffer("rectangle", torch.ones(n_fft), persistent=False)
        spectra = 2 * self.channels  # real and imaginary parts
        chain = [spectra, *widths]
        self.encoder = nn.ModuleList(
            Encoder(below, width, shares, strides, kernels, depths, compress)
            for below, width in zip(chain, widths, strict=False)
        )
        self.separation_net = DualPaths(widths[-1], layers)
        above = [spectra * len(self.sources), *widths]
        self.decoder = nn.ModuleList(
            Decoder([Fusion(width), Up(width, out, strides, kernels)])
            for width, out in reversed(list(zip(widths, above, strict=False)))
        )

    def margins(self, length: int) -> tuple[int, int]:
        return 0, max(0, self.piece - length)

    def forward(self, mixture: Tensor) -> Estimate:
        samples = mixture.shape[-1]
        frames = samples // self.hop + 1  # of zeros behind the sound there is at least one
        padded = functional.pad(mixture, (0, (frames + 1 - frames % 2) * self.hop - samples))  # N is even
        spectrum = torch.view_as_real(stft(padded, self.rectangle, self.hop, normalised=True))  # (B, C, F, N, 2)
        x = spectrum.movedim(-1, 2).flatten(1, 2)  # (B, 2C, F, N)
        if self.standardise:
            mean, deviation = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
            x = self.separate((x - mean) / (1e-5 + deviation)) * deviation + mean
        else:
            x = self.separate(x)
        parts = torch.unflatten(x.float(), 1, (len(self.sources), self.channels, 2))  # (B, S, C, 2, F, N)
        spectra = torch.view_as_complex(parts.movedim(3, -1).contiguous())
        return Estimate(istft(spectra, self.rectangle, self.hop, samples, normalised=True))

    def separate(self, x: Tensor) -> Tensor:
        """Spectrum of the mixture (B, 2C, F, N) -> spectra of the sources (B, S * 2C, F, N)."""
        taken = []
        for encoder in self.encoder:
            assert isinstance(encoder, Encoder)
            before = encoder.SDlayer.lengths(x.shape[2])
            x, skip, lengths = encoder(x)
            taken.append((skip, lengths, before))
        x = self.separation_net(x)
        for decoder in self.decoder:
            skip, lengths, before = taken.pop()
            x = decoder(x, skip, lengths, before)
        return x
