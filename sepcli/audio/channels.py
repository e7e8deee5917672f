"""A song's channels as groups that a network takes, and back; channels are in the order of WAV and FLAC."""

from collections.abc import Sequence

import numpy as np

from sepcli.audio.blocks import Block

# Left and right stay together; centre, LFE and back centre go alone, as mono in both channels of a stereo network.
_STEREO: dict[int, list[tuple[int, ...]]] = {
    3: [(0, 1), (2, 2)],  # L R, C
    4: [(0, 1), (2, 3)],  # L R, Ls Rs
    5: [(0, 1), (2, 2), (3, 4)],  # L R, C, Ls Rs
    6: [(0, 1), (2, 2), (3, 3), (4, 5)],  # L R, C, LFE, Ls Rs
    7: [(0, 1), (2, 2), (3, 3), (4, 4), (5, 6)],  # L R, C, LFE, back centre, Ls Rs
    8: [(0, 1), (2, 2), (3, 3), (4, 5), (6, 7)],  # L R, C, LFE, Lb Rb, Ls Rs
}


def groups(channels: int, wanted: int) -> list[tuple[int, ...]]:
    """Which of a song's `channels` make each input of a network of `wanted` channels; each channel is in exactly one.

    A group that lacks channels repeats its own: mono for a stereo network is (0, 0).
    """
    if channels < 1 or wanted < 1:
        raise ValueError(f"channels {channels}, wanted {wanted}: both are at least 1")
    if wanted == 2 and channels in _STEREO:
        return _STEREO[channels]
    runs = [range(first, min(first + wanted, channels)) for first in range(0, channels, wanted)]
    return [tuple(run[i % len(run)] for i in range(wanted)) for run in runs]


def split(block: Block, wanted: int) -> list[Block]:
    """A block (frames, channels) as blocks (frames, wanted), one for each of `groups`."""
    return [np.ascontiguousarray(block[:, list(group)]) for group in groups(block.shape[1], wanted)]


def join(parts: Sequence[Block], channels: int) -> Block:
    """The inverse of `split`: blocks (frames, wanted) as one (frames, channels); a repeated channel is the mean."""
    frames, wanted = parts[0].shape
    block = np.empty((frames, channels), np.float32)
    for part, group in zip(parts, groups(channels, wanted), strict=True):
        for channel in set(group):
            places = [place for place, member in enumerate(group) if member == channel]
            block[:, channel] = (
                part[:, places[0]] if len(places) == 1 else part[:, places].mean(axis=1, dtype=np.float64)
            )
    return block
