"""sepcli/nn/subbands.py: the order of channels, lengths, and the way back."""

import math

import pytest
import torch
from torch import Tensor

from sepcli.dsp import pqmf
from sepcli.dsp.stft import stft
from sepcli.errors import UsageError
from sepcli.nn.subbands import Subbands, separate


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("bands", "hop", "size"), [(1, 352, 2048), (2, 176, 1024), (4, 88, 512), (8, 44, 256)])
def test_frames_are_8_ms_apart_and_windows_the_power_of_two_above_32_ms(bands: int, hop: int, size: int) -> None:
    subbands = Subbands(bands, 44100)
    assert (subbands.hop, len(subbands.window), subbands.frame) == (hop, size, 352)
    assert float((subbands.window.square() - torch.hann_window(size)).abs().max()) < 1e-6
    assert subbands.analyse(noise(2, 132_000)).shape == (4 * bands, size // 2 + 1, 376)


def test_channels_are_left_band_0_real_imaginary_then_band_1_then_right() -> None:
    subbands = Subbands(4, 44100)
    sound = noise(3, 2, 20_000)
    spectrum = subbands.analyse(sound)
    right_band_2 = stft(pqmf.analyse(sound[1, 1], subbands.analysis)[2], subbands.window, 88)
    channel = 2 * (1 * 4 + 2)
    assert float((spectrum[1, channel] - right_band_2.real).abs().max()) < 1e-5
    assert float((spectrum[1, channel + 1] - right_band_2.imag).abs().max()) < 1e-5


@pytest.mark.parametrize(("period", "least"), [(16, 18), (8, 10), (1, 16)])
@pytest.mark.parametrize("bands", [1, 8])
def test_every_length_is_padded_to_the_same_residue_of_frames(bands: int, period: int, least: int) -> None:
    subbands = Subbands(bands, 44100, period=period, least=least)
    for length in (1, 63, 5280, 5632, 5632 + 288, 5632 + 289, 70_000):
        padded = subbands.pad(torch.ones(1, length))
        frames = padded.shape[-1] // 352 + 1
        assert padded.shape[-1] % 352 == 0
        assert frames % period == 2 % period
        assert frames >= least
        assert padded.shape[-1] - length >= 64
        assert frames == least or padded.shape[-1] - length < 64 + 352 * period
        assert float(padded.sum()) == length


@pytest.mark.parametrize(("bands", "least"), [(1, 125), (2, 108), (4, 95), (8, 65)])
def test_there_and_back_is_the_sound_to_its_last_sample(bands: int, least: float) -> None:
    subbands = Subbands(bands, 44100)
    sound = noise(2, 2, 30_017)
    back = subbands.synthesise(subbands.analyse(subbands.pad(sound)), 30_017)
    assert back.shape == sound.shape
    for error, true in ((back - sound, sound), ((back - sound)[..., -200:], sound[..., -200:])):
        assert 10 * math.log10(float(true.square().mean() / error.square().mean())) > least


def test_a_mask_belongs_to_one_part_of_one_bin_and_lies_between_zero_and_one() -> None:
    class Half(torch.nn.Module):
        def forward(self, spectrum: Tensor) -> Tensor:
            logits = torch.full_like(spectrum, 30.0)
            logits[:, 1::2] = -30.0  # keep real parts, drop imaginary ones
            return logits

    subbands = Subbands(2, 44100)
    mixture = noise(1, 2, 5000)
    spectrum = subbands.analyse(subbands.pad(mixture))
    waveforms, masked = separate(mixture, subbands, [Half(), Half(), torch.nn.Identity()])
    assert waveforms.shape == (1, 3, 2, 5000)
    assert float((masked[:, 0, 0::2] - spectrum[:, 0::2]).abs().max()) < 1e-5
    assert float(masked[:, 0, 1::2].abs().max()) < 1e-5
    assert bool((masked * spectrum.unsqueeze(1) >= 0).all())
    assert bool((masked.abs() <= spectrum.abs().unsqueeze(1)).all())


def test_no_constant_reaches_a_state_dict() -> None:
    assert Subbands(8, 44100).state_dict() == {}


def test_impossible_bands_and_rates_are_refused() -> None:
    with pytest.raises(UsageError, match="bands = 3: must be 1, 2, 4 or 8"):
        Subbands(3, 44100)
    with pytest.raises(UsageError, match="sample_rate = 4000: must be at least 8000"):
        Subbands(8, 4000)
