"""The small U-Net of `mini`: masks that share the mixture, whatever its level, and what cannot be built."""

from typing import Any

import pytest
import torch

from sepcli.errors import UsageError
from sepcli.models import build
from sepcli.models.tdf_unet import TdfUNet
from sepcli.weights.catalog import find
from sepcli.weights.seeded import fill

SOURCES = ("drums", "bass", "other", "vocals")


def network(**changes: Any) -> TdfUNet:
    traits = {"sources": SOURCES, "channels": 2, "sample_rate": 44100, "segment": 1.0, "level": {}}
    traits |= {name: changes.pop(name) for name in list(changes) if name in traits}
    model = build("tdf_unet.TdfUNet", {**TdfUNet.tiny, **changes}, traits)  # type: ignore[arg-type]
    assert isinstance(model, TdfUNet)
    fill(model, seed=1)
    return model


def sound(length: int, channels: int = 2) -> torch.Tensor:
    return 0.3 * torch.randn(1, channels, length, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 2])
@torch.inference_mode()
def test_the_stems_sum_to_the_mixture(channels: int) -> None:
    mixture = sound(5000, channels)
    stems = network(channels=channels)(mixture).waveforms
    assert torch.allclose(stems.sum(dim=1), mixture, atol=2e-6)
    assert float(stems.std(dim=1).mean()) > 0.01, "and are not alike"


@torch.inference_mode()
def test_the_level_of_the_mixture_does_not_matter() -> None:
    model, mixture = network(), sound(5000)
    loud, soft = model(mixture).waveforms, model(0.01 * mixture).waveforms
    assert torch.allclose(100 * soft, loud, atol=1e-4)


@torch.inference_mode()
def test_the_masks_above_the_bins_follow_those_below() -> None:
    model, mixture = network(bins=64), sound(5000)
    spectra = model.reference(model(mixture).waveforms.flatten(0, 1)[None]).spectrograms
    assert spectra is not None
    assert spectra.shape[-2] == 64
    estimate = model(mixture)
    assert estimate.spectrograms is not None
    stems = torch.stft(estimate.waveforms[0, :, 0], 256, 64, window=model.window, return_complex=True)
    whole = torch.stft(mixture[0, :1], 256, 64, window=model.window, return_complex=True)
    masks = (stems / whole).real[:, 70:, 10:-10]  # (S, bins above, N)
    middle = masks.median(dim=1).values
    assert float((masks - middle[:, None]).abs().median()) < 0.01  # overlapping frames blur it a little


def test_the_entry_is_small_enough_for_the_wheel() -> None:
    assert find("mini").parameters * 2 < 8_000_000


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"bins": 63}, "bins = 63"),
        ({"bins": 160}, "bins = 160"),
        ({"time": [2, 2]}, "time"),
        ({"groups": 3}, "groups = 3"),
        ({"hop": 200}, "hop = 200"),
        ({"patch": 0}, "patch = 0"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        network(**changes)
