"""Resampling by a windowed sinc: lengths, constants and sines, and the package whose output it is."""

import math

import pytest
import torch
from torch import Tensor

from sepcli.dsp.sinc import resample, sinc_kernel
from sepcli.weights.seeded import seeded

RATIOS = [(1, 2), (2, 1), (2, 3), (160, 147)]
every_ratio = pytest.mark.parametrize(("old", "new"), RATIOS, ids=[f"{old} to {new}" for old, new in RATIOS])


def resampled(signal: Tensor, old: int, new: int) -> Tensor:
    return resample(signal, sinc_kernel(old, new), old)


@every_ratio
def test_the_length_is_that_of_the_other_rate_rounded_down(old: int, new: int) -> None:
    for length in (1, 2, 3, 100, 1001):
        signal = torch.ones(2, 3, length)
        assert resampled(signal, old, new).shape == (2, 3, new * length // old)


@every_ratio
def test_a_constant_stays_to_the_very_ends(old: int, new: int) -> None:
    found = resampled(torch.full((1, 500), 0.7), old, new)
    torch.testing.assert_close(found, torch.full_like(found, 0.7), atol=1e-6, rtol=0)


@every_ratio
def test_a_sine_far_below_both_cutoffs_is_taken_at_the_other_times(old: int, new: int) -> None:
    def sine(count: int, rate: float) -> Tensor:
        return torch.sin(2 * math.pi * 0.02 * torch.arange(count) / rate)

    found = resampled(sine(2000, 1), old, new)
    edge = 100 * new // old
    torch.testing.assert_close(found[edge:-edge], sine(len(found), new / old)[edge:-edge], atol=1e-3, rtol=0)


def test_each_weight_is_that_of_the_formula() -> None:
    for old, new in RATIOS[:3]:
        rate = 0.945 * min(old, new)
        width = math.ceil(24 * old / rate)
        for phase, kernel in enumerate(sinc_kernel(old, new)[:, 0]):
            weights = []
            for n in range(-width, width + old):
                u = math.pi * max(-24.0, min(24.0, (n / old - phase / new) * rate))
                weights.append((math.sin(u) / u if u else 1.0) * math.cos(u / 48) ** 2)
            expected = torch.tensor(weights) / sum(weights)
            torch.testing.assert_close(kernel, expected, atol=1e-6, rtol=0)


@pytest.mark.reference
@every_ratio
def test_it_is_the_resampling_of_julius(old: int, new: int) -> None:
    julius = pytest.importorskip("julius")
    for length in (1, 7, 100, 5001):
        signal = seeded("signal", (2, 3, length))
        expected = julius.resample_frac(signal, old, new)
        torch.testing.assert_close(resampled(signal, old, new), expected, atol=2e-7, rtol=1e-6)
        if 2 in (old, new) and 1 in (old, new):
            assert torch.equal(resampled(signal, old, new), expected)
