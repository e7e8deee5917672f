"""The multichannel Wiener filters against closed-form numbers and against two public implementations."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sepcli.dsp.wiener import wiener, wiener_one_pass
from sepcli.errors import UsageError

MACHINE = 2.220446049250313e-16


def closed_form(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Magnitudes (1, 3, 2, 4, 6) and a mixture (1, 2, 4, 6) given by formulas."""
    n = torch.arange(6, dtype=torch.float64)
    f = torch.arange(4, dtype=torch.float64)[:, None]
    c = torch.arange(2, dtype=torch.float64)[:, None, None]
    s = torch.arange(3, dtype=torch.float64)[:, None, None, None]
    magnitudes = 1.5 + torch.sin(0.7 * n + 1.3 * f + 0.4 * c + 2.1 * s)
    mixture = 20 * torch.complex(torch.cos(0.9 * n + 0.5 * f - 0.8 * c), torch.sin(0.3 * n * f + 1.1 * c + 0.2))
    return magnitudes[None].to(dtype), mixture[None].to(dtype.to_complex())


def drawn(seed: int = 0, *, bins: int = 16, frames: int = 40) -> tuple[Tensor, Tensor]:
    """Stereo magnitudes of three sources and a mixture in float64, levels spread over six powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    levels = 10 ** (6 * torch.rand(bins, 1, generator=generator, dtype=torch.float64) - 3)
    mixture = levels * torch.randn(1, 2, bins, frames, generator=generator, dtype=torch.complex128)
    shares = torch.rand(1, 3, 2, bins, frames, generator=generator, dtype=torch.float64)
    return shares * mixture.abs().unsqueeze(1), mixture


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().square().sum().sqrt() / expected.abs().square().sum().sqrt())


GOLDEN = [
    ({"iterations": 0}, [1.4712463 + 0.29229152j, 2.31790869 + 0.46049737j, 0.61637788 + 0.12245538j], 216.01138),
    ({"iterations": 1}, [2.36365277 + 1.02062463j, 17.51808461 + 2.50594337j, 0.11811622 + 0.44697799j], 967.48164),
    ({"iterations": 2}, [-0.92182663 + 0.5194592j, 20.9322342 + 3.43535075j, -0.01040716 + 0.01857987j], 1015.77615),
    ({"softmask": True}, [4.74570282 + 0.68495343j, 15.05754674 + 3.2058899j, 0.19673754 + 0.08254692j], 938.39130),
    (
        {"residual": True},
        [0.39755683 - 0.02605398j, 0.92095987 + 0.06603956j, 0.03512006 + 0.00118474j, 18.64635023 + 3.93221882j],
        924.32003,
    ),
    ({"eps": MACHINE}, [2.36359678 + 1.02053411j, 17.51829757 + 2.50587606j, 0.11810543 + 0.44697669j], 967.49211),
]


@pytest.mark.parametrize(("options", "first", "total"), GOLDEN)
def test_it_gives_the_numbers_of_the_closed_form_example(
    options: dict[str, Any], first: list[complex], total: float
) -> None:
    estimates = wiener(*closed_form(), **options)
    assert estimates.dtype == torch.complex128
    assert torch.allclose(estimates[0, :, 0, 0, 0], torch.tensor(first, dtype=torch.complex128), rtol=0, atol=3e-7)
    assert float(estimates.abs().sum()) == pytest.approx(total, abs=1e-5)


def test_one_pass_of_d3net_gives_the_numbers_of_the_closed_form_example() -> None:
    estimates = wiener_one_pass(*closed_form())
    first = [2.36359670 + 1.02053398j, 17.51829789 + 2.50587596j, 0.11810541 + 0.44697668j]
    assert torch.allclose(estimates[0, :, 0, 0, 0], torch.tensor(first, dtype=torch.complex128), rtol=0, atol=1e-8)
    assert float(estimates.abs().sum()) == pytest.approx(967.49213, abs=1e-5)


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("eps", [1e-10, MACHINE])
def test_single_precision_agrees_with_double(iterations: int, eps: float) -> None:
    magnitudes, mixture = drawn()
    double = wiener(magnitudes, mixture, iterations=iterations, eps=eps)
    single = wiener(magnitudes.float(), mixture.to(torch.complex64), iterations=iterations, eps=eps)
    assert single.dtype == torch.complex64
    assert distance(single, double) < 1e-5


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_a_mono_song_in_two_channels_is_filtered_in_single_precision(noise: float) -> None:
    magnitudes, mixture = drawn()
    mixture = mixture[:, :1].expand(-1, 2, -1, -1) + noise * mixture
    magnitudes = magnitudes[:, :, :1].expand(-1, -1, 2, -1, -1)
    single = wiener(magnitudes.float(), mixture.to(torch.complex64))
    assert distance(single, wiener(magnitudes, mixture)) < 1e-5


@pytest.mark.parametrize("level", [0.0, 1e-6, 1e-9, 3e-10, 1e-12, 1e-30])
def test_a_source_in_the_right_channel_keeps_its_power_however_little_is_left_of_it(level: float) -> None:
    magnitudes, mixture = drawn()
    channels = torch.tensor([level, 1.0], dtype=torch.float64)[:, None, None]
    magnitudes[:, 0] *= channels  # only one source, so that the others still fill the left channel
    single = wiener(magnitudes.float(), mixture.to(torch.complex64), iterations=2)
    assert distance(single, wiener(magnitudes, mixture, iterations=2)) < 1e-5


def test_one_pass_shares_a_mono_song_by_power_where_its_covariance_has_no_inverse() -> None:
    magnitudes, mixture = drawn()
    mixture = mixture[:, :1].expand(-1, 2, -1, -1)
    magnitudes = magnitudes[:, :, :1].expand(-1, -1, 2, -1, -1)
    power = magnitudes.square().mean(dim=2)
    power = power + 1e-10 * power.amax(dim=(2, 3), keepdim=True)
    spread = magnitudes[:, :, 0].square().sum(dim=-1, keepdim=True) / power.sum(dim=-1, keepdim=True)
    gain = power * spread / (power * spread).sum(dim=1, keepdim=True)
    expected = gain.unsqueeze(2) * mixture.unsqueeze(1)
    assert distance(wiener_one_pass(magnitudes, mixture), expected) < 1e-6
    assert distance(wiener_one_pass(magnitudes.float(), mixture.to(torch.complex64)), expected) < 1e-5


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_with_a_residual_and_without_noise_the_sources_sum_to_the_mixture(iterations: int) -> None:
    magnitudes, mixture = drawn()
    estimates = wiener(magnitudes, mixture, iterations=iterations, eps=1e-30, residual=True)
    assert estimates.shape == (1, 4, 2, 16, 40)
    assert distance(estimates.sum(dim=1), mixture) < 1e-9


def test_windows_are_models_of_their_own_counted_from_the_first_frame() -> None:
    magnitudes, mixture = drawn(frames=70)
    whole = wiener(magnitudes, mixture, window=30)
    for start in (0, 30, 60):
        part = wiener(magnitudes[..., start : start + 30], mixture[..., start : start + 30], window=0)
        assert distance(whole[..., start : start + 30], part) < 1e-12
    assert distance(whole, wiener(magnitudes, mixture, window=0)) > 1e-3


def test_a_loud_item_leaves_the_others_of_its_batch_alone() -> None:
    magnitudes, mixture = drawn()
    loud = torch.tensor([1.0, 1e4], dtype=torch.float64)
    both = wiener(loud[:, None, None, None, None] * magnitudes, loud[:, None, None, None] * mixture)
    assert distance(both[:1], wiener(magnitudes, mixture)) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("filtered", [wiener, wiener_one_pass])
def test_silence_stays_silent_and_has_finite_gradients(filtered: Any, dtype: torch.dtype) -> None:
    magnitudes = torch.zeros(1, 3, 2, 4, 6, dtype=dtype, requires_grad=True)
    mixture = torch.zeros(1, 2, 4, 6, dtype=dtype.to_complex(), requires_grad=True)
    estimates = filtered(magnitudes, mixture)
    assert bool((estimates == 0).all())
    estimates.abs().square().sum().backward()
    assert magnitudes.grad is not None
    assert mixture.grad is not None
    assert bool(magnitudes.grad.isfinite().all())
    assert bool(torch.view_as_real(mixture.grad).isfinite().all())


@pytest.mark.parametrize("filtered", [wiener, wiener_one_pass])
def test_gradients_are_those_of_finite_differences(filtered: Any) -> None:
    magnitudes, mixture = closed_form()
    inputs = (magnitudes[..., :2, :3].clone().requires_grad_(), mixture[..., :2, :3].clone().requires_grad_())
    assert torch.autograd.gradcheck(filtered, inputs, atol=1e-5)


def test_one_channel_is_a_ratio_of_powers() -> None:
    magnitudes, mixture = drawn()
    magnitudes, mixture = magnitudes[:, :, :1], mixture[:, :1]
    power = magnitudes.square()
    spread = power.sum(dim=-1, keepdim=True) / (1e-10 + power.sum(dim=-1, keepdim=True))
    unit = max(1.0, float(mixture.abs().max()) / 10)
    expected = mixture.unsqueeze(1) * power * spread / (1e-5 * unit**2 + (power * spread).sum(dim=1, keepdim=True))
    assert distance(wiener(magnitudes, mixture), expected) < 1e-6


def test_other_channel_counts_are_refused() -> None:
    magnitudes, mixture = drawn()
    with pytest.raises(UsageError, match="channels = 3"):
        wiener(magnitudes[:, :, [0, 0, 1]], mixture[:, [0, 0, 1]])
    with pytest.raises(UsageError, match="channels = 1"):
        wiener_one_pass(magnitudes[:, :, :1], mixture[:, :1])


@pytest.mark.reference
@pytest.mark.parametrize("softmask", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_it_equals_openunmix(iterations: int, residual: bool, softmask: bool) -> None:
    filtering = pytest.importorskip("openunmix.filtering")
    magnitudes, mixture = drawn(frames=250)
    theirs = filtering.wiener(
        magnitudes[0].permute(3, 2, 1, 0),
        torch.view_as_real(mixture[0].permute(2, 1, 0)).clone(),
        iterations,
        softmask=softmask,
        residual=residual,
    )
    expected = torch.view_as_complex(theirs.movedim(3, -1).contiguous()).permute(3, 2, 1, 0)
    options = {"iterations": iterations, "softmask": softmask, "residual": residual}
    assert distance(wiener(magnitudes, mixture, **options)[0], expected) < 1e-6  # their phases know a float32 pi


@pytest.mark.reference
@pytest.mark.parametrize("softmask", [False, True])
@pytest.mark.parametrize("iterations", [1, 2])
def test_it_equals_norbert_at_the_smallest_eps(iterations: int, softmask: bool) -> None:
    norbert = pytest.importorskip("norbert")
    magnitudes, mixture = closed_form()
    theirs = norbert.wiener(
        magnitudes[0].permute(3, 2, 1, 0).numpy().copy(),
        mixture[0].permute(2, 1, 0).numpy().copy(),
        iterations,
        use_softmask=softmask,
    )
    expected = torch.from_numpy(theirs).permute(3, 2, 1, 0)
    ours = wiener(magnitudes, mixture, iterations=iterations, eps=MACHINE, window=0, softmask=softmask)
    assert distance(ours[0], expected) < 1e-12
