"""Energy ratios that need no filters: nSDR, SNR, SI-SDR, and the SDR of BSSEval v4 frame by frame.

The SDR of BSSEval v4 ("images") is the plain ratio of the reference's energy to the error's; only ISR, SIR and SAR need
the distortion filters of bss_eval.py. FrameSums makes it, and nSDR, of a song that comes in blocks. Sound is float32 or
float64, on any device that has float64; sums are float64, made block by block, so that a song is never copied whole.
Results are float64 on the CPU, in dB.

Shapes: S sources, C channels, T samples, N frames.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sepcli.errors import UsageError

Silence = Literal["museval", "score"]

STRETCH = 1 << 20  # samples of a whole song that are given to FrameSums at once


def validate(reference: Tensor, estimate: Tensor, dimensions: int | None = None) -> None:
    """Raise UsageError unless both are finite sound (..., C, T) of one shape on one device that has float64.

    `dimensions` is the number of axes asked for (3: sources, channels, samples); None allows any from two up.
    """
    if reference.shape != estimate.shape:
        shapes = f"{tuple(reference.shape)} and {tuple(estimate.shape)}"
        raise UsageError(f"references and estimates have the shapes {shapes}", "they must be equal")
    wanted = reference.ndim >= 2 if dimensions is None else reference.ndim == dimensions
    if not wanted or 0 in reference.shape:
        axes = "(..., channels, samples)" if dimensions is None else "(sources, channels, samples)"
        raise UsageError(f"sound of shape {tuple(reference.shape)} cannot be scored", f"it must be {axes}, none empty")
    if reference.device != estimate.device:
        raise UsageError(f"references are on {reference.device}, estimates on {estimate.device}", "use one device")
    if reference.device.type == "mps":
        raise UsageError("scores need float64, which the device mps does not have", "move the sound to the cpu")
    for name, sound in (("references", reference), ("estimates", estimate)):
        if not sound.is_floating_point():
            raise UsageError(f"{name} are {sound.dtype}, not floating point", "scale integers to -1..1 first")
        if not torch.isfinite(torch.stack(torch.aminmax(sound))).all():  # aminmax passes NaN on
            raise UsageError(f"{name} hold NaN or infinite samples", "such an estimate cannot be scored")


def stretch(sound: Tensor, start: int, stop: int) -> Tensor:
    """Samples [start, stop) of (..., T) in float64, zeros beyond either end."""
    length = sound.shape[-1]
    low, high = min(max(start, 0), length), min(max(stop, 0), length)
    return functional.pad(sound[..., low:high].double(), (low - start, stop - high))


def _blocks(reference: Tensor, estimate: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both signals as float64 blocks along the last axis.

    On a CPU each holds fewer than the 32,768 numbers that torch would share out to threads: it stays in the cache, and
    processes that score songs side by side do not wait for each other's threads.
    """
    most = 32_000 if reference.device.type == "cpu" else 1 << 24
    size = max(1, most // reference[..., 0].numel())
    for start in range(0, reference.shape[-1], size):
        yield reference[..., start : start + size].double(), estimate[..., start : start + size].double()


def _energies(reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Energy of the reference and of the error, (..., C, T) -> (...) each, summed over channels and samples."""
    signal = error = torch.zeros(reference.shape[:-2], dtype=torch.float64, device=reference.device)
    for true, guess in _blocks(reference, estimate):
        signal = signal + true.square().sum((-2, -1))
        error = error + (true - guess).square_().sum((-2, -1))
    return signal.cpu(), error.cpu()


def decibels(numerator: Tensor, denominator: Tensor) -> Tensor:
    """10 log10 of a ratio of energies; +inf where the denominator is 0, whatever the numerator, as museval has it."""
    ratio = 10 * torch.log10(numerator / denominator)
    return torch.where(denominator == 0, math.inf, ratio)


def nsdr(reference: Tensor, estimate: Tensor, delta: float = 1e-7) -> Tensor:
    """SDR of a whole song, as the Music Demixing Challenge 2021 defines it ("nSDR", also "uSDR", "global SDR").

    (..., C, T) twice -> (...) in dB: 10 log10((sum s^2 + delta) / (sum (s - estimate)^2 + delta)), sums over channels
    and samples. Silence for a silent reference scores 0 dB. The challenge averages over sources, then over songs.
    """
    validate(reference, estimate)
    signal, error = _energies(reference, estimate)
    return decibels(signal + delta, error + delta)


def snr(reference: Tensor, estimate: Tensor) -> Tensor:
    """Signal to error ratio of a whole song, (..., C, T) twice -> (...) in dB; NaN for a silent reference.

    The improvement of an estimate is snr(reference, estimate) - snr(reference, mixture).
    """
    validate(reference, estimate)
    signal, error = _energies(reference, estimate)
    return decibels(signal, error).masked_fill(signal == 0, math.nan)


def si_sdr(reference: Tensor, estimate: Tensor, per_channel: bool = False, eps: float = 1e-8) -> Tensor:
    """Scale-invariant SDR (Le Roux et al. 2019, "SDR - half-baked or well done?"), (..., C, T) twice -> (...) in dB.

    The reference is scaled to the estimate by least squares; no mean is removed. There is no standard for more than one
    channel: here one scale serves all channels, or, with `per_channel`, each has its own and their scores are averaged.
    eps is added to each energy, so that silence for silence scores 0 dB.
    """
    validate(reference, estimate)
    axes = (-1,) if per_channel else (-2, -1)
    shape = reference.shape[:-1] if per_channel else reference.shape[:-2]
    product = energy = torch.zeros(shape, dtype=torch.float64, device=reference.device)
    for true, guess in _blocks(reference, estimate):
        product = product + (true * guess).sum(axes)
        energy = energy + true.square().sum(axes)
    scale = (product + eps) / (energy + eps)
    error = torch.zeros_like(scale)
    for true, guess in _blocks(reference, estimate):
        error = error + (scale.reshape(*shape, *(1 for _ in axes)) * true - guess).square_().sum(axes)
    score = decibels(scale.square() * energy + eps, error + eps).cpu()
    return score.mean(-1) if per_channel else score


def frame_slices(length: int, window: float, hop: float) -> list[slice]:
    """The frames of a song of `length` samples as museval cuts them; window and hop in samples, not always whole.

    floor((length - window + hop) / hop) frames where the window is shorter than the song (the partial one at the end
    is dropped), else one over the whole song, also for an infinite window or hop.
    """
    if length < 1 or not window > 0 or not hop > 0:
        raise UsageError(f"frames of {window} samples every {hop} in {length}", "each must be more than 0")
    if window >= length:
        return [slice(0, length)]
    if math.isinf(hop):
        return [slice(0, math.floor(window))]
    count = math.floor((length - window + hop) / hop)
    return [slice(math.floor(i * hop), math.floor(min(i * hop + window, length))) for i in range(count)]


def silent(sound: Tensor) -> Tensor:
    """Whether the sum of the channels is exactly 0 throughout, (..., C, T) -> (...): museval's notion of silence.

    A stereo signal whose right channel is the negative of the left counts as silent.
    """
    loud = torch.zeros(sound.shape[:-2], dtype=torch.bool, device=sound.device)
    start, size = 0, 1024  # nearly always the first thousand samples tell
    while start < sound.shape[-1] and not bool(loud.all()):
        loud = loud | sound[..., start : start + size].double().sum(-2).ne(0).any(-1)
        start, size = start + size, 4 * size
    return ~loud


def unscored_frames(references: Tensor, estimates: Tensor, frames: list[slice], silence: Silence) -> tuple[Tensor, ...]:
    """Where scores are missing for silence, (S, C, T) twice -> two bool (S, N) on the CPU: for SDR, and for the others.

    "museval": one silent reference or estimate takes the frame from every source and metric, and a wholly silent one
    takes the song (where museval refuses). "score": a silent reference takes its own frames only; a silent estimate
    keeps its SDR, 0 dB by the formula, and has no ISR, SIR, SAR.
    """
    no_reference = torch.stack([silent(references[..., frame]) for frame in frames], dim=-1).cpu()
    no_estimate = torch.stack([silent(estimates[..., frame]) for frame in frames], dim=-1).cpu()
    mute = [
        # without a frame that is silent, no source is silent throughout
        silent(sound).cpu() if bool(no_frame.all(-1).any()) else torch.zeros(len(sound), dtype=torch.bool)
        for sound, no_frame in ((references, no_reference), (estimates, no_estimate))
    ]
    return _unscored(no_reference, no_estimate, torch.stack(mute), silence)


def _unscored(no_reference: Tensor, no_estimate: Tensor, mute: Tensor, silence: Silence) -> tuple[Tensor, Tensor]:
    """The rules of `unscored_frames` for frames known as silent (S, N), and songs silent throughout (2, S)."""
    if silence not in ("museval", "score"):
        raise UsageError(f"silence = {silence!r} is unknown", "it is museval or score")
    if silence == "score":
        return no_reference, no_reference | no_estimate
    missing = ((no_reference | no_estimate).any(0) | mute.any()).expand_as(no_reference)
    return missing, missing


class FrameSums:
    """Energies of references and of errors, in each frame and in all, of a song whose blocks come one after another.

    window and hop in samples; frames as in `frame_slices`, which are known only when the song has ended. `scaled`: with
    the products that `si_sdr` wants.
    """

    def __init__(self, window: float, hop: float, *, scaled: bool = False) -> None:
        frame_slices(1, window, hop)  # refuses what cannot be
        self.window, self.hop = window, hop if math.isfinite(window) else math.inf
        self.length = 0
        self.frames: list[tuple[Tensor, Tensor]] = []
        """Energies of reference and error in each frame, and whether reference and estimate are silent; (2, S) both."""
        self.whole = torch.zeros(()), torch.ones((), dtype=torch.bool)
        """The same of the whole song."""
        self.products = torch.zeros((), dtype=torch.float64) if scaled else None
        """Of reference and error in the whole song, (S,)."""

    def add(self, references: Tensor, estimates: Tensor) -> None:
        """The next block, (S, C, n) twice. Raises UsageError where it is not finite."""
        start, stop = self.length, self.length + references.shape[-1]
        frames = self._overlapping(start, stop)
        inner = (math.floor(edge) for frame in frames for edge in frame[1:] if start < edge < stop)
        for low, high in itertools.pairwise(sorted({start, stop, *inner})):
            true, guess = (sound[..., low - start : high - start] for sound in (references, estimates))
            sums = torch.stack(_energies(true, guess)), torch.stack([silent(true), silent(guess)]).cpu()
            if not bool(sums[0].isfinite().all()):
                validate(true, guess)
            self.whole = _joined(self.whole, sums)
            for index, begin, end in frames:
                if begin >= low + 1 or end < high:
                    continue
                if index == len(self.frames):
                    self.frames.append(sums)
                else:
                    self.frames[index] = _joined(self.frames[index], sums)
        if self.products is not None:
            for true, guess in _blocks(references, estimates):
                self.products = self.products + (true * (true - guess)).sum((-2, -1)).cpu()
        self.length = stop

    def _overlapping(self, start: int, stop: int) -> list[tuple[int, float, float]]:
        """Number, begin and end of the frames that overlap [start, stop); begin and end are not yet whole samples."""
        first = 0 if math.isinf(self.hop) else max(0, int((start - self.window) // self.hop)) if start else 0
        begins = ((index, index * self.hop if index else 0.0) for index in itertools.count(first))
        reached = itertools.takewhile(lambda frame: frame[1] < stop, begins)
        return [(index, begin, begin + self.window) for index, begin in reached]

    def nsdr(self, delta: float = 1e-7) -> Tensor:
        """`nsdr` of each source: (S,)."""
        signal, error = self.whole[0]
        return decibels(signal + delta, error + delta)

    def si_sdr(self, eps: float = 1e-8) -> Tensor:
        """`si_sdr` of each source, one scale for all channels: (S,). From the error's sums, which keeps small ones."""
        assert self.products is not None
        signal, error = self.whole[0]
        rest = self.products / (signal + eps)  # what the scale lacks to 1
        remaining = (error - 2 * rest * self.products + rest.square() * signal).clamp_min(0)
        return decibels((1 - rest).square() * signal + eps, remaining + eps)

    def sdr(self, silence: Silence, rows: Sequence[int] | None = None) -> Tensor:
        """`sdr_frames` of the sources `rows` (none given: all), which are scored together: (S, N)."""
        count = len(frame_slices(self.length, self.window, self.hop))
        energies, mute = (torch.stack(values, dim=-1) for values in zip(*self.frames[:count], strict=True))
        chosen = slice(None) if rows is None else list(rows)
        signal, error = energies[:, chosen]  # (S, N) each
        missing, _ = _unscored(mute[0, chosen], mute[1, chosen], self.whole[1][:, chosen], silence)
        return decibels(signal, error).masked_fill(missing, math.nan)


def _joined(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return first[0] + second[0], first[1] & second[1]


def sdr_frames(
    references: Tensor, estimates: Tensor, window: float, hop: float, *, silence: Silence = "museval"
) -> Tensor:
    """SDR of BSSEval v4 frame by frame without its filters: (S, C, T) twice -> (S, N) in dB, NaN where not scored.

    window and hop in samples, frames as in `frame_slices`, silence as in `unscored_frames`. A song where museval would
    refuse (a source or an estimate wholly silent) is all NaN.
    """
    validate(references, estimates, dimensions=3)
    sums = FrameSums(window, hop)
    for start in range(0, references.shape[-1], STRETCH):
        sums.add(references[..., start : start + STRETCH], estimates[..., start : start + STRETCH])
    return sums.sdr(silence)
