"""Channel-wise subband spectrograms: the input format of Liu et al., Interspeech 2020 (arXiv:2008.05216)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from sepcli.dsp import pqmf
from sepcli.dsp.stft import istft, stft
from sepcli.errors import UsageError


class Subbands(nn.Module):
    """Waveforms to spectrograms of K bands a channel, real and imaginary parts as channels, and back (section 2.3).

    A spectrogram is (..., 2CK, F, N) in the order left band 0 real, left band 0 imaginary, left band 1 real, ...,
    right band K-1 imaginary; one band is the waveform itself. Frames are 8 ms apart, as whole samples of a band; the
    window is the square root of Hann's over the next power of two above 32 ms, as in the authors' code
    (haoheliu/Subband-Music-Separation), where the paper says 32 ms: the published weights were trained with it.

    `period` and `least` say how many frames the network wants: `pad` makes N 2 more than a multiple of `period`, and
    at least `least`. So all lengths fall alike on a pooling grid of `period` frames. The filters' reach past the end
    is covered too: without the zeros the last 60 samples come back wrong.
    """

    window: Tensor
    analysis: Tensor
    synthesis: Tensor

    def __init__(self, bands: int, sample_rate: int, *, period: int = 1, least: int = 1) -> None:
        super().__init__()
        if bands not in (1, 2, 4, 8):
            raise UsageError(f"bands = {bands}: must be 1, 2, 4 or 8")
        if sample_rate < 8000:
            raise UsageError(f"sample_rate = {sample_rate}: must be at least 8000 for subbands")
        self.bands = bands
        self.period = period
        self.least = least
        self.hop = sample_rate * 8 // (1000 * bands)
        size = 1 << (sample_rate * 32 // (1000 * bands) - 1).bit_length()
        self.register_buffer("window", torch.hann_window(size).sqrt(), persistent=False)
        if bands > 1:
            analysis, synthesis = pqmf.filters(bands)
            self.register_buffer("analysis", analysis, persistent=False)
            self.register_buffer("synthesis", synthesis, persistent=False)

    @property
    def frame(self) -> int:
        """Samples of the song from one frame to the next."""
        return self.hop * self.bands

    @property
    def reach(self) -> int:
        """Samples that a sample sees around it on the way there and back, a network of single frames between."""
        return len(self.window) * self.bands + (2 * pqmf.TAPS if self.bands > 1 else 0)

    def pad(self, waveform: Tensor) -> Tensor:
        """Append zeros to waveforms (..., T), at least 64, for as many frames as the network wants."""
        length = waveform.shape[-1]
        frames = max(1 - (-(length + pqmf.TAPS) // self.frame), self.least)
        frames += (2 - frames) % self.period
        return functional.pad(waveform, (0, (frames - 1) * self.frame - length))

    def analyse(self, waveform: Tensor) -> Tensor:
        """(..., C, T) -> (..., 2CK, F, N) with N = T // frame + 1."""
        subbands = pqmf.analyse(waveform, self.analysis) if self.bands > 1 else waveform.unsqueeze(-2)
        spectrum = torch.view_as_real(stft(subbands, self.window, self.hop))  # (..., C, K, F, N, 2)
        return spectrum.movedim(-1, -3).flatten(-5, -3)

    def synthesise(self, spectrum: Tensor, length: int) -> Tensor:
        """(..., 2CK, F, N) -> (..., C, length), the inverse of `analyse` for at most (N - 1) * frame samples."""
        real, imaginary = torch.unflatten(spectrum, -3, (-1, self.bands, 2)).unbind(-3)  # (..., C, K, F, N) each
        samples = (spectrum.shape[-1] - 1) * self.hop
        subbands = istft(torch.complex(real, imaginary), self.window, self.hop, samples)
        waveform = pqmf.synthesise(subbands, self.synthesis) if self.bands > 1 else subbands.squeeze(-2)
        return waveform[..., :length]


def separate(mixture: Tensor, subbands: Subbands, networks: Iterable[nn.Module]) -> tuple[Tensor, Tensor]:
    """Mask a mixture (B, C, T) by each source's network: waveforms (B, S, C, T) and spectrograms (B, S, 2CK, F, N).

    The mask is the sigmoid of a network's output, one for the real and one for the imaginary part of each bin
    (sections 2.1 and 2.3): it turns a phase within its quadrant at most.
    """
    spectrum = subbands.analyse(subbands.pad(mixture))
    if spectrum.device.type == "cpu":  # convolutions are faster with the channels side by side: 1.1 to 1.3 times
        spectrum = spectrum.contiguous(memory_format=torch.channels_last)
    masked = torch.stack([network(spectrum).sigmoid() * spectrum for network in networks], dim=1)
    return subbands.synthesise(masked, mixture.shape[-1]), masked
