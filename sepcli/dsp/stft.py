"""Short-time Fourier transform and its inverse, for sounds of any length from one sample up."""

import torch
import torch.nn.functional as F
from torch import Tensor


def stft(signal: Tensor, window: Tensor, hop: int, *, centre: bool = True, normalised: bool = False) -> Tensor:
    """(..., T) -> complex spectrogram (..., F, N) with F = len(window) // 2 + 1.

    `centre`: frame k is centred at sample k * hop of the signal, which is extended by reflection; N = T // hop + 1.
    Otherwise frame k begins at sample k * hop and every frame lies within the signal, which has a window's length at
    least. `normalised` divides by sqrt(len(window)).
    """
    size = len(window)
    if centre:
        signal = reflect(signal, size // 2, size // 2)
    frames = torch.stft(
        signal.reshape(-1, signal.shape[-1]),
        size,
        hop,
        window=window,
        center=False,
        normalized=normalised,
        return_complex=True,
    )
    return frames.reshape(*signal.shape[:-1], *frames.shape[-2:])


def istft(spectrogram: Tensor, window: Tensor, hop: int, length: int, *, normalised: bool = False) -> Tensor:
    """Complex (..., F, N) -> (..., length): the inverse of a centred `stft`, by windowed overlap-add.

    The sum is divided by the sum of the squared windows, which must be above zero at every sample of the result.
    """
    signal = torch.istft(
        spectrogram.reshape(-1, *spectrogram.shape[-2:]),
        len(window),
        hop,
        window=window,
        normalized=normalised,
        length=length,
    )
    return signal.reshape(*spectrogram.shape[:-2], length)


def reflect(signal: Tensor, left: int, right: int) -> Tensor:
    """Extend (..., T) by its mirror image, the end samples not repeated.

    A signal that is too short to be mirrored so far is first extended with zeros, on the right as far as `right` goes,
    then on the left; the total is the same.
    """
    missing = max(left, right) + 1 - signal.shape[-1]
    if missing > 0:
        zeros_right = min(right, missing)
        zeros_left = missing - zeros_right
        signal = F.pad(signal, (zeros_left, zeros_right))
        left, right = left - zeros_left, right - zeros_right
    rows = signal.reshape(1, -1, signal.shape[-1])  # reflection wants two or three axes
    return F.pad(rows, (left, right), mode="reflect").reshape(*signal.shape[:-1], -1)
