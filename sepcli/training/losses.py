"""Losses: functions of estimate and reference, both Estimates, and the mixture (B, C, T); each gives one number.

Estimates and references are compared in the order of the sources; no permutation is searched. Everything is computed in
float32 or wider.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sepcli.dsp.stft import stft
from sepcli.errors import UsageError
from sepcli.models.separator import Estimate
from sepcli.training.recipe import Loss

Reduction = Literal["mean", "paper"]
LossFunction = Callable[[Estimate, Estimate, Tensor], Tensor]

N_FFT, HOP = 4096, 1024
"""Of the magnitudes of networks that have none of their own."""


def make_loss(terms: Sequence[Loss], sources: Sequence[str]) -> LossFunction:
    """The weighted sum of a recipe's terms for a network of these sources. Raises UsageError for what cannot be."""
    functions = [(term.weight, _term(term, sources)) for term in terms]

    def loss(estimate: Estimate, reference: Estimate, mixture: Tensor) -> Tensor:
        values = [weight * function(wide(estimate), wide(reference), mixture) for weight, function in functions]
        return torch.stack(values).sum()

    return loss


def _term(term: Loss, sources: Sequence[str]) -> LossFunction:
    if unknown := set(term.weights) - set(sources):
        raise UsageError(f"loss.weights: {min(unknown)} is no source", f"they are {', '.join(sources)}")
    if term.combinations and len(sources) < 2:
        raise UsageError(f"loss {term.name}: combinations need two sources at least; there is {', '.join(sources)}")
    weights = [float(term.weights.get(source, 1.0)) for source in sources] if term.weights else None
    if weights is not None and (min(weights) < 0 or sum(weights) == 0):
        raise UsageError("loss.weights: must be 0 or more, one of them above")

    def function(estimate: Estimate, reference: Estimate, mixture: Tensor) -> Tensor:
        if term.name in ("magnitude", "multi_domain"):
            estimate, reference = with_magnitudes(estimate), with_magnitudes(reference)
        if term.combinations:
            estimate, reference = combined(estimate), combined(reference)
        if term.name == "l1":
            return l1(estimate, reference, weights, stages=term.stages, reduction=term.reduction)
        if term.name == "mse":
            return l1(estimate, reference, weights, power=2, stages=term.stages, reduction=term.reduction)
        if term.name == "cws":
            return cws(estimate, reference, reduction=term.reduction)
        if term.name == "sdr":
            return sdr(estimate, reference, weights, term.floor)
        if term.name == "magnitude":
            return magnitude(estimate, reference, weights)
        if term.name == "spectral_rmse":
            return spectral_rmse(estimate, reference)
        if term.name == "multi_stft":
            return multi_stft(estimate, reference, term.windows, term.hop)
        return multi_domain(estimate, reference, mixture, term.alpha, trim=term.trim, reduction=term.reduction)

    return function


def l1(
    estimate: Estimate,
    reference: Estimate,
    weights: Sequence[float] | None = None,
    *,
    power: Literal[1, 2] = 1,
    stages: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean absolute error of the waveforms: of each source, then weighted by source and divided by the weights' sum.

    Hybrid Demucs (arXiv:2111.03600), multi-band Conv-TasNet; with `stages` the sum over all stages of CDE-HTCN
    (equations 5 and 6). `power` 2: squared errors. "paper": sums over sources, channels and samples.
    """
    true = reference.waveforms
    total = true.new_zeros(())
    for waveforms in (*(estimate.stages if stages else ()), estimate.waveforms):
        error = waveforms - true
        by_source = (error.abs() if power == 1 else error.square()).mean(dim=(0, 2, 3))  # (S,)
        if weights is None:
            total = total + by_source.mean()
        else:
            scale = by_source.new_tensor(weights)
            total = total + (scale * by_source).sum() / scale.sum()
    return total * true[0].numel() if reduction == "paper" else total


def cws(estimate: Estimate, reference: Estimate, *, reduction: Reduction = "mean") -> Tensor:
    """Mean absolute error of each source's subbands, and of their sum (arXiv:2008.05216, equations 7 and 8).

    Equation 8 is misprinted: its text and its authors' code compare the sum of the estimates with the mixture. The sum
    of the references stands for it, so that sources that are not trained are not asked for. Networks without subbands
    are compared by their waveforms.
    """
    found, true = domain(estimate), domain(reference)
    error = found - true
    by_source = [error[:, source].abs().mean() for source in range(error.shape[1])]
    value = torch.stack([*by_source, error.sum(dim=1).abs().mean()]).sum()
    return value * error[0, 0].numel() if reduction == "paper" else value


def magnitude(estimate: Estimate, reference: Estimate, weights: Sequence[float] | None = None) -> Tensor:
    """Mean squared error of magnitudes over all bins (Open-Unmix, D3Net); wants `with_magnitudes`."""
    assert estimate.spectrograms is not None
    assert reference.spectrograms is not None
    by_source = (estimate.spectrograms - reference.spectrograms).square().mean(dim=(0, 2, 3, 4))
    scale = torch.ones_like(by_source) if weights is None else by_source.new_tensor(weights)
    return (scale * by_source).sum() / scale.sum()


def spectral_rmse(estimate: Estimate, reference: Estimate, eps: float = 1e-8) -> Tensor:
    """Root mean squared error of the spectra's real and imaginary parts, of each item and source, then their mean.

    SCNet's (arXiv:2401.13276): of the waveforms under a rectangular window, divided by its root. eps under the root
    keeps the gradient of a perfect source finite, as the public trainer has it.
    """
    error = estimate.waveforms - reference.waveforms
    window = torch.ones(N_FFT, dtype=error.dtype, device=error.device)
    spectra = torch.view_as_real(stft(error, window, HOP, normalised=True))  # (B, S, C, F, N, 2)
    return (spectra.square().mean((2, 3, 4, 5)) + eps).sqrt().mean()


def multi_stft(
    estimate: Estimate, reference: Estimate, windows: Sequence[int] = (4096, 2048, 1024, 512, 256), hop: int = 147
) -> Tensor:
    """Mean absolute error of complex spectra, summed over windows: the RoFormers' second term, beside l1.

    Hann windows of these lengths in a transform of 2048 samples at least, the shorter ones amid zeros (BS-RoFormer,
    arXiv:2309.02612, as its public code has it).
    """
    error = estimate.waveforms - reference.waveforms
    total = error.new_zeros(())
    for size in windows:
        window = torch.hann_window(size, dtype=error.dtype, device=error.device)
        beside = max(2048 - size, 0)
        window = functional.pad(window, (beside // 2, beside - beside // 2))
        total = total + stft(error, window, hop).abs().mean()
    return total


def sdr(estimate: Estimate, reference: Estimate, weights: Sequence[float] | None = None, floor: float = 0.05) -> Tensor:
    """Decibels of error over signal in the network's own domain, the mean over items and sources.

    Both energies have a share `floor` of that of the sum of all sources added: a source that is silent is asked for
    silence, and what is far below the others counts for little (as Wisdom et al. do, arXiv:2011.00803). From the first
    step on, a floor of 0.001 taught `mini` to give all to the source that is silent least often.
    """
    found, true = parts(domain(estimate)), parts(domain(reference))
    energy = true.square().flatten(2).sum(-1)  # (B, S)
    error = (found - true).square().flatten(2).sum(-1)
    whole = true.sum(dim=1).square().flatten(1).sum(-1, keepdim=True) * floor + 1e-8
    decibels = 10 * torch.log10((error + whole) / (energy + whole))
    scale = decibels.new_ones(decibels.shape[1]) if weights is None else decibels.new_tensor(weights)
    return (scale * decibels).sum(-1).mean() / scale.sum()


def parts(signal: Tensor) -> Tensor:
    """Real and imaginary parts of what is complex, on one more axis."""
    return torch.view_as_real(signal) if signal.is_complex() else signal


def multi_domain(
    estimate: Estimate,
    reference: Estimate,
    mixture: Tensor,
    alpha: float = 10.0,
    *,
    trim: int = 0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared error of magnitudes plus alpha times 1 + weighted SDR, means over sources (arXiv:2305.07855, equation 3).

    Wants `with_magnitudes`; the mixture is the whole one, however many sources are estimated. `trim` samples at either
    end are left out of the time part, as in the authors' code. "paper" sums over channels.
    """
    kept = slice(trim, mixture.shape[-1] - trim)
    found, true = estimate.waveforms[..., kept], reference.waveforms[..., kept]
    time = 1 + weighted_sdr(found, true, mixture[:, None, :, kept]).mean()
    value = magnitude(estimate, reference) + alpha * time
    return value * mixture.shape[1] if reduction == "paper" else value


def weighted_sdr(estimate: Tensor, reference: Tensor, mixture: Tensor, eps: float = 1e-10) -> Tensor:
    """(..., T) three times -> (...) in [-1, 1], lower is better (arXiv:2305.07855, equation 4).

    Minus the cosine between estimate and reference, and between what they leave of the mixture, weighted by energy.
    """
    rest = mixture - reference
    share = _energy(reference) / (_energy(reference) + _energy(rest) + eps)
    return -share * cosine(estimate, reference, eps) - (1 - share) * cosine(mixture - estimate, rest, eps)


def cosine(a: Tensor, b: Tensor, eps: float = 1e-10) -> Tensor:
    """(..., T) twice -> (...): eps under each root keeps the gradient of silence finite."""
    return (a * b).sum(-1) / ((eps + _energy(a)).sqrt() * (eps + _energy(b)).sqrt() + eps)


def _energy(signal: Tensor) -> Tensor:
    return signal.square().sum(-1)


def with_magnitudes(estimate: Estimate) -> Estimate:
    """An Estimate with magnitudes (B, S, C, F, N): its own, or those of its waveforms where it has others or none."""
    spectrograms = estimate.spectrograms
    if spectrograms is None or spectrograms.shape[2] != estimate.waveforms.shape[2]:  # none, or subbands
        window = torch.hann_window(N_FFT, dtype=estimate.waveforms.dtype, device=estimate.waveforms.device)
        spectrograms = stft(estimate.waveforms, window, HOP).abs()
    return estimate._replace(spectrograms=spectrograms.abs() if spectrograms.is_complex() else spectrograms)


def combined(estimate: Estimate) -> Estimate:
    """The sums over each non-empty proper subset of the sources, as if they were sources (equation 5).

    Magnitudes are summed as magnitudes. J sources make 2^J - 2.
    """
    chosen = subsets(estimate.waveforms.shape[1]).to(estimate.waveforms)
    waveforms = torch.einsum("ns,bsct->bnct", chosen, estimate.waveforms)
    spectrograms = estimate.spectrograms
    if spectrograms is not None:
        spectrograms = torch.einsum("ns,bscft->bncft", chosen.to(spectrograms.dtype), spectrograms)
    return Estimate(waveforms, spectrograms)


def subsets(count: int) -> Tensor:
    """Which sources each subset holds, (2^count - 2, count), single sources first."""
    rows = [
        [float(source in members) for source in range(count)]
        for size in range(1, count)
        for members in itertools.combinations(range(count), size)
    ]
    return torch.tensor(rows)


def domain(estimate: Estimate) -> Tensor:
    """What a network estimates in its own domain: spectrograms where it has them, else waveforms."""
    return estimate.waveforms if estimate.spectrograms is None else estimate.spectrograms


def wide(estimate: Estimate) -> Estimate:
    """An Estimate in float32 at least: energies of a few seconds overflow half precision."""

    def widened(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

    spectrograms = None if estimate.spectrograms is None else widened(estimate.spectrograms)
    return Estimate(widened(estimate.waveforms), spectrograms, tuple(map(widened, estimate.stages)))
