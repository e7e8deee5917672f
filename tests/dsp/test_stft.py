"""STFT and inverse against numpy's DFT, and the extension of short sounds."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sepcli.dsp.stft import istft, reflect, stft


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_centred_frames_are_dfts_of_the_reflected_signal() -> None:
    signal, window = noise(2, 3, 5000), torch.hann_window(512)
    found = stft(signal, window, 128)
    padded = np.pad(signal.double().numpy(), ((0, 0), (0, 0), (256, 256)), mode="reflect")
    expected = np.stack(
        [np.fft.rfft(padded[..., k * 128 : k * 128 + 512] * window.double().numpy()) for k in range(5000 // 128 + 1)],
        axis=-1,
    )
    assert found.shape == (2, 3, 257, 40)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)  # of values up to 60


def test_uncentred_frames_begin_at_multiples_of_the_hop() -> None:
    signal, window = noise(1000), torch.hann_window(256)
    found = stft(signal, window, 64, centre=False)
    expected = np.fft.rfft(signal.double().numpy()[3 * 64 : 3 * 64 + 256] * window.double().numpy())
    assert found.shape == (129, (1000 - 256) // 64 + 1)
    np.testing.assert_allclose(found[:, 3].numpy(), expected, atol=1e-5)


def test_normalised_divides_by_the_root_of_the_window_length() -> None:
    signal, window = noise(3000), torch.hann_window(1024)
    found = stft(signal, window, 256, normalised=True)
    torch.testing.assert_close(found * 32, stft(signal, window, 256), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 512, 513, 4999])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_inverse_gives_sounds_of_any_length_back(length: int, normalised: bool) -> None:
    signal, window = noise(2, 2, length), torch.hann_window(512).sqrt()
    spectrogram = stft(signal, window, 128, normalised=normalised)
    assert spectrogram.shape == (2, 2, 257, length // 128 + 1)
    back = istft(spectrogram, window, 128, length, normalised=normalised)
    torch.testing.assert_close(back, signal, atol=3e-6, rtol=0)


def test_a_long_signal_is_extended_as_numpy_does() -> None:
    signal = noise(2, 3, 40)
    expected = np.pad(signal.numpy(), ((0, 0), (0, 0), (39, 7)), mode="reflect")
    np.testing.assert_array_equal(reflect(signal, 39, 7).numpy(), expected)


@pytest.mark.parametrize(
    ("signal", "left", "right", "expected"),
    [
        ([1.0, 2.0, 3.0], 1, 4, [2.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 3.0]),
        ([1.0], 3, 1, [0.0, 0.0, 0.0, 1.0, 0.0]),
        ([1.0, 2.0], 2, 2, [0.0, 2.0, 1.0, 2.0, 0.0, 2.0]),
    ],
)
def test_a_short_signal_is_first_extended_with_zeros_on_the_right(
    signal: list[float], left: int, right: int, expected: list[float]
) -> None:
    assert reflect(torch.tensor(signal), left, right).tolist() == expected


@pytest.mark.reference
def test_the_extension_is_that_of_demucs() -> None:
    pytest.importorskip("demucs")
    from demucs.hdemucs import pad1d

    for length in (1, 2, 9, 10, 11, 15, 16, 17, 40):
        signal = noise(1, 2, length)
        for left, right in ((10, 16), (16, 10), (6, 6)):
            assert torch.equal(reflect(signal, left, right), pad1d(signal, (left, right), mode="reflect"))
