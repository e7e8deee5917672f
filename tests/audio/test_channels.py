import numpy as np
import pytest

from sepcli.audio.channels import groups, join, split


@pytest.mark.parametrize("wanted", [1, 2, 3])
@pytest.mark.parametrize("channels", range(1, 13))
def test_every_channel_is_in_exactly_one_group(channels, wanted):
    table = groups(channels, wanted)
    assert sorted(channel for group in table for channel in set(group)) == list(range(channels))
    assert {len(group) for group in table} == {wanted}


@pytest.mark.parametrize("wanted", [1, 2, 3])
@pytest.mark.parametrize("channels", range(1, 13))
def test_join_undoes_split_to_the_bit(channels, wanted, noise):
    block = noise(50, channels)
    assert np.array_equal(join(split(block, wanted), channels), block)


@pytest.mark.parametrize(
    ("channels", "pairs"),
    [
        (1, [(0, 0)]),
        (2, [(0, 1)]),
        (3, [(0, 1), (2, 2)]),
        (4, [(0, 1), (2, 3)]),
        (5, [(0, 1), (2, 2), (3, 4)]),
        (6, [(0, 1), (2, 2), (3, 3), (4, 5)]),
        (7, [(0, 1), (2, 2), (3, 3), (4, 4), (5, 6)]),
        (8, [(0, 1), (2, 2), (3, 3), (4, 5), (6, 7)]),
        (9, [(0, 1), (2, 3), (4, 5), (6, 7), (8, 8)]),
    ],
)
def test_left_and_right_stay_pairs_and_centre_and_lfe_are_mono(channels, pairs):
    assert groups(channels, 2) == pairs


def test_a_stereo_song_is_two_songs_for_a_mono_network(noise):
    block = noise(10, 2)
    left, right = split(block, 1)
    assert np.array_equal(left, block[:, :1])
    assert np.array_equal(right, block[:, 1:])


def test_a_mono_channel_that_came_back_as_two_is_their_mean():
    part = np.array([[1.0, 3.0], [0.0, -2.0]], np.float32)
    assert join([part], 1).tolist() == [[2.0], [-1.0]]


def test_parts_are_contiguous_float32(noise):
    assert all(part.flags.c_contiguous and part.dtype == np.float32 for part in split(noise(10, 6), 2))
