"""BSSEval v4 ("images", Vincent et al. 2006; Stöter, Liutkus and Ito 2018) with the numbers of museval 0.4.1, fast.

An estimate is laid beside two projections: on what short filters can make of its own source alone (own), and of all
sources (every). Per frame and source, |.|^2 summing over samples and channels:

    SDR = |S|^2 / |E - S|^2            S reference, E estimate
    ISR = |S|^2 / |own - S|^2          spatial distortion
    SIR = |own|^2 / |every - own|^2    interference
    SAR = |every|^2 / |E - every|^2    artefacts

Three things make it fast and small. Correlations are summed over short blocks in the frequency domain, with one short
inverse FFT at the end. One Cholesky factor serves all estimates, and the system of one source is a block of the large
one. Frames are filtered in the frequency domain and their energies taken there by Parseval's theorem, without going
back. Sound stays as it comes (float32); what is computed is float64.

Shapes: S sources, C channels, T samples, N frames, P = S * C reference channels, L taps, F bins, B frames at once.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sepcli.errors import UsageError
from sepcli.metrics.sdr import Silence, decibels, frame_slices, sdr_frames, stretch, unscored_frames, validate

Framing = Literal["museval", "continuous"]
Mode = Literal["v4", "v3"]

TAPS = 512
EPSILON = 2.0**-52  # museval adds it to the diagonal, absolute, whatever the level
UNRELIABLE = 1e-7  # smallest eigenvalue below which museval's framing shows the noise of the solver
CONTINUOUS_RIDGE = 1e-12
SPECTRUM = 8192  # FFT size of the correlations' blocks
LONG = 1 << 18  # frames longer than this are filtered in pieces


@dataclass(frozen=True)
class BssScores:
    """Scores (S, N) in dB, float64 on the CPU, NaN where silence leaves none.

    `smallest_eigenvalue` is that of the reference correlations scaled to unit diagonal (inf where no filters were
    made); `notes` are sentences that whoever reads the scores should see.
    """

    sdr: Tensor
    isr: Tensor
    sir: Tensor
    sar: Tensor
    smallest_eigenvalue: float = math.inf
    notes: tuple[str, ...] = ()


class Filters(NamedTuple):
    """Least-squares filters (museval's C and Cj).

    every (S, C, S, C, L): from channel [3] of reference [2] to channel [1] of estimate [0], all references at once;
    own (S, C, C, L): from channel [2] of the reference to channel [1] of the estimate of the same source.
    """

    every: Tensor
    own: Tensor
    smallest_eigenvalue: float


def bss_eval(
    references: Tensor,
    estimates: Tensor,
    window: float,
    hop: float,
    *,
    mode: Mode = "v4",
    framing: Framing = "museval",
    ridge: float | None = None,
    taps: int = TAPS,
    silence: Silence = "museval",
) -> BssScores:
    """SDR, ISR, SIR and SAR of each source and frame, (S, C, T) twice; window and hop in samples, inf for one frame.

    mode "v4" makes the filters from the whole song, "v3" from each frame. framing "museval" filters each frame cut out
    with hard edges; "continuous" filters the song, then cuts: the true scores where references are band-limited, which
    museval's edges leak out of. ridge is added to the unit diagonal of the correlations: 0 with museval's framing,
    1e-12 with the continuous one, unless given. No permutations are searched: estimate i is of reference i.
    """
    validate(references, estimates, dimensions=3)
    _check(mode, framing, ridge, taps)
    if ridge is None:
        ridge = CONTINUOUS_RIDGE if framing == "continuous" else 0.0
    frames = frame_slices(references.shape[-1], window, hop)
    _, missing = unscored_frames(references, estimates, frames, silence)
    sdr = sdr_frames(references, estimates, window, hop, silence=silence)
    scored = [index for index in range(len(frames)) if not bool(missing[:, index].all())]

    energies = torch.full((6, *sdr.shape), math.nan, dtype=torch.float64)
    smallest = math.inf
    if mode == "v3":
        groups: Iterable[list[int]] = ([index] for index in scored)
    else:
        step = 4 if references.device.type == "cpu" else 32  # more spill the CPU's cache
        groups = (scored[start : start + step] for start in range(0, len(scored), step))
    filters = spectra = None
    for group in groups:
        if filters is None or spectra is None or mode == "v3":
            cut = frames[group[0]] if mode == "v3" else slice(None)
            filters = distortion_filters(references[..., cut], estimates[..., cut], taps, ridge)
            smallest = min(smallest, filters.smallest_eigenvalue)
            spectra = _spectra(filters, max(frame.stop - frame.start for frame in frames))
        energies[..., group] = _energies(references, estimates, [frames[i] for i in group], spectra, framing).cpu()

    energies.masked_fill_(missing, math.nan)
    isr, sir, sar = (decibels(energies[i], energies[i + 1]) for i in (0, 2, 4))
    notes = []
    if not scored:
        notes.append(
            "silence leaves no frame to score: a reference or an estimate is silent throughout, or in each frame"
        )
    if framing == "museval" and ridge == 0 and smallest < UNRELIABLE:
        notes.append(
            f"the references are band-limited or alike (smallest eigenvalue {smallest:.0e}, below {UNRELIABLE:.0e}): "
            "ISR, SIR and SAR are unreliable with museval's framing, SDR is not; see --bss-framing continuous"
        )
    return BssScores(sdr, isr, sir, sar, smallest, tuple(notes))


def _check(mode: Mode, framing: Framing, ridge: float | None, taps: int) -> None:
    if mode not in ("v4", "v3"):
        raise UsageError(f"mode = {mode!r} is unknown", "it is v4 or v3")
    if framing not in ("museval", "continuous"):
        raise UsageError(f"framing = {framing!r} is unknown", "it is museval or continuous")
    if mode == "v3" and framing == "continuous":
        raise UsageError("framing = continuous needs one filter for the song", "it goes with mode v4, not v3")
    if ridge is not None and not 0 <= ridge < 1:
        raise UsageError(f"ridge = {ridge} is not possible", "it is from 0 up to 1, as 1e-9")
    if taps < 1:
        raise UsageError(f"taps = {taps} is not possible", "filters have at least one tap")


# Filters


def lag_correlations(first: Tensor, others: Sequence[Tensor], taps: int = TAPS) -> Tensor:
    """sum_n first[p, n] * other[q, n + lag] for |lag| < taps: (P, T) and (Q_i, T) -> float64 (P, sum of Q_i, 2 L - 1).

    Index taps - 1 is lag 0. The signals are 0 beyond their ends. Each block of `first` meets the stretch of the others
    that reaches taps - 1 samples further on either side; products are summed over blocks before the one inverse FFT.
    """
    reach = taps - 1
    size = max(SPECTRUM, _fast_size(8 * reach))
    block = size - 2 * reach
    channels, length = first.shape
    total = sum(len(other) for other in others)
    sums = torch.zeros(size // 2 + 1, channels, total, dtype=torch.complex128, device=first.device)
    for start in range(0, length, 8 * block):  # eight blocks a product
        count = min(8, math.ceil((length - start) / block))
        stop = start + count * block
        ours = stretch(first, start, stop).reshape(channels, count, block)
        theirs = torch.cat([stretch(other, start - reach, stop + reach) for other in others])
        theirs = theirs.unfold(-1, size, block)  # (Q, count, size)
        a = torch.fft.rfft(ours, size).conj_physical().movedim(-1, 0).contiguous()  # (F, P, count)
        b = torch.fft.rfft(theirs).movedim(-1, 0).mT.contiguous()  # (F, count, Q)
        sums += a @ b
    lags: Tensor = torch.fft.irfft(sums.movedim(0, -1), size)
    return lags[..., : 2 * reach + 1].clone()


def distortion_filters(references: Tensor, estimates: Tensor, taps: int = TAPS, ridge: float = 0.0) -> Filters:
    """The filters that bring the references nearest to each estimate, over all T + L - 1 samples; (S, C, T) twice.

    The normal equations are scaled to unit diagonal, so that the ridge means the same for loud and quiet sources. A
    silent channel gets filters of 0.
    """
    sources, channels, _ = references.shape
    rows = sources * channels
    lags = lag_correlations(references.flatten(0, 1), (references.flatten(0, 1), estimates.flatten(0, 1)), taps)
    scale = (lags[:, :rows, taps - 1].diagonal() + EPSILON).rsqrt()  # (P,)
    within = lags[:, :rows] * scale[:, None, None] * scale[None, :, None]  # (P, P, 2 L - 1)
    across = (lags[:, rows:, taps - 1 :] * scale[:, None, None]).movedim(-1, 1)  # (P, L, P): row, tap, estimate

    diagonal = EPSILON * scale.square() + ridge

    solution, smallest = _solve(within, diagonal, across.flatten(0, 1))
    every = (solution.reshape(rows, taps, rows) * scale[:, None, None]).movedim(-1, 0)
    own = []
    for part in (slice(source * channels, (source + 1) * channels) for source in range(sources)):
        solution, _ = _solve(within[part, part], diagonal[part], across[part, :, part].flatten(0, 1))
        own.append((solution.reshape(channels, taps, channels) * scale[part, None, None]).movedim(-1, 0))
    return Filters(every.reshape(sources, channels, sources, channels, taps), torch.stack(own), smallest)


def _gram(lags: Tensor, diagonal: Tensor) -> Tensor:
    """Correlations (P, P, 2 L - 1) as the block Toeplitz matrix (P L, P L), `diagonal` (P,) added to its diagonal."""
    rows, taps = len(lags), (lags.shape[-1] + 1) // 2
    tap = torch.arange(taps, device=lags.device)
    delay = tap[:, None] - tap[None, :] + taps - 1
    gram = torch.empty(rows, taps, rows, taps, dtype=lags.dtype, device=lags.device)
    for row in range(rows):
        for column in range(rows):
            gram[row, :, column] = lags[row, column][delay]
    gram = gram.flatten(2).flatten(0, 1)
    gram.diagonal().add_(diagonal.repeat_interleave(taps))
    return gram


def _solve(lags: Tensor, diagonal: Tensor, right: Tensor) -> tuple[Tensor, float]:
    """_gram(lags, diagonal)^-1 right, and about its smallest eigenvalue: 0 where float64 does not find it positive."""
    factor = _gram(lags, diagonal).mT  # in the order of LAPACK, so that the factor takes the matrix's place
    failed = torch.empty((), dtype=torch.int32, device=lags.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    if not failed:
        vector = torch.randn(len(factor), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        vector, norm = vector.to(factor.device), vector.norm()
        for _ in range(4):  # inverse iteration: within a few per cent
            vector = torch.cholesky_solve(vector / norm, factor)
            norm = vector.norm()
        return torch.cholesky_solve(right, factor), float(1 / norm)
    del factor
    solution, singular = torch.linalg.solve_ex(_gram(lags, diagonal), right)
    if singular:  # museval raises here; the smallest ridge that is safely above rounding stands for least squares
        solution = torch.linalg.solve(_gram(lags, diagonal + CONTINUOUS_RIDGE), right)
    return solution, 0.0


# Frames


class _Spectra(NamedTuple):
    """The filters' spectra for an FFT of `size`, which takes frames or pieces of `span` samples."""

    every: Tensor  # (P, P, F): reference channel, estimate channel
    own: Tensor  # (S, C, C, F): source, reference channel, estimate channel
    size: int
    span: int
    taps: int


def _spectra(filters: Filters, longest: int) -> _Spectra:
    taps = filters.own.shape[-1]
    span = min(longest, LONG)
    size = _fast_size(span + taps - 1)
    every = torch.fft.rfft(filters.every.flatten(2, 3).flatten(0, 1).transpose(0, 1), size)
    own = torch.fft.rfft(filters.own.transpose(1, 2), size)
    return _Spectra(every, own, size, span, taps)


def _energies(
    references: Tensor, estimates: Tensor, frames: list[slice], spectra: _Spectra, framing: Framing
) -> Tensor:
    """Numerators and denominators of ISR, SIR and SAR: float64 (6, S, N) for the N frames given."""
    if framing == "museval" and all(frame.stop - frame.start <= spectra.span for frame in frames):
        return _isolated_energies(references, estimates, frames, spectra)
    each = [_piecewise_energies(references, estimates, frame, spectra, framing) for frame in frames]
    return torch.stack(each, dim=-1)


def _isolated_energies(references: Tensor, estimates: Tensor, frames: list[slice], spectra: _Spectra) -> Tensor:
    """Each frame cut out and filtered alone, the filters' tails kept; the energies by Parseval's theorem."""
    longest = max(frame.stop - frame.start for frame in frames)
    true, guess = (
        torch.fft.rfft(torch.stack([stretch(sound[..., f], 0, longest) for f in frames]), spectra.size)  # (B, S, C, F)
        for sound in (references, estimates)
    )
    own, every = _filtered(true, spectra)
    edges = slice(0, None, spectra.size // 2) if spectra.size % 2 == 0 else slice(0, 1)  # bins without a mirror image

    def energy(bins: Tensor) -> Tensor:
        return (2 * _power(bins) - _power(bins[..., edges])) / spectra.size

    terms = (true, own - true, own, every - own, every, guess - every)
    return torch.stack([energy(term) for term in terms]).movedim(1, -1)


def _piecewise_energies(
    references: Tensor, estimates: Tensor, frame: slice, spectra: _Spectra, framing: Framing
) -> Tensor:
    """One frame of any length in pieces, filtered by overlap-save: float64 (6, S).

    In continuous framing the filters see the song before the frame and end with it; else they see only the frame, and
    their tails of L - 1 samples beyond it count.
    """
    reach = spectra.taps - 1
    seen, stop = (frame, frame.stop + reach) if framing == "museval" else (slice(0, frame.stop), frame.stop)
    sums = torch.zeros(6, len(references), dtype=torch.float64, device=references.device)
    for start in range(frame.start, stop, spectra.span):
        end = min(start + spectra.span, stop)
        true = stretch(references[..., seen], start - reach - seen.start, end - seen.start)  # (S, C, reach + piece)
        guess = stretch(estimates[..., seen], start - seen.start, end - seen.start)
        spectrum = torch.fft.rfft(true, spectra.size)
        own, every = (
            torch.fft.irfft(bins, spectra.size)[0, ..., reach : reach + end - start]
            for bins in _filtered(spectrum[None], spectra)
        )
        true = true[..., reach:]
        for index, term in enumerate((true, own - true, own, every - own, every, guess - every)):
            sums[index] += term.square().sum((-2, -1))
    return sums


def _filtered(bins: Tensor, spectra: _Spectra) -> tuple[Tensor, Tensor]:
    """The references' spectra (B, S, C, F) through both kinds of filters: own and every, (B, S, C, F) each."""
    own = torch.zeros_like(bins)
    for channel in range(bins.shape[2]):
        own += bins[:, :, channel, None] * spectra.own[:, channel]
    flat = bins.flatten(1, 2)
    every = torch.zeros_like(flat)
    for row in range(flat.shape[1]):
        every += flat[:, row, None] * spectra.every[row]
    return own, every.reshape(bins.shape)


def _power(bins: Tensor) -> Tensor:
    """Sum of squared magnitudes over channels and bins, (..., C, F) -> (...)."""
    norm: Tensor = torch.linalg.vector_norm(torch.view_as_real(bins), dim=(-3, -2, -1))
    return norm.square()


def _fast_size(length: int) -> int:
    """The next number with no prime factor above 5: FFTs of such sizes are fast."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1
