"""sepcli/metrics/oracles.py against the same formulas written with scipy's spectrograms, whole and loop by loop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sepcli.errors import UsageError
from sepcli.metrics.oracles import oracle
from sepcli.metrics.sdr import nsdr
from tests.metrics.signals import RATE, musical

EPSILON = np.finfo(float).eps
Complex = NDArray[np.complex128]


def with_scipy(kind: str, sources: Tensor, mixture: Tensor, legacy: bool = False) -> Tensor:
    signal = pytest.importorskip("scipy.signal")
    mixed: Complex = signal.stft(mixture.numpy(), nperseg=2048)[2]  # (C, F, N)
    true: Complex = signal.stft(sources.numpy(), nperseg=2048)[2]  # (S, C, F, N)
    masked = wiener(true, mixed, legacy) if kind == "mwf" else np.stack([masks(kind, true, mixed, y) for y in true])
    return torch.from_numpy(signal.istft(masked, nperseg=2048)[1][..., : mixture.shape[-1]])


def masks(kind: str, true: Complex, mixed: Complex, one: Complex) -> Complex:
    power = {"ibm": 1, "ibm2": 2, "irm1": 1, "irm2": 2}[kind]
    if kind.startswith("ibm"):
        keep = np.abs(one) ** power >= 0.5 * (EPSILON + np.abs(mixed) ** power)
        return np.where(keep, mixed, 0)
    total = sum(np.abs(y) ** power for y in true)
    return mixed * np.abs(one) ** power / (EPSILON + total)


def wiener(true: Complex, mixed: Complex, legacy: bool) -> Complex:
    """Frequency by frequency with matrices and numpy's own inverse, or with the public script's two slips."""
    channels = len(mixed)

    def inverted(matrix: Complex) -> Complex:
        if legacy:
            determinant = np.linalg.det(matrix)[..., None, None]
            adjugate = np.trace(matrix, axis1=-2, axis2=-1)[..., None, None] * np.eye(2) - matrix
            return adjugate / (determinant + EPSILON)
        return np.linalg.pinv(matrix, rcond=1e-15, hermitian=True)

    cube = [np.einsum("cfn,dfn->fncd", y, y.conj()) for y in true]
    spatial = []
    for y, outer in zip(true, cube, strict=True):
        mean = (outer / (EPSILON + (np.abs(y) ** 2).mean(0))[..., None, None]).mean(1)
        trace = np.trace(mean) if legacy else np.trace(mean, axis1=1, axis2=2)[:, None, None]
        spatial.append(mean * channels / trace + EPSILON * np.eye(channels))
    result = np.zeros_like(true)
    for f in range(mixed.shape[1]):
        level = [
            np.trace(inverted(r[f]) @ outer[f], axis1=1, axis2=2).real / channels
            for r, outer in zip(spatial, cube, strict=True)
        ]
        models = [p[:, None, None] * r[f] for p, r in zip(level, spatial, strict=True)]
        inverse = inverted(sum(models))
        for j, model in enumerate(models):
            result[j, :, f] = (model @ inverse @ mixed[:, f].T[..., None])[..., 0].T
    return result


def song(shared: Path) -> Tensor:
    soundfile = pytest.importorskip("soundfile")
    files = sorted((shared / "audio" / "songs" / "se-rubidium-b").glob("*.ogg"))
    read: list[Any] = [soundfile.read(f, start=5 * RATE, frames=5 * RATE + 77)[0].T for f in files]
    return torch.from_numpy(np.stack(read))


@pytest.mark.shared
@pytest.mark.reference
@pytest.mark.parametrize("kind", ["ibm", "ibm2", "irm1", "irm2"])
def test_masks_on_a_real_song_equal_the_independent_ones(kind: Any, shared: Path) -> None:
    sources = song(shared)
    mixture = sources.sum(0)
    estimates = oracle(kind, sources, mixture)
    torch.testing.assert_close(estimates, with_scipy(kind, sources, mixture), rtol=0, atol=1e-12)
    assert (nsdr(sources, estimates) > nsdr(sources, mixture.expand_as(sources))).all()


@pytest.mark.shared
@pytest.mark.reference
@pytest.mark.parametrize("legacy", [False, True])
def test_the_wiener_filter_on_a_real_song_equals_the_independent_one(legacy: bool, shared: Path) -> None:
    sources = song(shared)
    mixture = sources.sum(0)
    estimates = oracle("mwf", sources, mixture, legacy=legacy)
    torch.testing.assert_close(estimates, with_scipy("mwf", sources, mixture, legacy), rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [1, 1023, 1024, 5000, 70_001])
def test_a_ratio_mask_of_one_source_gives_the_mixture_at_any_length(length: int) -> None:
    sources = musical(1, 2, length)
    for kind in ("ibm", "irm1", "irm2"):
        estimates = oracle(kind, sources, sources[0])
        torch.testing.assert_close(estimates, sources, rtol=0, atol=1e-6)


def test_ratio_masks_share_the_mixture_out_without_a_rest() -> None:
    sources = musical(3, 2, 80_000)
    total = oracle("irm1", sources, sources.sum(0)).sum(0)
    torch.testing.assert_close(total, sources.sum(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("kind", "channels"), [("irm2", 1), ("irm2", 3), ("mwf", 1)])
def test_other_layouts_than_stereo_keep_shape_and_type(kind: Any, channels: int) -> None:
    sources = musical(2, channels, 30_000).float()
    estimates = oracle(kind, sources, sources.sum(0))
    assert estimates.dtype == torch.float32
    assert estimates.shape == sources.shape
    assert (nsdr(sources, estimates) > 5).all()


def test_the_wiener_filter_parts_what_only_its_direction_tells_apart() -> None:
    mono = musical(2, 1, 60_000)
    gains = torch.tensor([[1.0, 0.2], [0.2, 1.0]], dtype=torch.float64)
    sources = mono * gains[:, :, None]
    mixture = sources.sum(0)
    assert (nsdr(sources, oracle("mwf", sources, mixture)) > nsdr(sources, oracle("irm2", sources, mixture)) + 10).all()


def test_a_silent_source_is_estimated_silent() -> None:
    sources = musical(2, 2, 30_000)
    sources[1] = 0
    for kind in ("irm1", "mwf"):
        estimates = oracle(kind, sources, sources.sum(0))
        assert estimates.isfinite().all()
        assert estimates[1].abs().max() < 1e-9


@pytest.mark.parametrize(
    ("kind", "sources", "mixture", "said"),
    [
        ("ibm3", (2, 2, 100), (2, 100), "'ibm3' is unknown"),
        ("irm1", (2, 2, 100), (2, 99), "(2, 2, 100) and (2, 99)"),
        ("mwf", (2, 3, 100), (3, 100), "3 channels"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(kind: Any, sources: Any, mixture: Any, said: str) -> None:
    with pytest.raises(UsageError) as error:
        oracle(kind, torch.ones(sources), torch.ones(mixture))
    assert said in str(error.value)
