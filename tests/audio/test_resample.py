import numpy as np
import pytest
import soxr

from sepcli.audio.blocks import BLOCK, reblock
from sepcli.audio.resample import resample

RATES = [(44100, 48000), (48000, 44100), (44100, 22050), (22050, 44100), (44100, 16000), (96000, 44100), (8000, 44100)]


def whole(blocks, channels=2):
    blocks = list(blocks)
    return np.concatenate(blocks) if blocks else np.zeros((0, channels), np.float32)


def fitted(sound, frames):
    return np.concatenate([sound, np.zeros((max(0, frames - len(sound)), sound.shape[1]), np.float32)])[:frames]


@pytest.mark.parametrize("size", [509, 44100, BLOCK])
@pytest.mark.parametrize("frames", [1, 2, 509, 44100, 166_151])
@pytest.mark.parametrize(("source", "target"), RATES)
def test_blocks_give_one_pass_to_the_bit(source, target, frames, size, noise):
    sound = noise(frames)
    total = -(-frames * target // source)
    once = fitted(soxr.resample(sound, source, target, quality="VHQ"), total)
    assert np.array_equal(whole(resample(reblock([sound], size), source, target)), once)


@pytest.mark.parametrize("frames", [1, 2, 3, 509, 44099, 44100, 44101, 131_072])
@pytest.mark.parametrize(("source", "target"), RATES)
def test_there_and_back_again_has_the_song_s_length(source, target, frames, noise):
    there = resample(reblock([noise(frames)]), source, target)
    assert len(whole(resample(there, target, source, length=lambda: frames))) == frames


@pytest.mark.parametrize("frames", [20_000, 200_000])
def test_there_and_back_again_is_aligned(frames):
    """A tone within both bands comes back within 100 dB, away from the ends, where the filter sees no past."""
    tone = 0.5 * np.sin(2 * np.pi * 1000.5 / 44100 * np.arange(2 * frames).reshape(frames, 2)).astype(np.float32)
    back = whole(resample(resample(reblock([tone]), 44100, 48000), 48000, 44100, length=lambda: frames))
    assert np.abs(back - tone)[2000:-2000].max() < 1e-5


@pytest.mark.parametrize("frames", [5, BLOCK, 3 * BLOCK + 5])
def test_equal_rates_pass_through_untouched(frames, noise):
    blocks = list(reblock([noise(frames)]))
    passed = list(resample(iter(blocks), 44100, 44100))
    assert np.array_equal(whole(passed), whole(blocks))


@pytest.mark.parametrize("change", [-100, -1, 0, 1, 100, BLOCK + 3])
@pytest.mark.parametrize("target", [44100, 48000])
def test_the_last_block_is_cut_or_filled_to_the_length(target, change, noise):
    frames = 2 * BLOCK + 1000
    total = -(-frames * target // 44100)
    blocks = list(resample(reblock([noise(frames)]), 44100, target, length=lambda: total + change))
    assert sum(map(len, blocks)) == total + change
    assert all(len(block) == BLOCK for block in blocks[:-1])
    assert change <= 0 or not np.concatenate(blocks)[total:].any()


def test_a_length_far_too_short_is_our_own_mistake(noise):
    with pytest.raises(ValueError, match="already given out"):
        whole(resample(reblock([noise(4 * BLOCK)]), 44100, 44100, length=lambda: 5))


def test_blocks_stay_small_when_a_low_rate_is_raised(noise):
    blocks = list(resample([noise(40)], 3, 44100))
    assert max(map(len, blocks)) == BLOCK
    assert sum(map(len, blocks)) == 40 * 14700


def test_length_is_asked_once_and_after_the_input_has_ended(noise):
    asked = []
    ended = []

    def blocks():
        yield noise(100)
        ended.append(True)

    def length():
        asked.append(list(ended))
        return 109

    assert len(whole(resample(blocks(), 44100, 48000, length))) == 109
    assert asked == [[True]]


def test_no_blocks_give_no_blocks():
    assert list(resample([], 44100, 48000)) == []
