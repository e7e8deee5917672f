"""Temporal blocks in tiles against the plain ones."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sepcli.models.cde_htcn import SwitchNorm
from sepcli.nn.norm import ChannelNorm, GlobalNorm
from sepcli.nn.tcn import TemporalBlock, temporal_blocks
from sepcli.nn.tiled_tcn import ROWS, TiledBlock, tiled
from sepcli.weights.seeded import fill, seeded
from tests.nn.test_folded import altered, every_sound, relative


@every_sound
@pytest.mark.parametrize("norm", [GlobalNorm, SwitchNorm])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 64), (5, 300), (1, 1)])
@torch.inference_mode()
def test_a_tiled_block_is_the_block(sound: str, norm: Callable[[int], nn.Module], kernel: int, dilation: int) -> None:
    plain = TemporalBlock(16, 24, kernel, dilation, norm)
    fill(plain.eval(), seed=1)
    fast = TiledBlock(plain)
    for frames in (1, 2, ROWS - 1, ROWS, ROWS + 1, 700):
        if frames == 1 and norm is SwitchNorm:
            continue  # an unbiased variance wants two
        x = altered(seeded("x", (2, 16, frames)), sound)
        before, expected = x.clone(), plain(x)
        found = fast(x)
        assert relative(found - x, expected - x) < 2e-6 * max(1.0, float(x.norm() / (expected - x).norm())), frames
        assert torch.equal(found, fast(x)), "bit for bit"
        assert torch.equal(x, before)


@torch.inference_mode()
def test_only_blocks_whose_norms_see_all_frames_are_tiled() -> None:
    network = nn.Sequential(temporal_blocks(8, 12, 3, 3, GlobalNorm), nn.Conv1d(8, 8, 1))
    form = tiled(network)
    assert [type(part) for part in form[0]] == [TiledBlock] * 3  # type: ignore[index]
    assert form[1] is network[1]  # type: ignore[index]
    assert isinstance(network[0][0], TemporalBlock), "the network stays as it was"
    framewise = temporal_blocks(8, 12, 3, 3, ChannelNorm)
    assert tiled(framewise) is framewise
