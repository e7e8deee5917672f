"""Open-Unmix, and X-UMX, which bridges its networks.

Stöter, Uhlich, Liutkus and Mitsufuji, "Open-Unmix - A Reference Implementation for Music Source Separation", JOSS 2019.
Sawata, Takahashi, Uhlich, Takahashi and Mitsufuji, "The Whole Is Greater than the Sum of Its Parts: Improving Music
Source Separation by Bridging Networks", 2024 (arXiv:2305.07855), section 3.3. Where the papers are silent their
authors' code decides (sigsep/open-unmix-pytorch 1.3.0; sony/ai-research-code, x-umx); parameters are named as in the
published files of Open-Unmix.

Each source has a network that masks the mixture's magnitudes; a multichannel Wiener filter makes sources of them.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from sepcli.dsp.statistics import bin_statistics
from sepcli.dsp.stft import istft, stft
from sepcli.dsp.wiener import initial_estimates, wiener
from sepcli.errors import UsageError
from sepcli.models.separator import Estimate, Separator, Traits, require
from sepcli.nn.bridge import average

Bridging = Literal["none", "BP1", "BP2", "BP3", "BP4", "BP5", "BP6", "BP7"]

GAPS: dict[Bridging, tuple[int, ...]] = {
    "none": (),
    "BP1": (1,),
    "BP2": (2,),
    "BP3": (3,),
    "BP4": (1, 2),
    "BP5": (1, 3),
    "BP6": (2, 3),
    "BP7": (1, 2, 3),
}
"""Where the sources' paths are averaged: 1 after the first affine block, 2 after the BLSTM's skip, 3 after the second
affine block. BP4 is the paper's best and the published networks'; the paper numbers the others in a figure only."""


class Network(nn.Module):
    """One source: affine block 1, BLSTM, affine blocks 2 and 3. Time comes first between the blocks: (N, B, H).

    `input_mean` and `input_scale` hold the negated mean and the inverse deviation of the training mixtures' bins.
    """

    def __init__(
        self, *, channels: int, bins: int, kept_bins: int, hidden: int, layers: int, bidirectional: bool
    ) -> None:
        super().__init__()
        self.channels = channels
        self.kept_bins = kept_bins
        self.input_mean = nn.Parameter(torch.zeros(kept_bins))
        self.input_scale = nn.Parameter(torch.ones(kept_bins))
        self.output_scale = nn.Parameter(torch.ones(bins))
        self.output_mean = nn.Parameter(torch.ones(bins))
        self.fc1 = nn.Linear(channels * kept_bins, hidden, bias=False)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.lstm = nn.LSTM(
            hidden,
            hidden // 2 if bidirectional else hidden,
            num_layers=layers,
            bidirectional=bidirectional,
            dropout=0.4 if layers > 1 else 0.0,
        )
        self.fc2 = nn.Linear(2 * hidden, hidden, bias=False)
        self.bn2 = nn.BatchNorm1d(hidden)
        self.fc3 = nn.Linear(hidden, channels * bins, bias=False)
        self.bn3 = nn.BatchNorm1d(channels * bins)

    def affine1(self, magnitudes: Tensor) -> Tensor:
        """(B, C, F, N) -> (N, B, H)."""
        x = magnitudes[:, :, : self.kept_bins].movedim(-1, 0)  # (N, B, C, F)
        x = (x + self.input_mean) * self.input_scale
        return torch.tanh(by_rows(self.bn1, self.fc1(x.flatten(2))))

    def blstm(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, B, H) twice -> (N, B, 2H)."""
        recurrent, _ = self.lstm(x)
        return torch.cat([skip, recurrent], dim=-1)

    def affine2(self, x: Tensor) -> Tensor:
        """(N, B, 2H) -> (N, B, H)."""
        return functional.relu(by_rows(self.bn2, self.fc2(x)))

    def affine3(self, x: Tensor) -> Tensor:
        """(N, B, H) -> the mask (B, C, F, N), from zero up without bound."""
        x = by_rows(self.bn3, self.fc3(x)).reshape(*x.shape[:2], self.channels, -1)  # (N, B, C, F)
        return functional.relu(x * self.output_scale + self.output_mean).permute(1, 2, 3, 0)


def by_rows(norm: nn.Module, x: Tensor) -> Tensor:
    """Batch normalisation over frames and items together: (N, B, H) -> (N, B, H)."""
    rows: Tensor = norm(x.flatten(0, 1))
    return rows.reshape(x.shape)


class OpenUnmix(Separator):
    """Open-Unmix (JOSS 2019), and X-UMX with `bridging` (arXiv:2305.07855, section 3.3).

    `bins` is the number of bins, from the lowest up, that the networks look at (1487: up to 16 kHz); masks cover all.
    With `bridged_skip` the skip around the BLSTM takes the averaged path, which is its own where gap 2 is bridged.

    In eval mode the magnitudes are refined by `wiener_iterations` of the multichannel Wiener filter in windows of
    `wiener_window` frames (0: the whole piece at once), counted from the song's start; without, they get the mixture's
    phase, or with `softmask` share the mixture. With `residual` the last source has no network: it is what the others
    leave. In training mode there is no refinement, and without bridges, as its authors train it, no frame that reaches
    over the ends: the waveforms fade there.
    """

    tiny: ClassVar = {"n_fft": 256, "hop": 64, "bins": 100, "hidden": 8, "layers": 2, "wiener_window": 4}

    def __init__(
        self,
        *,
        n_fft: int = 4096,
        hop: int = 1024,
        bins: int = 1487,
        hidden: int = 512,
        layers: int = 3,
        bidirectional: bool = True,
        bridging: Bridging = "none",
        bridged_skip: bool = False,
        wiener_iterations: int = 1,
        wiener_window: int = 300,
        wiener_eps: float = 1e-10,
        softmask: bool = False,
        residual: bool = False,
        **traits: Unpack[Traits],
    ) -> None:
        super().__init__(**traits)
        require("n_fft", n_fft, at_least=4)
        require("layers", layers, at_least=1)
        require("wiener_iterations", wiener_iterations, at_least=0)
        require("wiener_window", wiener_window, at_least=0)
        if n_fft % 2 or not 1 <= hop <= n_fft // 2:
            raise UsageError(f"n_fft = {n_fft}, hop = {hop}: n_fft must be even, hop from 1 to half of it")
        if not 1 <= bins <= n_fft // 2 + 1:
            raise UsageError(f"bins = {bins}: must be from 1 to {n_fft // 2 + 1}, the bins of n_fft = {n_fft}")
        if hidden < 2 or (bidirectional and hidden % 2):
            raise UsageError(f"hidden = {hidden}: must be at least 2, and even for a bidirectional LSTM")
        if wiener_iterations and (len(self.sources) == 1 or self.channels > 2):
            raise UsageError(
                f"wiener_iterations = {wiener_iterations}: must be 0 for sources = {list(self.sources)} and channels = "
                f"{self.channels}: the filter wants two sources at least, and one or two channels"
            )
        if wiener_eps <= 0:
            raise UsageError(f"wiener_eps = {wiener_eps}: must be above 0")
        if residual and len(self.sources) == 1:
            raise UsageError(f"residual = true: sources = {list(self.sources)} leaves no source but the residual")
        self.hop = hop
        self.gaps = GAPS[bridging]
        self.bridged_skip = bridged_skip
        self.wiener_iterations = wiener_iterations
        self.wiener_window = wiener_window
        self.wiener_eps = wiener_eps
        self.softmask = softmask
        self.residual = residual
        # Of the instance, since the settings decide: a filter, a bridge or a shared rest couples the sources.
        self.independent = not (self.gaps or wiener_iterations or softmask or residual)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.window: Tensor
        self.networks = nn.ModuleDict(
            {
                source: Network(
                    channels=self.channels,
                    bins=n_fft // 2 + 1,
                    kept_bins=bins,
                    hidden=hidden,
                    layers=layers,
                    bidirectional=bidirectional,
                )
                for source in (self.sources[:-1] if residual else self.sources)
            }
        )

    @property
    def grid(self) -> int:
        windows_count = self.wiener_iterations > 0 and self.wiener_window > 0
        return self.hop * self.wiener_window if windows_count else self.hop

    @property
    def piece(self) -> int:
        """From `segment`, down to whole windows of the Wiener filter: two at least, since pieces overlap by windows."""
        return max(2, super().piece // self.grid) * self.grid

    def forward(self, mixture: Tensor) -> Estimate:
        spectrum = stft(mixture, self.window, self.hop)  # (B, C, F, N)
        overhang = self.overhang(spectrum.shape[-1])
        spectrum = spectrum[..., overhang : spectrum.shape[-1] - overhang]
        mixture_magnitudes = spectrum.abs()
        magnitudes = self.masks(mixture_magnitudes) * mixture_magnitudes.unsqueeze(1)
        if self.training:
            estimates = initial_estimates(
                magnitudes, spectrum, eps=self.wiener_eps, residual=self.residual, softmask=self.softmask
            )
        else:
            estimates = wiener(
                magnitudes,
                spectrum,
                iterations=self.wiener_iterations,
                eps=self.wiener_eps,
                window=self.wiener_window,
                residual=self.residual,
                softmask=self.softmask,
            )
        if self.residual:
            magnitudes = torch.cat([magnitudes, estimates[:, -1:].abs()], dim=1)
        waveforms = istft(functional.pad(estimates, (overhang, overhang)), self.window, self.hop, mixture.shape[-1])
        return Estimate(waveforms, magnitudes)

    def reference(self, sources: Tensor) -> Estimate:
        """True sources with their magnitudes (B, S, C, F, N), of the frames that `forward` estimates."""
        magnitudes = stft(sources, self.window, self.hop).abs()
        overhang = self.overhang(magnitudes.shape[-1])
        return Estimate(sources, magnitudes[..., overhang : magnitudes.shape[-1] - overhang])

    def masks(self, magnitudes: Tensor) -> Tensor:
        """The mixture's magnitudes (B, C, F, N) -> masks (B, S, C, F, N), bridged at the chosen gaps."""
        networks = [network for network in self.networks.values() if isinstance(network, Network)]
        own = [network.affine1(magnitudes) for network in networks]
        paths = average(own) if 1 in self.gaps else own
        skips = paths if self.bridged_skip else own
        paths = [network.blstm(x, skip) for network, x, skip in zip(networks, paths, skips, strict=True)]
        paths = average(paths) if 2 in self.gaps else paths
        paths = [network.affine2(x) for network, x in zip(networks, paths, strict=True)]
        paths = average(paths) if 3 in self.gaps else paths
        return torch.stack([network.affine3(x) for network, x in zip(networks, paths, strict=True)], dim=1)

    def overhang(self, frames: int) -> int:
        """Frames at either end that reach over the sound and are left out in training, where some remain."""
        overhang = len(self.window) // 2 // self.hop if self.training and not self.gaps else 0
        return overhang if frames > 2 * overhang else 0

    def standardise(self, mixtures: Iterable[Tensor]) -> None:
        """Set each network's input mean and scale from whole mixtures (C, T), before training."""
        mean, deviation = bin_statistics(stft(mixture, self.window, self.hop).abs() for mixture in mixtures)
        with torch.no_grad():
            for network in self.networks.values():
                if isinstance(network, Network):
                    network.input_mean.copy_(-mean[: network.kept_bins])
                    network.input_scale.copy_(1 / deviation[: network.kept_bins])
