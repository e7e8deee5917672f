import numpy as np
import pytest

from sepcli.audio.blocks import BLOCK, reblock


@pytest.mark.parametrize("size", [100, 777, 1000, BLOCK])
@pytest.mark.parametrize("lengths", [[], [0], [5], [7, 0, 7], [1000, 1, 999, 1000], [BLOCK + 17, 5, BLOCK]])
def test_reblock_keeps_every_sample_and_only_the_last_block_is_short(lengths, size, noise):
    sound = noise(sum(lengths))
    pieces = np.split(sound, np.cumsum(lengths)[:-1]) if lengths else []
    blocks = list(reblock(pieces, size))
    assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert all(0 < len(block) <= size and block.flags.c_contiguous for block in blocks)
    assert sum(map(len, blocks)) == len(sound)
    assert not blocks or np.array_equal(np.concatenate(blocks), sound)
