"""What masks and filters can reach at best when the true sources are known: the oracles of SiSEC 2018.

Ideal binary mask (IBM), ideal ratio masks of magnitudes and powers (IRM1, IRM2), and the multichannel Wiener filter
(MWF) with one spatial covariance per source and frequency (Liutkus and Stöter's public sigsep-mus-oracle).
Spectrograms have periodic Hann windows of 2048 samples every 1024, with zeros beyond the song, divided by the window's
sum. A song is done a stretch of frames at a time: memory holds sound, never a whole spectrogram. Arithmetic is float64.

Shapes: S sources, C channels, T samples, F bins, N frames.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from sepcli.errors import UsageError
from sepcli.metrics.sdr import stretch, validate

Oracle = Literal["ibm", "ibm2", "irm1", "irm2", "mwf"]

EPSILON = 2.0**-52
AT_ONCE = 64  # frames


def oracle(
    kind: Oracle,
    sources: Tensor,
    mixture: Tensor,
    *,
    threshold: float = 0.5,
    size: int = 2048,
    legacy: bool = False,
) -> Tensor:
    """Estimates (S, C, T) made from the mixture (C, T) with the help of the true sources (S, C, T), in their type.

    "ibm" and "ibm2" keep a bin where the source's magnitude (or power) is at least `threshold` of the mixture's,
    channel by channel: a bin can go to several sources, or to none. "irm1" and "irm2" share it by magnitudes or powers.
    "mwf" is for one or two channels; `legacy` has two slips of the public script, and so of the published SiSEC 2018
    scores: traces of the covariances over the wrong axes, and an epsilon too large for quiet bins. An accompaniment is
    the sum of the other estimates.
    """
    if kind not in get_args(Oracle):
        raise UsageError(f"oracle {kind!r} is unknown", f"it is one of {', '.join(get_args(Oracle))}")
    if sources.ndim != 3 or mixture.shape != sources.shape[1:]:
        shapes = f"{tuple(sources.shape)} and {tuple(mixture.shape)}"
        raise UsageError(f"sources and mixture have the shapes {shapes}", "they must be (S, C, T) and (C, T)")
    validate(sources, mixture.expand_as(sources), dimensions=3)
    if size < 2 or size % 2:
        raise UsageError(f"size = {size} is not possible", "windows have an even number of samples")
    if kind == "mwf" and sources.shape[1] > 2:
        raise UsageError(f"the oracle mwf cannot filter {sources.shape[1]} channels", "it takes one or two")
    covariances = _covariances(sources, size, legacy) if kind == "mwf" else None

    hop = size // 2
    window = torch.hann_window(size, dtype=torch.float64, device=sources.device)
    weight = window[:hop].square() + window[hop:].square()  # two windows lie over every sample
    estimates = torch.empty_like(sources)
    tail = torch.zeros(*sources.shape[:2], 1, hop, dtype=torch.float64, device=sources.device)
    for start, stop in _stretches(sources.shape[-1], hop):
        true, mixed = _spectrogram(sources, start, stop, size), _spectrogram(mixture, start, stop, size)
        if covariances is not None:
            masked = _wiener(true, mixed, covariances, legacy)
        else:
            masked = _mask(kind, true, mixed, threshold) * mixed
        frames = torch.fft.irfft(masked.mT, size) * (window * window.sum())  # (S, C, N, size)
        tails = torch.cat([tail, frames[..., hop:]], dim=-2)
        sound = ((tails[..., :-1, :] + frames[..., :hop]) / weight).flatten(-2)
        tail = tails[..., -1:, :]
        first = (start - 1) * hop  # frame 0 begins hop samples before the song
        low, high = max(first, 0), min(first + sound.shape[-1], sources.shape[-1])
        estimates[..., low:high] = sound[..., low - first : high - first]
    return estimates


def _stretches(length: int, hop: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 frame of each stretch; the frames together cover each sample twice."""
    count = -(-length // hop) + 1
    return ((start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE))


def _spectrogram(sound: Tensor, start: int, stop: int, size: int) -> Tensor:
    """Frames [start, stop) of (..., T) -> complex (..., F, N)."""
    hop = size // 2
    window = torch.hann_window(size, dtype=torch.float64, device=sound.device)
    frames = stretch(sound, (start - 1) * hop, stop * hop).unfold(-1, size, hop)  # (..., N, size)
    spectrogram: Tensor = torch.fft.rfft(frames * (window / window.sum()))
    return spectrogram.mT


def _mask(kind: str, true: Tensor, mixed: Tensor, threshold: float) -> Tensor:
    """Spectrograms (S, C, F, N) and (C, F, N) -> masks (S, C, F, N)."""
    power = 2 if kind in ("ibm2", "irm2") else 1
    strength = true.abs() ** power
    if kind in ("ibm", "ibm2"):
        return (strength / (EPSILON + mixed.abs() ** power) >= threshold).double()
    return strength / (EPSILON + strength.sum(0))


def _covariances(sources: Tensor, size: int, legacy: bool) -> Tensor:
    """Spatial covariance of each source and bin, of trace C: (S, F, C, C) complex."""
    channels = sources.shape[1]
    total, count = torch.zeros((), device=sources.device), 0
    for start, stop in _stretches(sources.shape[-1], size // 2):
        true = _spectrogram(sources, start, stop, size)
        level = EPSILON + true.abs().square().mean(1)  # (S, F, N)
        total = total + torch.einsum("scfn,sdfn,sfn->sfcd", true, true.conj(), (1 / level).to(true.dtype))
        count += stop - start
    mean = total / count
    if legacy:
        trace = torch.stack([mean[:, index, index] for index in range(channels)]).sum(0)[:, None, None]  # bins, rows
    else:
        trace = mean.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] + EPSILON
    return mean * channels / trace + EPSILON * torch.eye(channels, dtype=mean.dtype, device=mean.device)


def _wiener(true: Tensor, mixed: Tensor, covariances: Tensor, legacy: bool) -> Tensor:
    """Spectrograms (S, C, F, N) and (C, F, N) -> the mixture through each source's Wiener gain, (S, C, F, N)."""
    channels = true.shape[1]
    precision = _inverse(covariances, legacy)
    level = torch.einsum("sfcd,sdfn,scfn->sfn", precision, true, true.conj()).real / channels
    scaled = level[..., None, None] * covariances[:, :, None]  # (S, F, N, C, C)
    gain = scaled @ _inverse(scaled.sum(0), legacy)
    return torch.einsum("sfncd,dfn->scfn", gain, mixed)


def _inverse(matrix: Tensor, legacy: bool) -> Tensor:
    """Of (..., C, C), C 1 or 2, by formula; a determinant is kept above epsilon of the trace's square.

    The public script adds epsilon to it whatever the level: at the level of these spectrograms that takes away all but
    the loudest bins. (With its trace the matrices are not Hermitian either: the determinant is complex.)
    """
    a, d = matrix[..., 0, 0], matrix[..., -1, -1]
    if matrix.shape[-1] == 1:
        determinant, adjugate = a, torch.ones_like(matrix)
    else:
        b, c = matrix[..., 0, 1], matrix[..., 1, 0]
        determinant = a * d - b * c
        adjugate = torch.stack([torch.stack([d, -b], dim=-1), torch.stack([-c, a], dim=-1)], dim=-2)
    if legacy:
        determinant = determinant + EPSILON
    else:
        floor = EPSILON * ((a + d).real / 2) ** matrix.shape[-1]
        determinant = determinant.real.maximum(floor).clamp_min(torch.finfo(torch.float64).tiny)
    return adjugate / determinant[..., None, None]
