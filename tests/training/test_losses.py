"""Losses against closed-form signals, whose values were computed with the authors' own code."""

import ast
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sepcli.dsp.stft import stft
from sepcli.errors import UsageError
from sepcli.models.separator import Estimate
from sepcli.training import losses
from sepcli.training.losses import combined, cosine, make_loss, weighted_sdr, with_magnitudes
from sepcli.training.recipe import Loss
from tests.models import public_code

NAMES = ("drums", "bass", "other", "vocals")


def near(value: float, tolerance: float = 1e-9) -> object:
    return pytest.approx(value, rel=tolerance, abs=1e-13)


def signals(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """References, estimates (2, 4, 2, 8192) and the mixture (2, 2, 8192)."""
    b, j, c, t = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (2, 4, 2, 8192)), indexing="ij")
    y = 0.5 * torch.sin(0.01 * (t + 1) * (j + 1) + 0.7 * c + 0.3 * b)
    e = 0.9 * y + 0.05 * torch.cos(0.017 * (t + 1) * (j + 2) + 0.5 * c - 0.2 * b)
    return y.to(dtype), e.to(dtype), y.sum(1).to(dtype)


Y, E, X = signals()


def value(loss: Loss, sources: Sequence[int] = range(4), *, stages: tuple[Tensor, ...] = ()) -> float:
    chosen = list(sources)
    function = make_loss([loss], [NAMES[index] for index in chosen])
    return float(function(Estimate(E[:, chosen], stages=stages), Estimate(Y[:, chosen]), X))


def test_the_signals_are_those_of_the_table() -> None:
    assert Y[0, 0, 0, :3].tolist() == pytest.approx([0.00499992, 0.00999933, 0.01499775], abs=1e-8)
    assert float(E[1, 3, 1, 8191]) == near(0.451646377643)
    assert float(X[0, 0, 0]) == near(0.0499916672083)


@pytest.mark.parametrize(
    ("loss", "sources", "expected"),
    [
        (Loss("l1"), range(4), 0.0406244551153),
        (Loss("l1"), [0], 0.0404880914711),
        (Loss("l1"), [1], 0.0406528638537),
        (Loss("l1"), [2], 0.0406986006958),
        (Loss("l1"), [3], 0.0406582644406),
        (Loss("l1", weights={"bass": 2, "other": 3, "vocals": 4}), range(4), 0.0406522679028),
        (Loss("mse"), range(4), 0.00250865703958),
        (Loss("l1"), [0, 1], 0.0405704776624),
    ],
)
def test_the_waveform_losses_have_the_values_of_the_table(loss: Loss, sources: Sequence[int], expected: float) -> None:
    assert value(loss, sources) == near(expected)


def test_the_stages_of_cde_htcn_are_summed() -> None:
    stages = tuple(Y + (E - Y) * (3 - s) for s in (0, 1))
    assert value(Loss("l1", stages=True), stages=stages) == near(0.243746730692)
    assert 4 * value(Loss("l1", stages=True), stages=stages) == near(0.974986922768)
    assert value(Loss("l1", stages=True, reduction="paper"), stages=stages) == near(15974.1857426)
    assert value(Loss("l1"), stages=stages) == near(0.0406244551153)


def subbands(sound: Tensor) -> Tensor:
    return sound[:, :2].reshape(2, 2, 2, 64, 128)


def test_cws_has_the_values_of_the_table() -> None:
    estimate, reference = Estimate(E[:, :2], subbands(E)), Estimate(Y[:, :2], subbands(Y))
    loss = make_loss([Loss("cws")], NAMES[:2])
    assert float(loss(estimate, reference, X)) == near(0.138691453926)
    conservation = 0.138691453926 - 0.0404880914711 - 0.0406528638537
    assert conservation == near(0.0575504986011, 1e-8)
    mixture = subbands(Y).sum(1)
    literal = sum(float((subbands(E)[:, j] - mixture).abs().mean()) for j in (0, 1))
    assert literal == near(0.639598892261)
    paper = make_loss([Loss("cws", reduction="paper")], NAMES[:2])
    assert float(paper(estimate, reference, X)) == near(0.138691453926 * 2 * 64 * 128)


def test_magnitudes_have_the_values_of_the_table() -> None:
    window = torch.hann_window(4096, dtype=torch.float64)
    plain = [stft(sound[:, 3], window, 1024, centre=False).abs() for sound in (E, Y)]
    assert plain[0].shape == (2, 2, 2049, 5)
    estimate, reference = (Estimate(E[:, 3:], m[:, None]) for m in plain)
    assert float(losses.magnitude(estimate, reference)) == near(3.83796516223)
    assert value(Loss("magnitude"), [3]) == near(3.66450159277)


def wsdr(estimate: Tensor) -> float:
    return float(weighted_sdr(estimate, Y[0, 0], X[0]).mean())


def test_weighted_sdr_has_the_values_of_the_table() -> None:
    y, z = Y[0, 0, 0], X[0, 0] - Y[0, 0, 0]
    share = y.square().sum() / (y.square().sum() + z.square().sum() + 1e-10)
    assert float(share) == near(0.249498827188)
    assert float(weighted_sdr(E[0, 0, 0], y, X[0, 0])) == near(-0.995985060148)
    assert wsdr(E[0, 0]) == near(-0.996002708585)
    half = -0.5 * cosine(E[0, 0], Y[0, 0]) - 0.5 * cosine(X[0] - E[0, 0], X[0] - Y[0, 0])
    assert float(half.mean()) == near(-0.99529560559)
    assert wsdr(Y[0, 0]) == near(-1)
    assert wsdr(X[0]) == near(-0.124689062552)
    assert wsdr(-Y[0, 0]) == near(-0.244885460103)
    assert wsdr(0 * Y[0, 0]) == near(-0.651344772453)
    assert float(weighted_sdr(0 * y, 0 * y, X[0, 0])) == near(-1)


@pytest.mark.parametrize(
    ("sources", "combinations", "mixture", "frequency", "time", "total"),
    [
        (range(4), False, X, 3.5922801716, 0.00400417925683, 3.63232196417),
        (range(4), True, X, 7.28068177312, 0.00796681302327, 7.36034990335),
        (range(3), True, X, 5.35502369261, 0.00601143153713, 5.41513800798),
        (range(3), True, Y[:, :3].sum(1), 5.35502369261, 0.00797771743812, 5.43480086699),
        (range(2), True, X, 3.53871684275, 0.00399744301942, 3.57869127295),
    ],
)
def test_multi_domain_has_the_values_of_the_table(
    sources: Sequence[int], combinations: bool, mixture: Tensor, frequency: float, time: float, total: float
) -> None:
    chosen = list(sources)
    names = [NAMES[index] for index in chosen]
    estimate, reference = Estimate(E[:, chosen]), Estimate(Y[:, chosen])
    parts = [make_loss([Loss("multi_domain", alpha=a, combinations=combinations)], names) for a in (0.0, 10.0)]
    none, ten = (float(part(estimate, reference, mixture)) for part in parts)
    assert none == near(frequency)
    assert (ten - none) / 10 == near(time, 1e-8)  # a difference of two numbers a thousand times as large
    assert ten == near(total)


def test_the_time_part_may_leave_out_the_edges() -> None:
    terms = [Loss("multi_domain", combinations=True, alpha=1.0, trim=trim) for trim in (200, 0)]
    loss = [make_loss([term], NAMES) for term in terms]
    trimmed, whole = (float(one(Estimate(E), Estimate(Y), X)) for one in loss)
    assert trimmed - whole == near(0.00801149806041 - 0.00796681302327, 1e-7)


def complex_estimate(spectrograms: Tensor) -> Estimate:
    return Estimate(torch.zeros(*spectrograms.shape[:3], 10, dtype=torch.float64), spectrograms)


def test_sdr_is_decibels_with_a_floor_for_silence() -> None:
    draw = torch.Generator().manual_seed(1)
    true = torch.randn(2, 2, 1, 30, 40, dtype=torch.complex128, generator=draw)
    loss = make_loss([Loss("sdr")], ["a", "b"])
    mixture = torch.zeros(2, 1, 10)
    share = 10 * math.log10((0.5 + 0.05) / 0.05)  # each source has half of the sum's energy
    assert float(loss(complex_estimate(true), complex_estimate(true), mixture)) == near(-share, 0.2)
    found = 0.5 * true  # a quarter of each source's energy is missing
    better = 10 * math.log10((0.5 + 0.05) / (0.125 + 0.05))
    assert float(loss(complex_estimate(found), complex_estimate(true), mixture)) == near(-better, 0.2)
    true[:, 1] = 0
    present = 10 * math.log10(1.05 / 0.05)
    assert float(loss(complex_estimate(true), complex_estimate(true), mixture)) == near(-present / 2)
    found = true.clone()
    found[:, 1] = 0.3 * true[:, 0]
    leaked = 10 * math.log10((0.09 + 0.05) / 0.05)
    assert float(loss(complex_estimate(found), complex_estimate(true), mixture)) == near(-present / 2 + leaked / 2)


def test_silence_costs_ten() -> None:
    loss = make_loss([Loss("multi_domain", combinations=True)], NAMES)
    assert float(loss(Estimate(0 * E), Estimate(0 * Y), 0 * X)) == near(10)


def test_the_gradient_of_the_fourteen_subsets_is_that_of_the_table() -> None:
    e = E.clone().requires_grad_()
    loss = make_loss([Loss("multi_domain", combinations=True)], NAMES)(Estimate(e), Estimate(Y), X)
    (gradient,) = torch.autograd.grad(loss, e)
    assert float(gradient.norm()) == near(0.949026603708)
    assert float(gradient[0, 0, 0, 100]) == near(-0.00978632001508)


def test_magnitudes_of_subsets_are_sums_of_magnitudes() -> None:
    right = value(Loss("multi_domain", alpha=0.0, combinations=True))
    chosen = losses.subsets(4).double()
    sums = [Estimate(torch.einsum("ns,bsct->bnct", chosen, sound)) for sound in (E, Y)]
    wrong = float(losses.magnitude(with_magnitudes(sums[0]), with_magnitudes(sums[1])))
    assert wrong == near(6.98965005751)
    half = float(losses.magnitude(combined(with_magnitudes(Estimate(E))), with_magnitudes(sums[1])))
    assert half == near(11.7273438997)
    assert right == near(7.28068177312)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_proper_subset_is_there_once(count: int) -> None:
    rows = {tuple(row) for row in losses.subsets(count).tolist()}
    assert len(rows) == len(losses.subsets(count)) == 2**count - 2
    assert all(0 < sum(row) < count for row in rows)


@pytest.mark.parametrize(
    "loss",
    [*map(Loss, ("l1", "mse", "magnitude", "multi_domain", "cws")), Loss("multi_domain", combinations=True)],
    ids=lambda loss: f"{loss.name} {loss.combinations}",
)
def test_float32_is_close_to_float64(loss: Loss) -> None:
    y, e, x = signals(torch.float32)
    single = float(make_loss([loss], NAMES)(Estimate(e), Estimate(y), x))
    assert single == near(float(make_loss([loss], NAMES)(Estimate(E), Estimate(Y), X)), 1e-4)


def test_torch_has_the_same_means() -> None:
    assert value(Loss("l1")) == near(float(functional.l1_loss(E, Y)), 1e-12)
    assert value(Loss("mse")) == near(float(functional.mse_loss(E, Y)), 1e-12)


def test_with_two_sources_combinations_change_nothing() -> None:
    pair = [value(Loss("multi_domain", combinations=c), [0, 1]) for c in (False, True)]
    assert pair[0] == near(pair[1], 1e-12)


def test_a_sum_of_terms_is_their_weighted_sum() -> None:
    both = make_loss([Loss("l1", weight=0.5), Loss("magnitude", weight=2.0)], NAMES)
    expected = 0.5 * value(Loss("l1")) + 2 * value(Loss("magnitude"))
    assert float(both(Estimate(E), Estimate(Y), X)) == near(expected, 1e-12)


@pytest.mark.parametrize("silent", ["everything", "one source", "one channel"])
def test_the_gradient_of_silence_is_finite(silent: str) -> None:
    y, e, _ = (sound.clone() for sound in signals(torch.float32))
    if silent == "everything":
        y, e = 0 * y, 0 * e
    elif silent == "one source":
        y[:, 1] = e[:, 1] = 0
    else:
        y[:, :, 1] = e[:, :, 1] = 0
    e.requires_grad_()
    loss = make_loss([Loss("multi_domain", combinations=True), Loss("l1"), Loss("cws")], NAMES)
    loss(Estimate(e), Estimate(y), y.sum(1)).backward()
    assert e.grad is not None
    assert bool(e.grad.isfinite().all())


@pytest.mark.parametrize(
    ("loss", "sources", "word"),
    [
        (Loss("l1", weights={"piano": 1}), NAMES, "piano"),
        (Loss("magnitude", combinations=True), ["vocals"], "two sources"),
        (Loss("l1", weights=dict.fromkeys(NAMES, 0.0)), NAMES, "weights"),
    ],
)
def test_what_cannot_be_is_refused(loss: Loss, sources: Sequence[str], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        make_loss([loss], sources)


@pytest.mark.reference
def test_asteroids_functions_give_the_same() -> None:
    """Of asteroid's X-UMX recipe, which is no part of its package: time part, frequency part, all subsets."""
    recipe = public_functions(
        "asteroid/egs/musdb18/X-UMX/train.py", "freq_domain_loss", "time_domain_loss", "weighted_sdr"
    )
    draw = torch.Generator().manual_seed(3)
    y, e = (torch.randn(2, 4, 2, 9000, generator=draw, dtype=torch.float64) for _ in range(2))
    x = y.sum(1)
    found, true = (with_magnitudes(Estimate(sound)).spectrograms for sound in (e, y))
    assert found is not None
    assert true is not None
    frequency = recipe["freq_domain_loss"](found.permute(1, 3, 0, 2, 4), true.flatten(1, 2).movedim(2, 0))
    time = recipe["time_domain_loss"](x, e.movedim(1, 0).contiguous(), y.flatten(1, 2))
    ours = make_loss([Loss("multi_domain", combinations=True)], NAMES)(Estimate(e), Estimate(y), x)
    assert float(ours) == near(float(frequency + 10 * time), 1e-10)


def public_functions(path: str, *names: str) -> dict[str, Any]:
    """Functions of a file whose imports need not be there."""
    tree = ast.parse(public_code.source(path).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]

    def squared(a: Tensor, b: Tensor) -> Tensor:  # asteroid.losses.singlesrc_mse: mean over all axes but the first
        return (b - a).square().mean(dim=tuple(range(1, a.dim())))

    space = {"torch": torch, "itertools": itertools, "itemgetter": operator.itemgetter, "singlesrc_mse": squared}
    exec(compile(tree, path, "exec"), space)
    return space


def spectra_by_hand(sound: Tensor, window: Tensor, hop: int) -> Tensor:
    """(..., T) -> complex (..., F, N) by a matrix of complex exponentials over mirrored frames."""
    size = len(window)
    index = torch.arange(-(size // 2), sound.shape[-1] + size // 2).abs()  # the first sample is not repeated
    index = torch.where(index >= sound.shape[-1], 2 * (sound.shape[-1] - 1) - index, index)
    frames = sound[..., index].unfold(-1, size, hop) * window
    turns = torch.outer(torch.arange(size, dtype=torch.float64), torch.arange(size // 2 + 1, dtype=torch.float64))
    return (frames + 0j) @ torch.exp(-2j * torch.pi * turns / size)


def test_the_error_over_many_windows_is_that_of_a_transform_by_hand() -> None:
    draw = torch.Generator().manual_seed(1)
    found, true = torch.randn(2, 2, 2, 1, 4300, dtype=torch.float64, generator=draw)
    expected = 0.0
    for size in (2048, 512, 256):
        window = 0.5 - 0.5 * torch.cos(2 * torch.pi * torch.arange(size, dtype=torch.float64) / size)
        wide = torch.cat([torch.zeros((2048 - size) // 2), window, torch.zeros((2048 - size) // 2)]).double()
        expected += (spectra_by_hand(found, wide, 441) - spectra_by_hand(true, wide, 441)).abs().mean()
    loss = make_loss([Loss("multi_stft", weight=2.0, windows=(2048, 512, 256), hop=441)], ["a", "b"])
    assert float(loss(Estimate(found), Estimate(true), found.sum(1))) == near(2 * float(expected))


def test_scnets_error_of_spectra_is_that_of_a_transform_by_hand() -> None:
    draw = torch.Generator().manual_seed(2)
    found, true = torch.randn(2, 2, 3, 2, 5000, dtype=torch.float64, generator=draw)
    spectra = spectra_by_hand(found - true, torch.ones(4096, dtype=torch.float64), 1024) / 64
    squares = torch.stack([spectra.real, spectra.imag]).square().mean((0, 3, 4, 5))  # (B, S)
    loss = make_loss([Loss("spectral_rmse")], ["a", "b", "c"])
    assert float(loss(Estimate(found), Estimate(true), found.sum(1))) == near(float((squares + 1e-8).sqrt().mean()))


@pytest.mark.parametrize("name", ["multi_stft", "spectral_rmse"])
def test_a_perfect_estimate_has_a_finite_gradient(name: Any) -> None:
    found = torch.randn(1, 2, 1, 5000, generator=torch.Generator().manual_seed(3)).requires_grad_()
    make_loss([Loss(name)], ["a", "b"])(Estimate(found), Estimate(found.detach()), found.sum(1)).backward()
    assert found.grad is not None
    assert bool(found.grad.isfinite().all())
