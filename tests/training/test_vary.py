"""Variation of one source: each change does what it says, by its draws, and leaves silence alone."""

import random

import numpy as np
import pytest

from sepcli.training.recipe import Vary
from sepcli.training.vary import LOUDNESS, Wave, evened, played, response, room, speeds, varied

RATE = 44100


def tone(hertz: float, seconds: float = 1.0, channels: int = 2) -> Wave:
    wave = np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return np.repeat(wave[None].astype(np.float32), channels, axis=0)


def pitch(wave: Wave) -> float:
    """The strongest frequency, in Hz."""
    return float(np.abs(np.fft.rfft(wave[0])).argmax() * RATE / wave.shape[1])


def test_faster_is_higher_and_shorter_and_the_rest_is_silent() -> None:
    out = played(tone(440.0), 2.0, RATE)
    assert out.shape == (2, RATE)
    assert pitch(out[:, : RATE // 2]) == pytest.approx(880, abs=4)
    assert not out[:, RATE // 2 + 10 :].any()


def test_as_fast_as_it_was_is_the_beginning() -> None:
    assert np.array_equal(played(tone(440.0), 1.0, 1000), tone(440.0)[:, :1000])


def test_speeds_lie_within_their_range_half_the_time() -> None:
    draw = random.Random(1)
    found = [12 * np.log2(speeds(Vary(speed=3.0), draw)) for _ in range(400)]
    changed = [value for value in found if value]
    assert len(changed) / 400 == pytest.approx(0.5, abs=0.1)  # four deviations
    assert -3 <= min(changed) < -2
    assert 2 < max(changed) <= 3


def test_the_equaliser_stays_within_its_decibels() -> None:
    gains = 20 * np.log10(response(2049, RATE, 6.0, random.Random(1)))
    assert np.abs(gains).max() <= 6 + 1e-3
    assert np.ptp(gains) > 3


def test_a_room_keeps_the_sound_and_adds_a_tail_that_decays() -> None:
    found = room(2, RATE, RATE, 1.0, random.Random(3))
    assert bool((found[:, 0] > 0.9).all())
    energy = np.square(found[:, 1:])
    assert 10**-2.0 - 1e-3 <= float(energy.sum(axis=1).max()) <= 10**-0.3 + 1e-3
    assert energy[:, :4410].sum() > 10 * energy[:, -4410:].sum()
    assert not np.array_equal(found[0], found[1])


def test_width_and_pan_keep_what_they_should() -> None:
    wave = np.concatenate([tone(440.0, channels=1), tone(660.0, channels=1)])
    narrow = varied(wave, Vary(chance=1.0, width=(0.0, 0.0)), RATE, random.Random(1))
    assert np.allclose(narrow[0], narrow[1], atol=1e-6)
    assert np.allclose(narrow.sum(axis=0), wave.sum(axis=0), atol=1e-6)
    panned = varied(tone(440.0), Vary(chance=1.0, pan=6.0), RATE, random.Random(1))
    ratio = 20 * np.log10(np.abs(panned[0]).max() / np.abs(panned[1]).max())
    assert 0.1 < abs(ratio) <= 6


def test_all_changes_together_repeat_by_the_seed() -> None:
    rules = Vary(chance=1.0, equaliser=6.0, width=(0.0, 1.5), pan=6.0, reverb=1.0)
    wave = tone(440.0)
    first = varied(wave, rules, RATE, random.Random(1))
    assert first.shape == wave.shape
    assert first.dtype == np.float32
    assert np.array_equal(first, varied(wave, rules, RATE, random.Random(1)))
    assert not np.array_equal(first, varied(wave, rules, RATE, random.Random(2)))


def test_silence_stays_silent() -> None:
    rules = Vary(chance=1.0, speed=3.0, equaliser=6.0, pan=6.0, reverb=1.0)
    silence = np.zeros((2, 1000), np.float32)
    assert not varied(silence, rules, RATE, random.Random(1)).any()
    assert not evened(silence).any()


@pytest.mark.parametrize("gain", [0.003, 1.0, 30.0])
def test_a_source_that_sounds_now_and_then_is_brought_to_one_loudness(gain: float) -> None:
    wave = gain * tone(440.0, 2.0)
    wave[:, RATE:] = 0
    found = evened(wave)
    assert np.sqrt(np.square(found[:, :RATE]).mean()) == pytest.approx(LOUDNESS, rel=0.02)
