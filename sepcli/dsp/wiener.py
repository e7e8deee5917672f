"""Multichannel Wiener filters: spatially consistent sources from magnitude estimates and the mixture's STFT.

Sources are Gaussian with a spectral density v_j(f, n) and a spatial covariance R_j(f), and are refined in turns
(Nugraha, Liutkus and Vincent, "Multichannel audio source separation with deep neural networks", 2016): both are
measured on the present estimates, then each estimate becomes v_j R_j (sum_k v_k R_k + d I)^-1 x.

The 2 x 2 algebra is done in factors, so that single precision is enough. A covariance is written as a regression of
the second channel on the first, R = a [1, c][1, c]^H + r [0, 1][0, 1]^H; a sum of such matrices then has a first pivot
and a Schur complement that are sums of positive numbers. The usual difference of products loses, for sources that are
nearly the same in both channels, all digits that the regularisation d stands in.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sepcli.errors import UsageError


def wiener(
    magnitudes: Tensor,
    mixture: Tensor,
    *,
    iterations: int = 1,
    eps: float = 1e-10,
    scale: float = 10.0,
    window: int = 300,
    residual: bool = False,
    softmask: bool = False,
) -> Tensor:
    """Complex estimates (B, S, C, F, N) from magnitudes (B, S, C, F, N) and the mixture's STFT (B, C, F, N).

    Expectation-maximisation as in Open-Unmix, with 0 `iterations` the initial estimates alone. Each `window` of frames
    (0: all of them at once) is a model of its own; its levels are divided by max(1, max|mixture| / scale). `eps` keeps
    the divisions apart from zero, its square root is the white noise d. One more source comes last with `residual`:
    what the others leave of the mixture. Precision is that of the input. Raises UsageError beyond two channels.
    """
    estimates = initial_estimates(magnitudes, mixture, eps=eps, residual=residual, softmask=softmask)
    if iterations == 0:
        return estimates
    frames = window or mixture.shape[-1]
    windows = zip(torch.split(estimates, frames, dim=-1), torch.split(mixture, frames, dim=-1), strict=True)
    return torch.cat([maximised(y, x, iterations, eps, scale) for y, x in windows], dim=-1)


def wiener_one_pass(magnitudes: Tensor, mixture: Tensor) -> Tensor:
    """The filter of the D3Net release: one pass over all frames, neither scaled nor regularised; shapes as `wiener`.

    Densities are raised by 1e-10 of their largest value, and a mixture covariance of nearly rank one (determinant below
    1e-10, or below what the precision can tell from zero) is inverted as a pseudo-inverse: M^H / |M|^2. Raises
    UsageError for other than two channels.
    """
    if mixture.shape[1] != 2:
        raise UsageError(f"channels = {mixture.shape[1]}: D3Net's Wiener filter takes two")
    tiny = 2.220446049250313e-16  # the release's constant in float64; single precision holds it as well
    estimates = initial_estimates(magnitudes, mixture)
    power = squared(estimates).mean(dim=2)
    power = power + 1e-10 * power.amax(dim=(2, 3), keepdim=True)
    model = fitted(estimates, power, tiny)
    first, slope, second = mixture_covariance(model, 0.0)
    left, right = mixture[:, 0], mixture[:, 1]

    coupling = first * slope  # M as entries: first, coupling, corner
    corner = second + first * squared(slope)
    norm = first.square() + 2 * squared(coupling) + corner.square()
    precision = 8 * torch.finfo(power.dtype).eps
    regular = first * second >= (precision**2 * norm).clamp(min=1e-10)

    pseudo_left = (first * left + coupling.conj() * right) / (norm + tiny)
    pseudo_right = (coupling * left + corner * right) / (norm + tiny)
    whole = torch.where(regular, left / torch.where(regular, first, 1), pseudo_left + slope.conj() * pseudo_right)
    beside = torch.where(regular, (right - slope * left) / torch.where(regular, second, 1), pseudo_right)
    return filtered(model, slope, whole, beside)


def initial_estimates(
    magnitudes: Tensor, mixture: Tensor, *, eps: float = 1e-10, residual: bool = False, softmask: bool = False
) -> Tensor:
    """Magnitudes with the mixture's phase, or with `softmask` their share of the mixture: complex (B, S, C, F, N)."""
    if softmask:
        estimates = mixture.unsqueeze(1) * (magnitudes / (eps + magnitudes.sum(dim=1, keepdim=True)))
    else:
        estimates = torch.polar(magnitudes, mixture.angle().unsqueeze(1).expand_as(magnitudes))
    if residual:
        rest = mixture.unsqueeze(1) - estimates.sum(dim=1, keepdim=True)
        estimates = torch.cat([estimates, rest], dim=1)
    return estimates


def maximised(estimates: Tensor, mixture: Tensor, iterations: int, eps: float, scale: float) -> Tensor:
    """One window of expectation-maximisation: estimates (B, S, C, F, N) refined `iterations` times."""
    unit = (mixture.abs().amax(dim=(1, 2, 3), keepdim=True) / scale).clamp(min=1)  # (B, 1, 1, 1)
    mixture, estimates = mixture / unit, estimates / unit.unsqueeze(1)
    for _ in range(iterations):
        model = fitted(estimates, squared(estimates).mean(dim=2), eps)
        first, slope, second = mixture_covariance(model, eps**0.5)
        whole = mixture[:, 0] / first
        if mixture.shape[1] == 1:
            estimates = (model.power * model.lead * whole.unsqueeze(1)).unsqueeze(2)
        else:
            estimates = filtered(model, slope, whole, (mixture[:, 1] - slope * mixture[:, 0]) / second)
    return estimates * unit.unsqueeze(1)


class Model(NamedTuple):
    """The sources' densities v, `power` (B, S, F, N), and covariances R = (a, c, r), (B, S, F, 1) each."""

    power: Tensor
    lead: Tensor
    slope: Tensor
    rest: Tensor


def fitted(estimates: Tensor, power: Tensor, eps: float) -> Model:
    """R(f) = sum_n y y^H / (eps + sum_n v) of estimates y (B, S, C, F, N) with densities v, in factors."""
    channels = estimates.shape[2]
    if channels > 2:
        raise UsageError(f"channels = {channels}: the Wiener filter takes one or two")
    weight = eps + power.sum(dim=-1, keepdim=True)
    left, right = estimates[:, :, 0], estimates[:, :, -1]
    energy = squared(left).sum(dim=-1, keepdim=True)
    if channels == 1:
        return Model(power, energy / weight, torch.zeros_like(left[..., :1]), torch.zeros_like(energy))
    silent = energy < torch.finfo(energy.dtype).tiny ** 0.5  # below it the slope's gradient would overflow
    slope = (right * left.conj()).sum(dim=-1, keepdim=True) / energy.masked_fill(silent, 1)
    slope = slope.masked_fill(silent, 0)
    rest = squared(right - slope * left).sum(dim=-1, keepdim=True)
    return Model(power, energy / weight, slope, rest / weight)


def mixture_covariance(model: Model, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """sum_j v_j R_j + noise I as first pivot, slope and Schur complement, each (B, F, N).

    The slope is the sources' mean slope, weighted by v_j a_j, the noise being one more source of slope 0; the
    complement is their weighted variance around it and what the regressions leave.
    """
    weights = model.power * model.lead
    first = weights.sum(dim=1) + noise
    slope = (weights * model.slope).sum(dim=1) / torch.where(first > 0, first, 1)
    spread = (weights * squared(model.slope - slope.unsqueeze(1))).sum(dim=1) + noise * squared(slope)
    return first, slope, spread + (model.power * model.rest).sum(dim=1) + noise


def filtered(model: Model, slope: Tensor, whole: Tensor, beside: Tensor) -> Tensor:
    """v_j R_j z (B, S, 2, F, N), for z given as `whole` = z_1 + conj(mean slope) z_2 and `beside` = z_2 (B, F, N)."""
    whole, beside = whole.unsqueeze(1), beside.unsqueeze(1)
    left = model.power * model.lead * (whole + (model.slope - slope.unsqueeze(1)).conj() * beside)
    return torch.stack([left, model.slope * left + model.power * model.rest * beside], dim=2)


def squared(values: Tensor) -> Tensor:
    """|z|^2 of complex values, without the root whose gradient is infinite at zero."""
    return values.real.square() + values.imag.square()
