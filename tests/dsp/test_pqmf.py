"""sepcli/dsp/pqmf.py: the shipped filter banks, and that they take a sound apart and put it together again."""

import hashlib
import math
import struct

import pytest
import torch
from torch import Tensor

from sepcli.dsp import pqmf
from sepcli.errors import UsageError

DIGESTS = {
    ("analysis", 2): "e133c69e9b6e9b45d7d6cc5ce6098e7773333e657f4edefdb7a25de05772e813",
    ("synthesis", 2): "ecb16e0e6fef27782b7cd5f9ef01d83146c02af3ef7d3e983264a40260a2f3c4",
    ("analysis", 4): "2c3dca394c11955bb3b447ece5404fd182454b07eb7f00a674602afc63674344",
    ("synthesis", 4): "34631f71140722543df49022ce204a55d8ec630e7851fc7ebfaf0877bf0415cd",
    ("analysis", 8): "14a15787dd740ae0a8890688e466218dfbf055088af18c489eea6292e4328ccf",
    ("synthesis", 8): "4e64d0d23bc3dd9de3c576a06a8a1c612b2f5f0eb50b171b657d1d32aea08c1a",
}


def decibels(true: Tensor, estimate: Tensor) -> float:
    return 10 * math.log10(float(true.square().sum() / (true - estimate).square().sum()))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("way", "bands"), DIGESTS)
def test_the_shipped_taps_are_the_authors_tables_to_the_last_bit(way: str, bands: int) -> None:
    rows = pqmf.tables()[way][str(bands)]
    assert [len(row) for row in rows] == [64] * bands
    raw = b"".join(struct.pack("<64d", *row) for row in rows)
    assert hashlib.sha256(raw).hexdigest() == DIGESTS[way, bands]


@pytest.mark.parametrize(("bands", "least"), [(2, 110), (4, 100), (8, 69)])
def test_noise_followed_by_64_zeros_comes_back(bands: int, least: float) -> None:
    analysis, synthesis = pqmf.filters(bands)
    sound = noise(2, 44104)
    followed = torch.nn.functional.pad(sound, (0, 64))
    back = pqmf.synthesise(pqmf.analyse(followed, analysis), synthesis)
    assert back.shape == followed.shape
    assert least < decibels(sound, back[..., :44104]) < least + 5


@pytest.mark.parametrize(("bands", "wrong"), [(2, 61), (4, 60), (8, 56)])
def test_without_zeros_only_the_last_samples_are_wrong(bands: int, wrong: int) -> None:
    analysis, synthesis = pqmf.filters(bands)
    sound = noise(8000)
    error = (pqmf.synthesise(pqmf.analyse(sound, analysis), synthesis) - sound).abs()
    assert float(error[-wrong:].max()) > 0.1
    assert float(error[:-wrong].max()) < 5e-3  # the 8-band bank rebuilds noise at 69 dB


@pytest.mark.parametrize("bands", [2, 4, 8])
def test_a_tone_appears_in_its_band_and_odd_bands_are_mirrored(bands: int) -> None:
    analysis, _ = pqmf.filters(bands)
    for band in range(bands):
        tone = torch.sin(math.pi * (band + 0.3) / bands * torch.arange(32768.0))
        spectra = torch.fft.rfft(pqmf.analyse(tone, analysis) * torch.hann_window(32768 // bands)).abs()
        loudest = int(spectra.flatten().argmax())
        found, position = divmod(loudest, spectra.shape[1])
        assert found == band
        assert position / spectra.shape[1] == pytest.approx(0.7 if band % 2 else 0.3, abs=1e-3)


def test_channels_and_batch_items_are_taken_apart_alone() -> None:
    analysis, synthesis = pqmf.filters(4)
    sounds = noise(3, 2, 1000)
    subbands = pqmf.analyse(sounds, analysis)
    assert subbands.shape == (3, 2, 4, 250)
    assert float((subbands[2, 1] - pqmf.analyse(sounds[2, 1], analysis)).abs().max()) < 1e-6
    back = pqmf.synthesise(subbands, synthesis)
    assert float((back[2, 1] - pqmf.synthesise(subbands[2, 1], synthesis)).abs().max()) < 1e-6


def test_a_number_of_bands_without_a_bank_is_refused() -> None:
    with pytest.raises(UsageError, match=r"bands = 3: must be 2, 4 or 8"):
        pqmf.filters(3)


@pytest.mark.reference
@pytest.mark.parametrize("bands", [2, 4, 8])
def test_bands_equal_those_of_torchsubband(bands: int) -> None:
    theirs = pytest.importorskip("torchsubband.pqmf").PQMF(bands, 64)
    analysis, synthesis = pqmf.filters(bands)
    sound = noise(1, 1, 8000)
    with torch.no_grad():
        expected = theirs.analysis(sound)[0]
        back = theirs.synthesis(theirs.analysis(sound))[0]
    followed = torch.nn.functional.pad(sound[0, 0], (0, 64))
    subbands = pqmf.analyse(followed, analysis)
    assert float((subbands - expected[:, : subbands.shape[1]]).abs().max()) < 3e-7 * float(expected.abs().max()) + 3e-7
    ours = pqmf.synthesise(subbands, synthesis)[..., : back.shape[-1]]
    assert float((ours - back).abs().max()) < 2e-6
